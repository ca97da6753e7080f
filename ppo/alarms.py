"""Alarms in words: what goes wrong in PPO, how it shows, and what helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.reports.judges import judge_of, reward_parts
from alignment.runs.journal import Level
from ppo.algorithm import IMPORTANCE_CAP
from ppo.config import PPOStageConfig
from ppo.sampler_gap import LIMITS, way_out

NEGATIVE_KL = -0.1
"""Nats per response: the mean of k1 over a batch scatters around a KL that is never negative."""
IN_A_ROW = 3
"""Iterations that a figure that scatters must be wrong for."""
EXPLODED_KL = 50.0
"""Nats per response. Gao et al. 2022 see the gold score fall long before, at 10 to 30."""
OVER_TARGET = 5.0
"""Times `ppo.kl_target`."""
COLLAPSED_ENTROPY = 0.1
"""Share of the entropy that the run began with."""
TRUNCATED = 0.2
UNEXPLAINED_FROM = 10
"""Iterations that a critic has to begin to explain returns."""
DRIFT = 0.5
"""Change of the mean length, as a share of the length at the start."""
LENGTH_SOUGHT = 0.5
"""Correlation of length and score over a rollout."""
FLAT = 0.02
"""Change of a score over evaluations that counts as one, as a share of its size, or of 1 where that is more."""
FOLLOWS = 0.1
"""A held-out score that rises by less counts as rising too, if it is by so much of what the reward rises by."""
NOISE = 2.58
"""Standard errors of a difference of two evaluations beyond which it is no accident (99%)."""
HARDLY = 1.0
"""Standard errors of a difference that are no rise to speak of."""
SMALL = 0.05
"""Share of a part's size by which it must have fallen to matter, however sure the fall is."""
ENDS_MORE = 0.01
"""Rise of the share of answers that end, from which a gain may come from ending."""

WATCHED: dict[str, Level] = {
    "negative KL": "error",
    "exploding KL": "error",
    "entropy collapse": "error",
    "truncation": "warning",
    "critic": "warning",
    "length drift": "warning",
    "length sought": "warning",
    "sampler gap": "warning",
    "over-optimisation": "error",
    "component fell": "warning",
    "constraint": "error",
    "gain from ending": "error",
}
"""The alarms, and how bad each is. `alignment/reports/checks.py` has their names for people."""


def watched(config: PPOStageConfig) -> list[str]:
    """The alarms that a run can have."""
    never = {"sampler gap"} if config.rollout.vllm is None or config.rollout.lag else set()
    never |= set() if config.rewards.constraints else {"constraint"}
    return [name for name in WATCHED if name not in never]


@dataclass(frozen=True)
class Alarm:
    """Something that began; `text` is None where it has ended."""

    name: str
    text: str | None

    @property
    def level(self) -> Level:
        return WATCHED[self.name]


