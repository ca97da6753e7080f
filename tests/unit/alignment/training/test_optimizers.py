"""A checkpoint's optimizer and schedule under the same config, which they do not notice, and under another."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from alignment.training.optimizers import Settings

SCHEDULES = ("linear", "cosine", "constant_with_warmup", "inverse_sqrt", "polynomial", "cosine_with_restarts")


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimizers do, and scales by the count."""

    def __init__(self, parameters, lr, weight_decay=0.0):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            group["momentum"] = 0.0
            for parameter in group["params"]:
                parameter.grad /= group["k"]
        return super().step(closure)


def make(kind, schedule, rate=0.1, weight_decay=0.01):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": rate}, {"params": [weights[1]], "lr": 5 * rate}]
    optimizer = kind(groups, lr=rate, weight_decay=weight_decay)
    return weights, optimizer, transformers.get_scheduler(schedule, optimizer, 2, 12)


def steps(weights, optimizer, schedule, count):
    for _ in range(count):
        sum((weight**2).sum() for weight in weights).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def resumed(kind, schedule, **changes):
    weights, optimizer, plan = make(kind, schedule)
    steps(weights, optimizer, plan, 5)
    saved = copy.deepcopy([optimizer.state_dict(), plan.state_dict()])
    others, again, new_plan = make(kind, schedule, **changes)
    with torch.no_grad():
        for old, new in zip(weights, others, strict=True):
            new.copy_(old)
    settings = Settings(again, new_plan)
    again.load_state_dict(saved[0])
    new_plan.load_state_dict(saved[1])
    settings.restore()
    return (weights, optimizer, plan), (others, again, new_plan)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, Counting])
def test_under_the_same_config_nothing_is_noticed(kind, schedule):
    one, other = resumed(kind, schedule)
    for run in (one, other):
        steps(*run, 5)
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1].state_dict()["param_groups"] == other[1].state_dict()["param_groups"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_rate_and_decay_hold_from_there_on(schedule):
    one, other = resumed(torch.optim.AdamW, schedule, rate=0.01, weight_decay=0.5)
    for _ in range(3):
        before, now = ([group["lr"] for group in run[1].param_groups] for run in (one, other))
        assert now == pytest.approx([rate / 10 for rate in before], rel=1e-4)  # polynomial ends at 1e-7, not 0
        assert {group["weight_decay"] for group in other[1].param_groups} == {0.5}
        for run in (one, other):
            steps(*run, 1)
    moments = [run[1].state_dict()["state"][0]["step"] for run in (one, other)]
    assert moments == [8, 8]  # what it has gathered is kept


def test_a_rate_that_is_a_state_stays_the_checkpoints():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    plan = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    settings = Settings(optimizer, plan)
    for loss in (1.0, 2.0):
        plan.step(loss)
    settings.restore()
    assert optimizer.param_groups[0]["lr"] == 0.05
