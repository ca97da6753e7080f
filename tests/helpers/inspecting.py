"""Run the data check on rows in memory, and look at what it found."""

from alignment.config.sections import DataConfig
from alignment.data.check.findings import report_of
from alignment.data.check.inspector import Inspector


def inspect(rows, held_out=None, config=None, **options):
    """The report on rows of `d.jsonl`; `held_out` has the numbers of the held-out ones."""
    inspector = Inspector(DataConfig(train="d.jsonl", **(config or {"eval_share": 0.0})), **options)
    for number, item in enumerate(rows, 1):
        inspector.add(f"d.jsonl:{number}", item, held_out=None if held_out is None else number in held_out)
    return report_of(inspector, ["d.jsonl"])


def finding(report, kind):
    """The finding of a kind; None if there is none."""
    found = [finding for finding in report.findings if finding.kind == kind]
    assert len(found) <= 1
    return found[0] if found else None
