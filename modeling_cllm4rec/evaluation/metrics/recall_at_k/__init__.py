"""Folder of the `evaluate` module of Recall@k."""
