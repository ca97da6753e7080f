"""What `scripts/bench.py` measures: one module per benchmark, one per contestant, and the process each runs in.

A benchmark module (`sft`) has `PEERS`, which says what is measured against, and `prepare(folder, options)`, which
writes the work that all contestants read. A contestant module (`sft_ours`, `sft_trl`) has a class `Contestant` whose
`check()` says what work it would do and whose `run()` does it once. It is imported in the contestant's own Python.
"""
