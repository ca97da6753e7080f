"""What a model is: loading, heads, adapters, ensembles, forward passes, export."""
