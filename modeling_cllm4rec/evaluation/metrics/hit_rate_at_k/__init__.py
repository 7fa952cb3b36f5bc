"""Folder of the `evaluate` module of Hit rate@k."""
