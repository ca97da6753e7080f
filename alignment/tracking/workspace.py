"""Build a W&B workspace view of a dashboard offline, and push it with a key.

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
"""The sink's (`wandb_sink.py`) name for tables of samples, its prefix of histograms, and the x axis."""
IN_THE_REPORT = "{about} W&B has no such panel: see `report.html` in the run's folder."
COLUMNS, WIDTH, HEIGHT = 3, 8, 6
"""Panels per row, and their size in W&B's grid of 24 columns."""


def view(dashboard: Dashboard, project: str, entity: str = "") -> dict[str, Any]:
    """The view as W&B stores it, in plain JSON; deterministic except for the ids of its parts."""
    model = _workspace(dashboard, project, entity)._to_model()
    view_json: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return view_json


def push(dashboard: Dashboard, project: str, entity: str | None = None) -> str:
    """Create a new view in a W&B project; returns its URL.

    Raises:
        UserError: there is no key, or W&B refuses the view.
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
    except Exception as error:  # noqa: BLE001 - many kinds, from two packages and their dependencies
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
    """A section's panels as W&B panels with a layout; one panel may become several."""
    import wandb_workspaces.reports.v2 as wr

    panels = [panel for section_panel in section.panels for panel in _panels(section_panel, dashboard, section)]
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=WIDTH * (index % COLUMNS), y=HEIGHT * (index // COLUMNS), w=WIDTH, h=HEIGHT)
    return panels


def _panels(panel: Any, dashboard: Dashboard, section: DashboardSection) -> list[Any]:
    """A panel as W&B panels; a panel without metrics or tables becomes a note."""
    import wandb_workspaces.reports.v2 as wr

    stage = str(dashboard.stage_of(section))
    own = {"title": panel.title}
    match panel:
        case LinePanel():
            names: dict[str, Any] = {"y": list(panel.metrics_shown)}
            if any(name.endswith("/*") for name in panel.metrics):  # W&B needs a regular expression for a family
                forms = (f"{name[:-1]}.*" if name.endswith("/*") else name for name in panel.metrics)
                names = {"metric_regex": f"^({'|'.join(forms)})$"}
            axes: dict[str, Any] = {"x": STEP, "log_y": panel.log or None, "title_y": _unit(stage, panel.metrics[0])}
            return [wr.LinePlot(**own, **names, **axes)]
        case ScatterPanel():
            own["title"] = panel.title.replace("√", "")  # W&B plots the values without the square root
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
