"""What the config says of an optimizer and its schedule, where a checkpoint's state is loaded into them."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

_SETTINGS = frozenset((
    "initial_lr", "weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "amsgrad", "alpha", "rho",
))  # fmt: skip
"""Of a group, by their names in torch's optimizers. What else is in it may be counted up while it trains, as by
schedule-free AdamW and DeepSpeed's own."""


class Settings:
    """Rates, weight decay, betas and the like of each group, as they are now.

    A checkpoint has them too. Of an unchanged config they are the same to the bit; of one that was changed
    (`--allow-changes`) torch would put the old ones in their place, and nothing would say so.
    """

    def __init__(self, optimizer: Any, schedule: Any) -> None:
        self._optimizer, self._schedule = optimizer, schedule
        self._groups = [
            {name: value for name, value in group.items() if name in _SETTINGS} for group in optimizer.param_groups
        ]
        self._rates = list(schedule.base_lrs) if isinstance(schedule, LambdaLR) else None

    def restore(self) -> None:
        """To be called when the states are loaded. Of a schedule that goes by a metric (`reduce_lr_on_plateau`,
        `greedy`) the rate is a state, and stays the checkpoint's."""
        groups = self._optimizer.param_groups
        for group, own in zip(groups, self._groups, strict=True):
            group.update(own)
        if self._rates is None:
            return
        self._schedule.base_lrs = list(self._rates)
        for group, rate, factor in zip(groups, self._rates, self._schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(self._schedule.last_epoch)
        self._schedule._last_lr = [group["lr"] for group in groups]
