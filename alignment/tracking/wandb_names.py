"""A run's names in W&B, from its config or from W&B's environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from alignment.config.sections import TrackingConfig

PROJECT = "alignment"


@dataclass(frozen=True)
class WandbNames:
    """The mode and the names of a run in W&B."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    name: str
    group: str
    run_id: str | None
    """W&B id of the first attempt; None: a new id."""

    @classmethod
    def of(cls, tracking: TrackingConfig, name: str, run_id: str) -> WandbNames:
        """Names from the config, else from `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_NAME`, `WANDB_RUN_GROUP` and
        `WANDB_RUN_ID`.

        `WANDB_MODE=disabled` overrides the config. All runs of a shell share its `WANDB_RUN_ID`, and W&B would merge
        them, so the run's id is appended; a sweep's id belongs to one run and is kept.

        Args:
            name: name of the run.
            run_id: unique id of the run.
        """
        requested = os.environ.get("WANDB_MODE", "").lower().replace("dryrun", "offline")
        if requested == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
            mode: Literal["offline", "online", "disabled"] = "disabled"
        else:
            mode = tracking.wandb or ("online" if requested == "online" else "offline")
        wandb_id = os.environ.get("WANDB_RUN_ID") or None
        if wandb_id and not os.environ.get("WANDB_SWEEP_ID"):
            wandb_id = f"{wandb_id}-{run_id[:8]}"
        return cls(
            mode=mode,
            project=project_of(),
            name=os.environ.get("WANDB_NAME") or name,
            group=os.environ.get("WANDB_RUN_GROUP") or name,
            run_id=wandb_id,
        )


def project_of(project: str | None = None) -> str:
    """The W&B project: the one of an earlier version's config, else `WANDB_PROJECT`, else `alignment`."""
    return project or os.environ.get("WANDB_PROJECT") or PROJECT
