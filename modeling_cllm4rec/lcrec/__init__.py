"""LC-Rec (arXiv 2311.09049): items named by RQ-VAE codes, recommendation by constrained beam search."""
