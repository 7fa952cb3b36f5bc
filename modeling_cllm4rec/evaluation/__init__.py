"""Evaluation: full-catalogue ranking metrics with bootstrap intervals, each reported with its protocol."""
