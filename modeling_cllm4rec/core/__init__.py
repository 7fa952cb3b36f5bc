"""What every recommender system is made of: these files travel with saved folders and import nothing else of ours."""
