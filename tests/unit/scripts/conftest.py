"""Makes scripts/ importable, as it is when a script there runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
