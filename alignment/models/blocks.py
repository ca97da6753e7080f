"""How much of a pass is computed at a time, for the code that does it and for the memory plans, which need no torch."""

LOGITS_AT_ONCE = 2**24
"""Logits of one block of log-probabilities: 64 MiB of float32."""
