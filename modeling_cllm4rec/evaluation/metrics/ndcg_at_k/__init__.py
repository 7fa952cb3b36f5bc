"""Folder of the `evaluate` module of NDCG@k."""
