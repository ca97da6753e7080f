#!/usr/bin/env python3
"""`alignment sample` in the project's own Python: scripts/sample.py --help says what it does."""

import sys

from project_python import use_project_python

if __name__ == "__main__":
    use_project_python()
    from alignment.cli.sample import main

    sys.exit(main(called="scripts/sample.py"))
