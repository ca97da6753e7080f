"""PPO under a constraint reaches the optimum that enumeration and bisection name (`helpers/constrained.py`), and its
multiplier the exact one.

The multiplier begins at about 1 in these worlds, and the exact ones are below and above it. Seeds are those whose
multiplier is well determined: where the mean hardly depends on it, a policy that is nearly right has another one (2
with 0.4: gap .987 and .86 of the multiplier; 4 with 0.4, whose optimum one layer of this width does not hold: .964 and
1.22). The last tests show that a bug in the multiplier or in what it adds ends somewhere else.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.constrained import ConstrainedOutcome, constrained_run, exact_multiplier, mean, measure_constrained, tilted
from helpers.optimum import FIXED

import ppo.targets
from ppo.constraints import Lagrangian

SHORT = {"max_steps": 150, "packing": False}


def outcome(folder, seed=0, multiplier=0.4, **sections):
    loop = constrained_run(folder, seed, multiplier=multiplier, **{"training": SHORT, **sections})
    loop.run()
    return loop.outcome()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "multiplier"), [(0, 0.4), (3, 0.4), (2, 0.7), (0, 2.0), (2, 2.5)])
def test_ppo_finds_the_constrained_optimum_and_its_multiplier(tmp_path, seed, multiplier):
    found = outcome(tmp_path, seed, multiplier)
    assert found.passes, found


@pytest.mark.slow
def test_an_upper_bound_is_a_lower_one_of_the_negative(tmp_path):
    found = outcome(tmp_path, sign=-1)
    assert found.passes, found


@pytest.mark.slow
@pytest.mark.parametrize("unit", [0.03, 30.0])
def test_a_component_in_another_unit_has_the_same_optimum(tmp_path, unit):
    found = outcome(tmp_path, multiplier=0.4 / unit, unit=unit)
    assert found.passes, found


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["rloo", "reinforce++"])
def test_it_needs_no_critic(tmp_path, estimator):
    sections = {"rollout": {"num_generations": 8}} if estimator == "rloo" else {}
    found = outcome(tmp_path, ppo={"advantage_estimator": estimator}, **sections)
    assert found.passes, found


# --- does it catch anything? ----------------------------------------------------------------------------------------


def wrong_step(self, means, num_episodes):
    mirrored = {f"reward/{bound.name}": 2 * bound.at - means[f"reward/{bound.name}"] for bound in self.bounds}
    Lagrangian.update(self, mirrored, num_episodes)


def missing_reward(self, scores, parts):
    return scores


def constant(self, means, num_episodes):
    pass


def without_unit(self, means, num_episodes):
    """A step in points, not in standard deviations."""
    for bound in self.bounds:
        missing = -bound.slack(means[f"reward/{bound.name}"]) / 0.3
        step = min(max(missing, -1.0), 1.0) * num_episodes / self.horizon
        self._logs[bound.name] = min(max(self._logs[bound.name] + step, -7.0), 7.0)


def doubled(self, scores, parts):
    return scores + 2 * (Lagrangian.shape(self, scores, parts) - scores)


BUGS = {
    "update": [wrong_step, constant],
    "shape": [missing_reward, doubled],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bug"), [pytest.param(name, bug, id=bug.__name__) for name, bugs in BUGS.items() for bug in bugs]
)
def test_a_bug_ends_somewhere_else(tmp_path, monkeypatch, method, bug):
    monkeypatch.setattr("ppo.loop.Lagrangian", type("Buggy", (Lagrangian,), {method: bug}))
    assert not outcome(tmp_path).passes


@pytest.mark.slow
def test_a_step_in_points_ends_somewhere_else_where_the_unit_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.loop.Lagrangian", type("Buggy", (Lagrangian,), {"update": without_unit}))
    assert not outcome(tmp_path, multiplier=0.4 / 0.03, unit=0.03).passes


@pytest.mark.slow
@pytest.mark.parametrize("only", ["kl", "score"])
def test_score_and_kl_are_divided_alike(tmp_path, monkeypatch, only):
    """Where one of them alone is divided by 1 + the multiplier, the weight of the KL is another one."""
    shape_rewards = ppo.targets.shape_rewards
    loop = constrained_run(tmp_path, 0, multiplier=2.5, training=SHORT)

    def uneven(scores, kl, mask, kl_coef):
        factor = loop.lagrangian.scale
        return shape_rewards(*((scores * factor, kl) if only == "kl" else (scores, kl * factor)), mask, kl_coef)

    monkeypatch.setattr(ppo.targets, "shape_rewards", uneven)
    loop.run()
    assert not loop.outcome().passes


def test_a_multiplier_that_a_resumed_run_forgets_is_seen(tmp_path, monkeypatch):
    """A run of three iterations, and one that goes on from its checkpoint after two: equal to the last bit, and another
    one if the multiplier were not in the checkpoint."""

    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()

    def make():
        return constrained_run(tmp_path, 0, multiplier=2.5, training={"max_steps": 3, "packing": False},
                               rollout={"batch_size": 32, "generation_batch_size": 32})  # fmt: skip

    def resumed_run(forget=False):
        loop = make()
        if forget:
            loop.state._parts = {name: part for name, part in loop.state._parts.items() if name != "lagrangian"}
        loop.state.load(tmp_path / "checkpoint", 1)
        loop.run()
        return loop

    whole = make()
    iterate = whole.iterate

    def saving(prompt_indices):
        if whole.step == 2:
            whole.state.save(tmp_path / "checkpoint")
        return iterate(prompt_indices)

    whole.iterate = saving
    whole.run()
    resumed = resumed_run()
    assert resumed.lagrangian.multiplier("safe") == whole.lagrangian.multiplier("safe")
    for ours, theirs in zip(resumed.models.policy.model.parameters(), whole.models.policy.model.parameters(),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)
    forgetful = resumed_run(forget=True)
    assert forgetful.lagrangian.multiplier("safe") != whole.lagrangian.multiplier("safe")


def test_the_measure_itself():
    """Being the constrained optimum passes; staying, the free optimum and another multiplier do not."""
    start = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    rewards, costs = FIXED.rewards(0).double(), FIXED.rewards(100).double()
    bound = mean(tilted(start, rewards, costs, 0.7, 0.5), costs)
    assert math.isclose(exact_multiplier(start, rewards, costs, bound, 0.5), 0.7, rel_tol=1e-9)

    def measured(end, multiplier=0.7):
        return measure_constrained(start, end, rewards, costs, bound, 0.5, multiplier)

    best = measured(tilted(start, rewards, costs, 0.7, 0.5))
    assert best == pytest.approx((1.0, 0.0, 0.0, 1.0), abs=1e-6) and best.passes
    assert measured(start).gap == pytest.approx(0.0) and not measured(start).passes
    assert not measured(tilted(start, rewards, costs, 0.0, 0.5)).passes
    assert not measured(tilted(start, rewards, costs, 0.7, 0.5), multiplier=0.8).passes
    assert not ConstrainedOutcome(1.0, 0.0, 0.09, 1.0).passes
