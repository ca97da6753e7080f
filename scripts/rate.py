#!/usr/bin/env python3
"""`alignment rate` in the project's own Python: scripts/rate.py --help says what it does."""

import sys

from project_python import use_project_python

if __name__ == "__main__":
    use_project_python()
    from alignment.cli.rate import main

    sys.exit(main(called="scripts/rate.py"))
