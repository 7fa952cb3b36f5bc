"""Folder of the `evaluate` module of Coverage@k."""
