"""A recommender over HTTP with dynamic batching of concurrent calls."""
