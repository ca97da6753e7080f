"""Weights & Biases, a mirror of the journal: runs, models, dashboards, and its cancel tag."""
