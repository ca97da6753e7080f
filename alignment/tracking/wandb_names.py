"""What W&B's environment variables say of a run where its config says nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from alignment.config.sections import TrackingConfig

PROJECT = "alignment"


@dataclass(frozen=True)
class WandbNames:
    """How a run is called in W&B."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    name: str
    group: str
    run_id: str | None
    """Of the first attempt; None: a new one."""

    @classmethod
    def of(cls, tracking: TrackingConfig, name: str, run_id: str) -> WandbNames:
        """The config's, else those of `WANDB_MODE`, `WANDB_PROJECT`, `WANDB_NAME`, `WANDB_RUN_GROUP`, `WANDB_RUN_ID`.

        `WANDB_MODE=disabled` holds whatever the config says. A `WANDB_RUN_ID` of the shell is shared by all that is
        started there, and W&B would make one run of two, so it has the run's own id behind it; that of a sweep is of
        this run alone.

        Args:
            name: the run's.
            run_id: by which the run is told from another one of its name.
        """
        said = os.environ.get("WANDB_MODE", "").lower().replace("dryrun", "offline")
        if said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
            mode: Literal["offline", "online", "disabled"] = "disabled"
        else:
            mode = tracking.wandb or ("online" if said == "online" else "offline")
        own = os.environ.get("WANDB_RUN_ID") or None
        if own and not os.environ.get("WANDB_SWEEP_ID"):
            own = f"{own}-{run_id[:8]}"
        return cls(
            mode=mode,
            project=project_of(),
            name=os.environ.get("WANDB_NAME") or name,
            group=os.environ.get("WANDB_RUN_GROUP") or name,
            run_id=own,
        )


def project_of(project: str | None = None) -> str:
    """The W&B project: the one that a config of an earlier version names, else `WANDB_PROJECT`, else `alignment`."""
    return project or os.environ.get("WANDB_PROJECT") or PROJECT
