"""What the config says of an optimizer and its schedule, where a checkpoint's state is loaded into them."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

_NOT_SETTINGS = {"params", "lr", "step"}  # the rate follows from the schedule; DeepSpeed counts steps in the groups


class Settings:
    """Rates, weight decay, betas and the like of each group, as they are now.

    A checkpoint has them too. Of an unchanged config they are the same to the bit; of one that was changed
    (`--allow-changes`) torch would put the old ones in their place, and nothing would say so.
    """

    def __init__(self, optimizer: Any, schedule: Any) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._groups = [
            {name: value for name, value in group.items() if name not in _NOT_SETTINGS}
            for group in optimizer.param_groups
        ]
        self._rates = list(schedule.base_lrs) if isinstance(schedule, LambdaLR) else None

    def restore(self) -> None:
        """To be called when the states are loaded. Of a schedule that goes by a metric the rate is a state."""
        groups = self._optimizer.param_groups
        for group, own in zip(groups, self._groups, strict=True):
            group.update(own)
        if self._rates is None:
            return
        self._schedule.base_lrs = list(self._rates)
        for group, rate, factor in zip(groups, self._rates, self._schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self._schedule.last_epoch)
        self._schedule._last_lr = [group["lr"] for group in groups]
