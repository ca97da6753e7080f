"""How good a reward model is, on held-out ratings: the figures, what is wrong with them in words, and the page.

`figures.py` gathers plain numbers (from `judged.py`, `calibration.py`, `shortcuts.py`, `slices.py`), `report.py` says
what they mean and writes a run's files, `page.py` draws them.
"""

from reward.evaluation.figures import evaluate
from reward.evaluation.judged import order, vote_accuracy
from reward.evaluation.report import compact, save_report

__all__ = ["compact", "evaluate", "order", "save_report", "vote_accuracy"]
