"""A file that is meant to be run, not imported."""

import sys

sys.exit(0)
