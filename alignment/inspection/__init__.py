"""What is in data files, and what will go wrong in training on them: `alignment data check`, and before each run."""

from alignment.inspection.conversation import MARKERS, schema_validator, turn_problems
from alignment.inspection.findings import report_of
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
    "html_page",
    "percentiles",
    "refuse",
    "report_of",
    "schema_validator",
    "text_lines",
    "turn_problems",
]
