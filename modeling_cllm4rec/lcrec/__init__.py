"""LC-Rec (arXiv 2311.09049): semantic IDs by RQ-VAE, alignment of a language model, constrained beam search."""
