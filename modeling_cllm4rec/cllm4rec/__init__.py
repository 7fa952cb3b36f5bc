"""CLLM4Rec (arXiv 2311.01343): ID tokens for users and items, an item head over the whole catalogue."""
