"""Studies, each run by `scripts/study.py NAME`; docs/ has a page on what came of it."""
