"""Measuring recommenders: full-catalogue ranking metrics with bootstrap intervals, each number beside its protocol."""
