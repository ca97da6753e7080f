"""The config's optimizer and schedule settings, restored after a checkpoint's state is loaded."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

_SETTINGS = frozenset((
    "initial_lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "amsgrad", "alpha", "rho",
))  # fmt: skip
"""A parameter group's settings by their names in torch's optimizers. Other entries may be counters, as in
schedule-free AdamW and DeepSpeed's optimizers."""


class Settings:
    """Learning rates, weight decay, betas and the like of each group, as the config set them.

    A checkpoint has them too. With an unchanged config they are equal bit for bit; after a change (`--allow-changes`)
    torch would silently restore the old ones.
    """

    def __init__(self, optimizer: Any, schedule: Any) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._groups = [
            {name: value for name, value in group.items() if name in _SETTINGS} for group in optimizer.param_groups
        ]
        self._base_lrs = list(schedule.base_lrs) if isinstance(schedule, LambdaLR) else None

    def restore(self) -> None:
        """Restore the settings, once the states are loaded.

        A schedule that follows a metric (`reduce_lr_on_plateau`, `greedy`) keeps the checkpoint's learning rate.
        """
        groups = self._optimizer.param_groups
        for group, settings in zip(groups, self._groups, strict=True):
            group.update(settings)
        if self._base_lrs is None:
            return
        self._schedule.base_lrs = list(self._base_lrs)
        for group, base_lr, factor in zip(groups, self._base_lrs, self._schedule.lr_lambdas, strict=True):
            group["lr"] = base_lr * factor(self._schedule.last_epoch)
        self._schedule._last_lr = [group["lr"] for group in groups]
