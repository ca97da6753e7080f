"""Benchmarks of `scripts/bench.py`: one module per benchmark, one per contestant, and the contestants' process.

A benchmark module (`sft`) has `PEERS`, the contestants to compare with, and `prepare(folder, options)`, which writes
the work for all contestants. A contestant module (`sft_ours`, `sft_trl`) has a class `Contestant`: `check()` describes
its work, and `run()` does it once. It is imported in the contestant's own Python.
"""
