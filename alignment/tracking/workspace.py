"""A dashboard as a W&B workspace view: built without network or key, pushed with one.

`_to_model` is private to wandb-workspaces, hence the exact pin and the golden test.
"""

from __future__ import annotations

import json
from typing import Any

from alignment.errors import UserError
from alignment.reports.dashboards import (
    BarsPanel,
    Dashboard,
    DashboardSection,
    FilePanel,
    HistogramPanel,
    LinePanel,
    ScalarPanel,
    ScatterPanel,
)
from alignment.runs.metrics import find

SAMPLES, HISTOGRAMS, STEP = "samples", "histograms/", "step"
"""What the sink (`wandb_sink.py`) calls the tables of samples, what it puts before a histogram's name, and the axis."""
IN_THE_REPORT = "{about} W&B has no such panel: it stands in `report.html` of the run's folder."
COLUMNS, WIDTH, HEIGHT = 3, 8, 6
"""Panels in a row, and their size in W&B's 24 columns."""


def view(dashboard: Dashboard, project: str, entity: str = "") -> dict[str, Any]:
    """What W&B stores of the view, as plain JSON; the same each time but for the ids of its parts."""
    model = _workspace(dashboard, project, entity)._to_model()
    found: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return found


def push(dashboard: Dashboard, project: str, entity: str | None = None) -> str:
    """Make a new view in a W&B project; returns its address.

    Raises:
        UserError: there is no key, or W&B refuses; in one line.
    """
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        if not wandb.login(prompt=False):
            raise UserError(
                "pushing a dashboard needs a W&B key, and there is none: run `wandb login` or set WANDB_API_KEY; "
                "--json prints the view without one"
            )
        workspace = _workspace(dashboard, project, entity or str(wandb.Api().default_entity))
        workspace.save()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - of a dozen kinds, from two packages and what they stand on
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"W&B did not take the dashboard ({type(error).__name__}: {reason}); --json prints it"
        ) from None
    return str(workspace.url)


def _workspace(dashboard: Dashboard, project: str, entity: str) -> Any:
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=section.title if dashboard.stage or not section.stage else f"{section.stage}: {section.title}",
            panels=panels,
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=-(-len(panels) // COLUMNS)),
        )
        for section, panels in ((section, _laid_out(dashboard, section)) for section in dashboard.sections)
    ]
    return ws.Workspace(entity=entity, project=project, name=dashboard.title, sections=sections)


def _laid_out(dashboard: Dashboard, section: DashboardSection) -> list[Any]:
    """A section's panels in W&B's terms, each in a place of its own: one of ours may be several of theirs."""
    import wandb_workspaces.reports.v2 as wr

    panels = [panel for each in section.panels for panel in _panels(each, dashboard, section)]
    for number, panel in enumerate(panels):
        panel.layout = wr.Layout(x=WIDTH * (number % COLUMNS), y=HEIGHT * (number // COLUMNS), w=WIDTH, h=HEIGHT)
    return panels


def _panels(panel: Any, dashboard: Dashboard, section: DashboardSection) -> list[Any]:
    """A panel in W&B's terms; what is in no metric or table is named in a note."""
    import wandb_workspaces.reports.v2 as wr

    stage = str(dashboard.stage_of(section))
    own = {"title": panel.title}
    match panel:
        case LinePanel():
            names: dict[str, Any] = {"y": list(panel.metrics_shown)}
            if any(name.endswith("/*") for name in panel.metrics):  # of which W&B takes no list
                forms = (f"{name[:-1]}.*" if name.endswith("/*") else name for name in panel.metrics)
                names = {"metric_regex": f"^({'|'.join(forms)})$"}
            axes: dict[str, Any] = {"x": STEP, "log_y": panel.log or None, "title_y": _unit(stage, panel.metrics[0])}
            return [wr.LinePlot(**own, **names, **axes)]
        case ScatterPanel():
            own["title"] = panel.title.replace("√", "")  # it plots the figures as they are
            return [wr.ScatterPlot(**own, x=wr.SummaryMetric(panel.x), y=wr.SummaryMetric(y)) for y in panel.y]
        case ScalarPanel():
            return [wr.ScalarChart(**own, metric=panel.metric, groupby_aggfunc="mean")]
        case BarsPanel():
            return [wr.BarPlot(**own, metrics=list(panel.metrics))]
        case HistogramPanel():
            return [wr.MediaBrowser(**own, media_keys=[HISTOGRAMS + name for name in panel.names], num_columns=1)]
        case FilePanel(kind="samples"):
            return [wr.MediaBrowser(**own, media_keys=[SAMPLES], num_columns=1)]
        case FilePanel(kind="config"):
            return [wr.RunComparer(diff_only="split")]
        case _:
            text = f"### {panel.title}\n{IN_THE_REPORT.format(about=panel.about)}"
            return [wr.MarkdownPanel(markdown=text)]


def _unit(stage: str, name: str) -> str | None:
    metric = find(stage, name)
    return metric.unit or None if metric else None
