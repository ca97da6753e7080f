"""Evaluate a reward model on held-out ratings: metrics, findings in words, and the report page.

`metrics.py` collects the numbers (from `judged.py`, `calibration.py`, `shortcuts.py`, `slices.py`), `findings.py`
interprets them, `report.py` writes a run's files, and `page.py` renders the page.
"""

from __future__ import annotations

from reward.evaluation.judged import order, vote_accuracy
from reward.evaluation.metrics import evaluate
from reward.evaluation.report import compact, save_report

__all__ = ["compact", "evaluate", "order", "save_report", "vote_accuracy"]
