"""Dashboards as code: `configs/dashboards/NAME.yaml` arranges panels of metrics for W&B and for the HTML report.

Names, units and meanings of metrics come from `metrics.py`; a dashboard adds titles, an order and explanations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignment.config import shipped
from alignment.config.loading import load_config
from alignment.config.sections import Section
from alignment.errors import ConfigError
from alignment.runs.metrics import find, plain_name

FOLDER = shipped.configs() / "dashboards"
OF_STAGE = {"sft": ("sft",), "reward": ("reward", "labels"), "ppo": ("ppo",)}
"""The dashboards that make up the report of a run."""
Stage = Literal["sft", "reward", "ppo"]


class Mark(Section):
    """A horizontal reference line."""

    at: float
    text: str
    """Its meaning, in a few words."""


class Panel(Section):
    """The fields of every panel."""

    title: str
    about: str = ""
    """An explanation, in a sentence."""

    @property
    def metrics_shown(self) -> tuple[str, ...]:
        """Names in metrics.jsonl; `reward/*` means all of a family."""
        return ()

    @property
    def histograms_shown(self) -> tuple[str, ...]:
        """Names of journaled histograms."""
        return ()


class LinePanel(Panel):
    """Metrics over the steps."""

    kind: Literal["line"]
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    low: str | None = None
    """With `high`: metrics with the ends of the first metric's interval, drawn as a band."""
    high: str | None = None
    log: bool = False
    """Start with a logarithmic axis; readers can switch."""
    together: bool = False
    """Show the panel only if a run has all of the metrics, because half of a comparison is misleading."""
    marks: tuple[Mark, ...] = ()

    @model_validator(mode="after")
    def _both_ends(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high are the two ends of an interval; give both or none")
        return self

    @property
    def metrics_shown(self) -> tuple[str, ...]:
        return (*self.metrics, *(name for name in (self.low, self.high) if name))


class ScatterPanel(Panel):
    """Metrics over another one, with a point for each step that has both, connected in order."""

    kind: Literal["scatter"]
    x: str
    y: Annotated[tuple[str, ...], Field(min_length=1)]
    sqrt_x: bool = False
    """Plot against the square root of x, as usual for reward against KL (Bai et al. 2022)."""
    best_of_n: bool = False
    """Draw what best-of-n scores too, where the run has drawn it; x is a KL."""

    @property
    def metrics_shown(self) -> tuple[str, ...]:
        return (self.x, *self.y)


class ScalarPanel(Panel):
    """A metric's last value as a number, beside its first."""

    kind: Literal["scalar"]
    metric: str
    low: str | None = None
    """With `high`: metrics with the ends of its interval."""
    high: str | None = None

    @property
    def metrics_shown(self) -> tuple[str, ...]:
        return (self.metric, *(name for name in (self.low, self.high) if name))


class BarsPanel(Panel):
    """Last values side by side, with intervals if the run has journaled them (`published`, `labels`)."""

    kind: Literal["bars"]
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    marks: tuple[Mark, ...] = ()

    @property
    def metrics_shown(self) -> tuple[str, ...]:
        return self.metrics


class HistogramPanel(Panel):
    """Journaled histograms at a step that the reader chooses."""

    kind: Literal["histogram"]
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]

    @property
    def histograms_shown(self) -> tuple[str, ...]:
        return self.names


class FilePanel(Panel):
    """Content from the run's events, samples or evaluation, or from the registry, rather than metrics."""

    kind: Literal[
        "verdicts", "config", "data", "samples", "lineage", "slices", "reliability", "scores", "shortcuts", "labelers",
    ]  # fmt: skip


AnyPanel = Annotated[
    LinePanel | ScatterPanel | ScalarPanel | BarsPanel | HistogramPanel | FilePanel, Field(discriminator="kind")
]


class DashboardSection(Section):
    """Panels under a heading."""

    title: str
    about: str = ""
    stage: Stage | None = None
    """The stage of the metrics, if the dashboard has none."""
    panels: Annotated[tuple[AnyPanel, ...], Field(min_length=1)]


class Dashboard(Section):
    """A page of panels."""

    title: str
    stage: Stage | None = None
    """The stage of the metrics; without it, each section may name its own."""
    sections: Annotated[tuple[DashboardSection, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _declared(self) -> Self:
        for section in self.sections:
            stage = section.stage or self.stage
            for panel in section.panels:
                for name, kind in shown(panel):
                    if stage is None:
                        raise ValueError(
                            f"section '{section.title}' shows {name}; set the stage of the section or the dashboard"
                        )
                    if find(stage, name, kind == "histogram") is None:
                        raise ValueError(
                            f"'{panel.title}' shows {name}, which is not a declared {kind} of {stage}; see "
                            "alignment/runs/metrics.py"
                        )
        return self

    def stage_of(self, section: DashboardSection) -> Stage | None:
        return section.stage or self.stage


def shown(panel: Panel) -> Iterator[tuple[str, str]]:
    """Names that a panel shows, each a `metric` or a `histogram`."""
    yield from ((name, "metric") for name in panel.metrics_shown)
    yield from ((name, "histogram") for name in panel.histograms_shown)


def family(name: str, metrics: Mapping[str, object]) -> list[str]:
    """The run's metrics for a dashboard's name: the metric itself and those of a reward model's members or heads, or
    all of a `reward/*`."""
    if name.endswith("/*"):
        return [metric for metric in metrics if metric.startswith(name[:-1])]
    return [metric for metric in metrics if name in (metric, plain_name(metric))]


def names() -> list[str]:
    """Names of the shipped dashboards."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Dashboard:
    """A shipped dashboard by its name, or one in a file.

    Raises:
        ConfigError: the dashboard does not exist or is invalid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file() and path.parent == FOLDER:
        raise ConfigError(f"no dashboard '{name}'; there are {', '.join(names())}, or give a YAML file")
    return load_config(Dashboard, path)
