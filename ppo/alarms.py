"""Alarms in words: what goes wrong in PPO, how it shows, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.tracking.journal import Level
from ppo.config import PPOStageConfig

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
"""Rise of a score over evaluations that counts as one, as a share of its size, or of 1 where that is more."""
FOLLOWS = 0.1
"""A held-out score that rises by less counts as rising too, if it is by so much of what the reward rises by."""

WATCHED: dict[str, Level] = {
    "negative KL": "error",
    "exploding KL": "error",
    "entropy collapse": "error",
    "truncation": "warning",
    "critic": "warning",
    "length drift": "warning",
    "length sought": "warning",
    "over-optimisation": "error",
}
"""What is watched, and how bad it is."""


@dataclass(frozen=True)
class Alarm:
    """Something that began; `text` is None where it has ended."""

    name: str
    text: str | None

    @property
    def level(self) -> Level:
        return WATCHED[self.name]


class Alarms:
    """Each speaks when what it watches begins, again when that has ended, and not in between."""

    def __init__(self, config: PPOStageConfig) -> None:
        self._kl_target = config.ppo.kl_target
        self._start: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._raised: list[str] = []
        self._best_scores: list[float] | None = None
        """Reward and held-out score of the evaluation since which the held-out score has not risen."""

    def begin(self, evaluation: Mapping[str, float] | None) -> None:
        """Take the evaluation before the first iteration, from which both scores are to rise."""
        if evaluation is not None:
            self._proxy(evaluation)

    def check(
        self, step: int, stats: Mapping[str, float], evaluation: Mapping[str, float] | None = None
    ) -> list[Alarm]:
        """What has begun or ended with an iteration.

        Args:
            stats: of the iteration, by their names in the journal.
            evaluation: on held-out prompts, if there was one.
        """
        for name in ("policy/entropy", "rollout/length"):
            self._start.setdefault(name, stats[name])
        found = {
            "negative KL": self._negative_kl(stats),
            "exploding KL": self._exploding_kl(stats),
            "entropy collapse": self._entropy(stats),
            "truncation": self._truncation(stats),
            "critic": self._critic(step, stats),
            "length drift": self._length(stats),
            "length sought": self._length_sought(stats),
        }
        if evaluation is not None:
            found["over-optimisation"] = self._proxy(evaluation)
        alarms = []
        for name, text in found.items():
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
            "trained (filtered sampling, another temperature, a stale engine); look at rollout.top_k and top_p"
        )

    def _exploding_kl(self, stats: Mapping[str, float]) -> str | None:
        kl = stats["rollout/kl"]
        limit = EXPLODED_KL if self._kl_target is None else OVER_TARGET * self._kl_target
        if kl <= limit:
            return None
        return (
            f"{kl:.1f} nats a response from the reference (alarm at {limit:.0f}): the policy has left what the reward "
            "model was trained on; raise ppo.kl_coef, set ppo.kl_target, or lower training.learning_rate"
        )

    def _entropy(self, stats: Mapping[str, float]) -> str | None:
        entropy, start = stats["policy/entropy"], self._start["policy/entropy"]
        if entropy >= COLLAPSED_ENTROPY * start:
            return None
        return (
            f"{entropy:.3f} nats a token, {entropy / start:.0%} of the start's: the policy says one thing only and "
            "learns no more; raise ppo.kl_coef or ppo.entropy_coef, or lower training.learning_rate"
        )

    def _truncation(self, stats: Mapping[str, float]) -> str | None:
        cut = 1 - stats["rollout/ended"]
        if cut <= TRUNCATED:
            return None
        return (
            f"{cut:.0%} of the responses reach rollout.max_new_tokens without an end, and the reward model judges half "
            "an answer; raise rollout.max_new_tokens, or rewards.overlong_buffer"
        )

    def _critic(self, step: int, stats: Mapping[str, float]) -> str | None:
        explained = stats.get("value/explained_variance")
        wrong = explained is not None and step > UNEXPLAINED_FROM and explained < 0
        if not self._in_a_row("critic", wrong):
            return None
        return (
            f"it explains {explained:.2f} of the returns' variance, less than their mean would: advantages are noise; "
            "raise training.value_learning_rate, or set ppo.value_warmup_steps"
        )

    def _length(self, stats: Mapping[str, float]) -> str | None:
        length, start = stats["rollout/length"], self._start["rollout/length"]
        if abs(length - start) <= DRIFT * start:
            return None
        kind = "longer" if length > start else "shorter"
        return (
            f"responses of {length:.0f} tokens, {start:.0f} at the start: a reward model that likes {kind} answers is "
            "being exploited, or the task calls for it; read samples.jsonl, and the reward model's report"
        )

    def _length_sought(self, stats: Mapping[str, float]) -> str | None:
        correlation = stats.get("rollout/length_correlation")
        if not self._in_a_row("length sought", correlation is not None and correlation > LENGTH_SOUGHT):
            return None
        return (
            f"length and score correlate by {correlation:.2f}: the reward may be for length; see the length baseline "
            "in the reward model's report, or set rewards.overlong_buffer"
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
        return (
            f"since the best evaluation the reward rose by {rise:.2f} on held-out prompts and the held-out reward "
            f"model's by {held_out:.2f}: the "
            "policy learns what only its own reward model likes; stop here (training.early_stopping_patience), raise "
            "ppo.kl_coef, or use an ensemble (model.reward_ensemble=min)"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "counts": self._counts, "raised": self._raised, "best": self._best_scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start, self._counts = dict(state["start"]), dict(state["counts"])
        self._raised, self._best_scores = list(state["raised"]), state["best"]
