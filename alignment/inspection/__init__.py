"""What is in data files, and what will go wrong in training on them: `alignment data check`, and before each run."""

from alignment.inspection.before_training import check_before_training, write_report
from alignment.inspection.conversation import MARKERS, schema_validator, turn_problems
from alignment.inspection.inspector import Inspector
from alignment.inspection.page import html_page
from alignment.inspection.report import Finding, Lengths, Report, SetAside, percentiles, refuse, text_lines

__all__ = [
    "MARKERS",
    "Finding",
    "Inspector",
    "Lengths",
    "Report",
    "SetAside",
    "check_before_training",
    "html_page",
    "percentiles",
    "refuse",
    "schema_validator",
    "text_lines",
    "turn_problems",
    "write_report",
]
