"""Base of every recommender system: these files are copied into saved folders and import no other part of the package."""
