"""Folder of the `evaluate` module of MRR@k."""
