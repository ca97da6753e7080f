"""Comparing models: sampled answers, scores and KL."""
