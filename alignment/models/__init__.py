"""Models: loading, heads, adapters, ensembles, forward passes, export."""
