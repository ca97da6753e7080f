"""The world of `optimum.py` with a constraint: its optimum is known too.

For a multiplier l, the best policy of E[r] + l E[c] - kl_coef KL is pi_l in proportion to ref exp((r + l c) / kl_coef).
E[c] under pi_l rises with l, so bisection finds the l at which it is the bound; that pi_l is the constrained optimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from helpers.optimum import FIXED, make_config, make_loop

HEADS = {"good": 1.0, "safe": 0.0}


def tilted(start, rewards, costs, multiplier, kl_coef):
    """log pi_l: (2, N)."""
    return (start + (rewards + multiplier * costs) / kl_coef).log_softmax(-1)


def mean(logp, values):
    """Over all answers to both prompts."""
    return float((logp.exp() * values).sum(1).mean())


def exact_multiplier(start, rewards, costs, bound, kl_coef):
    """By bisection, to 12 digits."""
    low, high = 1e-6, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        if mean(tilted(start, rewards, costs, middle, kl_coef), costs) < bound:
            low = middle
        else:
            high = middle
    return low


class ConstrainedOutcome(NamedTuple):
    """`gap`: share of the way to the constrained optimum in the Lagrangian at the exact multiplier. `distance`: total
    variation to it. `slack`: E[c] less the bound, over the way that E[c] had to go. `multiplier`: the run's over the
    exact one."""

    gap: float
    distance: float
    slack: float
    multiplier: float

    @property
    def passes(self) -> bool:
        near = abs(self.multiplier - 1) <= 0.1 and abs(self.slack) <= 0.08
        return near and self.gap >= 0.95 and self.distance <= 0.08


def measure_constrained(start, end, rewards, costs, bound, kl_coef, multiplier) -> ConstrainedOutcome:
    """Of log-probabilities (2, N) before and after, and the run's multiplier."""
    exact = exact_multiplier(start, rewards, costs, bound, kl_coef)
    best = tilted(start, rewards, costs, exact, kl_coef)

    def lagrangian(logp):
        divergence = (logp.exp() * (logp - start)).sum(1)
        return float(((logp.exp() * (rewards + exact * (costs - bound))).sum(1) - kl_coef * divergence).mean())

    closed = kl_coef * float((start + (rewards + exact * (costs - bound)) / kl_coef).logsumexp(1).mean())
    assert math.isclose(lagrangian(best), closed, rel_tol=1e-6, abs_tol=1e-6)
    assert math.isclose(mean(best, costs), bound, abs_tol=1e-6)  # the constraint holds, just so
    free = mean(tilted(start, rewards, costs, 0.0, kl_coef), costs)
    return ConstrainedOutcome(
        gap=(lagrangian(end) - lagrangian(start)) / (closed - lagrangian(start)),
        distance=float(0.5 * (end.exp() - best.exp()).abs().sum(1).mean()),
        slack=(mean(end, costs) - bound) / abs(bound - free),
        multiplier=multiplier / exact,
    )


def bound_for(start, rewards, costs, multiplier, kl_coef):
    """The bound whose exact multiplier is this one."""
    return mean(tilted(start, rewards, costs, multiplier, kl_coef), costs)


def constrained_run(folder, seed, *, multiplier, unit=1.0, sign=1, world=FIXED, critic="separate", **sections):
    """The loop, not yet run, with a constraint whose exact multiplier is given.

    Args:
        unit: of the constrained component, and so 1 / that of the multiplier.
        sign: -1 for an upper bound on the negative of the component.
    """
    tables = torch.stack([world.rewards(seed), unit * world.rewards(seed + 100)])
    kl_coef = sections.get("ppo", {}).get("kl_coef", 0.5)
    models = {"model": {"reward_weights": HEADS}}
    config = make_config(world, seed, **models, **sections)
    start, _ = make_loop(folder, config, seed, world, None, tables)
    bound = bound_for(start, *tables.double(), multiplier, kl_coef)
    text = f">= {bound!r}" if sign > 0 else f"<= {-bound!r}"
    if sign < 0:
        tables[1] = -tables[1]
    rewards = {**config.rewards.model_dump(), "constraints": {"safe": text}}
    config = config.model_copy(update={"rewards": type(config.rewards).model_validate(rewards)})
    start, loop = make_loop(folder, config, seed, world, critic, tables)

    def outcome():
        end = loop.world.log_probabilities(loop.models.policy, config.rollout.temperature).detach()
        return measure_constrained(
            start,
            end,
            tables[0].double(),
            sign * tables[1].double(),
            bound,
            kl_coef,
            loop.lagrangian.multiplier("safe"),
        )

    loop.world, loop.outcome = world, outcome
    return loop
