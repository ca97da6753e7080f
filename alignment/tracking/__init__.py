"""Weights & Biases as a mirror of the journal: runs, models, dashboards, and a cancel tag."""
