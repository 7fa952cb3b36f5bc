"""Benchmark of models and strong baselines, and ablations of recipes: each in a separate process, with intervals."""
