"""Base of every recommender system: these files import no other part of the package, and saved folders hold copies of them."""