class Alarms:
    """Checks each iteration for what goes wrong; an alarm is given once when it begins, and once when it has ended."""

    def __init__(self, config: PPOStageConfig) -> None:
        self._kl_target = config.ppo.kl_target
        values = config.model_dump()
        self._weights = {name: weight for name, _, weight in reward_parts(values)}
        """Weight of each part of the score, by its name in the journal."""
        self._bounds = config.rewards.bounds
        self._has_model = config.model.reward is not None
        own = judge_of(values | {"model": {**values["model"], "held_out_reward": None}})
        self._reward = "the reward" if own is None or own.kind == "sum" else f"the {own.kind} {own.name}"
        # With a lag the gap holds the step of an update, which is no fault.
        self._gap_limit = math.inf if config.rollout.lag else LIMITS[config.rounded_to].alarm
        self._gap_way_out = way_out(config)
        self._start: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._raised: list[str] = []
        self._best_scores: list[float] | None = None
        """Reward and held-out score of the evaluation since which the held-out score has not risen."""
        self._first: dict[str, float] | None = None
        """The evaluation before the first iteration."""

    def begin(self, evaluation: Mapping[str, float] | None) -> None:
        """Take the evaluation before the first iteration, from which all scores are to rise."""
        if evaluation is not None:
            self._first = dict(evaluation)
            self._proxy(evaluation)

    def check(
        self, step: int, stats: Mapping[str, float], evaluation: Mapping[str, float] | None = None
    ) -> list[Alarm]:
        """The alarms that begin or end with an iteration.

        Args:
            stats: of the iteration, by their names in the journal.
            evaluation: on held-out prompts, if there was one.
        """
        for name in ("policy/entropy", "rollout/length"):
            self._start.setdefault(name, stats[name])
        texts = {
            "negative KL": self._negative_kl(stats),
            "exploding KL": self._exploding_kl(stats),
            "entropy collapse": self._entropy(stats),
            "truncation": self._truncation(stats),
            "critic": self._critic(step, stats),
            "length drift": self._length(stats),
            "length sought": self._length_sought(stats),
            "sampler gap": self._sampler_gap(stats),
        }
        if evaluation is not None:
            self._first = self._first or dict(evaluation)
            texts["over-optimisation"] = self._proxy(evaluation)
            texts["component fell"] = self._component(self._first, evaluation)
            texts["constraint"] = self._constraint(evaluation)
            texts["gain from ending"] = self._ending(self._first, evaluation)
        alarms = []
        for name, text in texts.items():
            if (text is not None) != (name in self._raised):
                alarms.append(Alarm(name, text))
                (self._raised.append if text is not None else self._raised.remove)(name)
        return alarms

    def _in_a_row(self, name: str, wrong: bool) -> bool:
        self._counts[name] = self._counts.get(name, 0) + 1 if wrong else 0
        return self._counts[name] >= IN_A_ROW

    def _negative_kl(self, stats: Mapping[str, float]) -> str | None:
        kl = stats["rollout/kl"]
        if not self._in_a_row("negative KL", kl < NEGATIVE_KL):
            return None
        return (
            f"{kl:.2f} nats a response, which no KL can be: the responses are not drawn from the policy that is "
            "trained (another temperature, a stale engine); see rollout.vllm and docs/cluster/vllm.md"
        )

    def _exploding_kl(self, stats: Mapping[str, float]) -> str | None:
        kl = stats["rollout/kl"]
        limit = EXPLODED_KL if self._kl_target is None else OVER_TARGET * self._kl_target
        if kl <= limit:
            return None
        far = "what the reward model was trained on" if self._has_model else "what it could say at the start"
        return (
            f"{kl:.1f} nats a response from the reference (alarm at {limit:.0f}): the policy has left {far}; raise "
            "ppo.kl_coef, set ppo.kl_target, or lower training.learning_rate"
        )

    def _entropy(self, stats: Mapping[str, float]) -> str | None:
        entropy, start = stats["policy/entropy"], self._start["policy/entropy"]
        if entropy >= COLLAPSED_ENTROPY * start:
            return None
        return (
            f"{entropy:.3f} nats a token, {entropy / start:.0%} of the start's: the policy says one thing only and "
            "learns no more; raise ppo.kl_coef, or lower training.learning_rate"
        )

    def _truncation(self, stats: Mapping[str, float]) -> str | None:
        cut = 1 - stats["rollout/ended"]
        if cut <= TRUNCATED:
            return None
        return (
            f"{cut:.0%} of the responses reach rollout.max_new_tokens without an end, and {self._reward} judges half "
            "an answer; raise rollout.max_new_tokens or rewards.missing_eos_penalty"
        )

    def _critic(self, step: int, stats: Mapping[str, float]) -> str | None:
        explained = stats.get("value/explained_variance")
        wrong = explained is not None and step > UNEXPLAINED_FROM and explained < 0
        if not self._in_a_row("critic", wrong):
            return None
        return (
            f"the critic's predictions are worse than a constant: it explains {explained:.2f} of the variance of the "
            "rewards that came, and their mean alone would explain 0, so advantages are noise; raise "
            "training.value_learning_rate, or set ppo.value_pretrain=rollouts"
        )

    def _length(self, stats: Mapping[str, float]) -> str | None:
        length, start = stats["rollout/length"], self._start["rollout/length"]
        if abs(length - start) <= DRIFT * start:
            return None
        kind = "longer" if length > start else "shorter"
        read = "samples.jsonl, and the reward model's report" if self._has_model else "samples.jsonl"
        return (
            f"responses of {length:.0f} tokens, {start:.0f} at the start: either {self._reward} pays for {kind} "
            f"answers and is being exploited, or the task calls for it; read {read}"
        )

    def _length_sought(self, stats: Mapping[str, float]) -> str | None:
        correlation = stats.get("rollout/length_correlation")
        if not self._in_a_row("length sought", correlation is not None and correlation > LENGTH_SOUGHT):
            return None
        see = "see the length baseline in the reward model's report, or " if self._has_model else ""
        return (
            f"length and score correlate by {correlation:.2f}: {self._reward} may pay for length; {see}take "
            "off for length in a reward function (rewards.others)"
        )

    def _sampler_gap(self, stats: Mapping[str, float]) -> str | None:
        gap = stats.get("rollout/sampler_gap_mean", 0.0)
        if gap <= self._gap_limit:
            return None
        return (
            f"vLLM's log-probabilities differ from the policy's by {gap:.2g} nats a token (alarm at "
            f"{self._gap_limit:g}), more than its rounding is known to give; the loss is corrected for it, up to a "
            f"weight of {IMPORTANCE_CAP:g}; {self._gap_way_out}"
        )

    def _proxy(self, evaluation: Mapping[str, float]) -> str | None:
        """The proxy has risen since the evaluation from which on the held-out model's score has not."""
        if "eval/held_out_score" not in evaluation:
            return None
        now = [evaluation["eval/score"], evaluation["eval/held_out_score"]]
        best = self._best_scores = self._best_scores or now
        rise, held_out = (after - before for after, before in zip(now, best, strict=True))
        flat, held_out_flat = (FLAT * max(1.0, abs(before)) for before in best)
        if held_out > (min(held_out_flat, FOLLOWS * rise) if rise > 0 else held_out_flat):
            self._best_scores = now
            return None
        if rise <= flat:
            return None
        ensemble = ", or use an ensemble (model.reward_ensemble=min)" if self._has_model else ""
        return (
            f"since the best evaluation the score rose by {rise:.2f} on held-out prompts and that of the held-out "
            f"reward model by {held_out:.2f}: the policy learns what only {self._reward} likes; stop here "
            f"(training.early_stopping_patience), or raise ppo.kl_coef{ensemble}"
        )

    def _component(self, first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """A part of the reward fell since the start while the score that is maximised rose."""
        if not _rose(first, now, "eval/score"):
            return None
        fell = [name for name, weight in self._weights.items() if _lost(first, now, name, weight)]
        if not fell:
            return None
        changes = ", ".join(f"{self._named(name)} {_change(first, now, f'eval/reward/{name}')}" for name in fell)
        if len(self._weights) == 1:
            why = "what you reward got worse, and the gain comes from ending or from length"
            helps = "look at rewards.missing_eos_penalty and rollout.max_new_tokens"
        else:
            why = "the policy pays for one part with another"
            helps = "change the weights (weight in rewards.others), or set a bound (rewards.constraints)"
        return (
            f"on held-out prompts the score that training maximises rose ({_change(first, now, 'eval/score')}) while a "
            f"part of it got worse: {changes}; {why}; {helps}; read samples.jsonl"
        )

    def _constraint(self, now: Mapping[str, float]) -> str | None:
        """The mean of a constrained component is on the wrong side of its bound, beyond noise."""
        missed = [
            f"{bound.name} is {now[f'eval/reward/{bound.name}']:.2f}, and the bound is {bound.text}"
            for bound in self._bounds
            if bound.slack(now[f"eval/reward/{bound.name}"]) < -NOISE * now[f"eval/reward_se/{bound.name}"]
        ]
        if not missed:
            return None
        return (
            f"on held-out prompts {'; '.join(missed)}; where its multiplier (multiplier/*) still rises, train longer "
            "(training.max_steps); else the bound may be out of reach of this policy at this KL: lower it, or "
            "ppo.kl_coef"
        )

    def _ending(self, first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
        """The score that is maximised rose since the start, and the user's own reward did not."""
        if "eval/raw_score" not in now or "eval/raw_score" not in first:
            return None
        if not _rose(first, now, "eval/score") or _rose(first, now, "eval/raw_score", HARDLY):
            return None
        more = now.get("eval/ended", 0.0) - first.get("eval/ended", 0.0)
        if more <= ENDS_MORE:
            return None
        ends = f"answers that end: {first['eval/ended']:.0%} -> {now['eval/ended']:.0%}"
        cause = f"from ending alone ({ends})"
        finished = "eval/finished_raw_score"
        has_finished = finished in first and finished in now
        of_finished = f", of answers that end {_change(first, now, finished)}" if has_finished else ""
        return (
            f"the gain on held-out prompts comes {cause}: the score that training maximises, with what answers cost "
            f"that do not end, rose ({_change(first, now, 'eval/score')}), and {self._reward} alone did not "
            f"({_change(first, now, 'eval/raw_score')}{of_finished}); raise rollout.max_new_tokens so that answers "
            "fit, or lower what an answer without an end costs (rewards.missing_eos_penalty); read samples.jsonl"
        )

    def _named(self, part: str) -> str:
        return "the reward model" if part == "model" else part

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "counts": self._counts,
            "raised": self._raised,
            "best": self._best_scores,
            "first": self._first,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._counts = dict(state["start"]), dict(state["counts"])
        self._raised, self._best_scores = list(state["raised"]), state["best"]
        self._first = state.get("first")  # older checkpoints have none


def not_better(metrics: Mapping[str, float]) -> tuple[Level, str] | None:
    """How bad it is, and why, where a policy's win rate against the start does not show that it is better.

    Args:
        metrics: of an evaluation, by their names without `eval/`.
    """
    if "win_rate" not in metrics or metrics["win_rate_low"] > 0.5:
        return None
    value, low, high = (100 * metrics[name] for name in ("win_rate", "win_rate_low", "win_rate_high"))
    said = f"{value:.1f}% of the held-out prompts (95%: {low:.1f} to {high:.1f}%)"
    if high < 50:
        return "error", f"the published policy is worse than the start: it wins only {said}; see samples.jsonl"
    return "warning", (
        f"the published policy cannot be told from the start: it wins {said}; train longer (training.max_steps), or "
        "hold out more prompts (data.eval_share)"
    )


def _noise(first: Mapping[str, float], now: Mapping[str, float], name: str, error: str, errors: float = NOISE) -> float:
    """By how much a mean may change by accident: so many standard errors of the difference of both evaluations, which
    are known; without them a small share of its size."""
    if error in first and error in now:
        return errors * math.hypot(first[error], now[error])
    return FLAT * max(1.0, abs(first[name]))


def _rose(first: Mapping[str, float], now: Mapping[str, float], name: str, errors: float = NOISE) -> bool:
    return now[name] - first[name] > _noise(first, now, name, f"{name}_se", errors)


def _lost(first: Mapping[str, float], now: Mapping[str, float], part: str, weight: float) -> bool:
    """A part with a weight got worse, beyond noise and by a share of its size that matters."""
    name = f"eval/reward/{part}"
    if not weight or name not in first or name not in now:
        return False
    loss = math.copysign(1.0, weight) * (first[name] - now[name])
    return loss > max(_noise(first, now, name, f"eval/reward_se/{part}"), SMALL * abs(first[name]))


def _change(first: Mapping[str, float], now: Mapping[str, float], name: str) -> str:
    return f"{first[name]:.2f} -> {now[name]:.2f}"
