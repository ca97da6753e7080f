"""Sampling from policies: the engines and their self-check."""
