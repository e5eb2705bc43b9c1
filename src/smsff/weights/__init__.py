"""Weights: what a configuration needs, fetching it, and what is there before a run."""
