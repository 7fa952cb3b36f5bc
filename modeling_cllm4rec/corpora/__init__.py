"""Corpora: from raw interactions and texts to the documents that models are trained on."""
