"""A recommender over HTTP: calls that arrive together are scored together."""
