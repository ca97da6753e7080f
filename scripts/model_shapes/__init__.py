"""What `scripts/shapes.py` is made of: tiny models of any kind, and the trial of one."""
