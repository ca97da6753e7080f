"""Run a case of `memory` like `python -m STAGE`, and report the planned memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig

import ppo.train
import ppo.workload
import reward.train
import reward.workload
import sft.train
import sft.workload
from alignment.config.loading import validate
from alignment.memory.plan import DDP, estimate, in_gb
from alignment.memory.workload import Workload
from benchmarks.memory import values
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

STAGES: dict[str, tuple[Any, Any]] = {
    "sft": (SFTStageConfig, sft),
    "reward": (RewardStageConfig, reward),
    "ppo": (PPOStageConfig, ppo),
}


class Contestant:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        stage, config = values(settings["case"], folder, tempfile.mkdtemp())
        kind, self.stage = STAGES[stage]
        self.config = validate(kind, config, "case")
        self.shape = AutoConfig.from_pretrained(folder / "policy")

    def run(self) -> dict[str, Any]:
        """Run the case and return the planned memory."""
        planned = estimate(self._workload(), DDP, 1, on_gpu=False)
        self.config.run_dir.mkdir(parents=True)
        self.stage.train.train(self.config)
        return {"planned": planned.peak, **in_gb(planned)}

    def _workload(self) -> Workload:
        if self.stage is ppo:
            roles = ("init", "reference", "reward", "value")
            return ppo.workload.workload(self.config, dict.fromkeys(roles, self.shape), 1)
        return self.stage.plan.workload(self.config, self.shape, bf16=False)
