"""The `alignment` command: one module for each group of commands."""
