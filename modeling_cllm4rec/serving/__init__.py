"""A recommender over HTTP: FastAPI, dynamic batching of concurrent calls, metrics, and models that are replaced while it runs."""
