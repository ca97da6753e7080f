"""Check data files for problems in training: `alignment data check`, and before each run."""

from __future__ import annotations

from alignment.data.check.conversation import MARKERS, parse_json, read_schema, schema_validator, turn_problems
from alignment.data.check.example import example_lines
from alignment.data.check.findings import report_of
from alignment.data.check.inspector import STAGES, Inspector
from alignment.data.check.page import html_page
from alignment.data.check.report import DataReport, Finding, Lengths, SetAside, percentiles, refuse, text_lines

__all__ = [
    "MARKERS",
    "STAGES",
    "DataReport",
    "Finding",
    "Inspector",
    "Lengths",
    "SetAside",
    "example_lines",
    "html_page",
    "parse_json",
    "percentiles",
    "read_schema",
    "refuse",
    "report_of",
    "schema_validator",
    "text_lines",
    "turn_problems",
]
