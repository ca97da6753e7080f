"""A version's metrics in words, for cards and pages."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from alignment.registry.lineage import flat_metrics, number

_SENTENCES = {
    "accuracy": "agrees with the labelers' choice in {value} of the held-out comparisons",
    "shared_accuracy": "on pairs that several labelers decided it agrees with {value} of the votes",
    "one_human": "one labeler agrees with {value} of the other labelers' votes on the same pairs",
    "best_reachable": "a model that knew each pair's true probability would agree with {value} of these votes",
    "human_ceiling": "one labeler agrees with the majority of the others in {value}, which is no limit for a model",
    "length_baseline": "taking the longer answer would agree in {value}",
    "ece": "its probabilities are off by {value} on average",
    "eval_win_rate": "its answers beat the starting model's on {value} of the held-out prompts, judged by {judge}",
    "eval_score": "its answers to held-out prompts score {value} on average",
    "start_eval_score": "the starting model's answers scored {value}",
    "eval_kl": "it has moved {value} nats of KL per answer away from its reference",
    "eval_length": "its answers have {value} tokens on average",
    "eval_ended": "{value} of its answers end by themselves",
    "explained_variance": "it explains {value} of the variance of what answers to held-out prompts earn",
    "eval_perplexity": "a perplexity of {value} on held-out rows",
    "eval_loss": "a loss of {value} on held-out rows",
    "start_eval_loss": "the starting model's loss on them was {value}",
}
_SHARES = {
    "accuracy", "shared_accuracy", "one_human", "best_reachable", "human_ceiling", "length_baseline", "ece",
    "eval_win_rate", "eval_ended", "explained_variance",
}  # fmt: skip


def in_words(metrics: Mapping[str, JsonValue]) -> list[str]:
    """The metrics as plain sentences, most important first; intervals are 95% intervals."""
    return [
        sentence.format(value=_formatted(key, *estimate), judge=judge_in(metrics))
        for key, sentence in _SENTENCES.items()
        if (estimate := _value_and_interval(metrics, key)) is not None
    ]


def judge_in(metrics: Mapping[str, JsonValue]) -> str:
    """The judge of the win rate, which `python -m ppo` publishes beside it."""
    judge = metrics.get("judge")
    return judge if isinstance(judge, str) else "a judge that was not recorded"


def headline(metrics: Mapping[str, JsonValue], most: int) -> list[tuple[str, str]]:
    """The most important metrics as name and text: those with an interval, then held-out ones, then the rest."""
    flat = list(flat_metrics(with_intervals(metrics)))
    return sorted(flat, key=lambda pair: ("[" not in pair[1], not pair[0].startswith("eval_")))[:most]


def with_intervals(metrics: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`x`, `x_low` and `x_high` as one metric with an interval."""
    joined: dict[str, JsonValue] = {}
    for key, value in metrics.items():
        stem = key.removesuffix("_low").removesuffix("_high")
        if stem != key and {stem, f"{stem}_low", f"{stem}_high"} <= metrics.keys():
            continue
        ends = [metrics.get(f"{key}_low"), metrics.get(f"{key}_high")]
        joined[key] = {"value": value, "ci": ends} if None not in ends else value
    return joined


def _value_and_interval(metrics: Mapping[str, JsonValue], key: str) -> tuple[float, list[float]] | None:
    metric = with_intervals(metrics).get(key)
    parts: dict[str, JsonValue] = metric if isinstance(metric, dict) else {"value": metric}
    value, ends = parts.get("value"), parts.get("ci")
    if not isinstance(value, int | float):  # a value that is not finite is stored as text
        return None
    interval = [float(end) for end in ends if isinstance(end, int | float)] if isinstance(ends, list) else []
    return float(value), interval if len(interval) == 2 else []


def _formatted(key: str, value: float, ends: list[float]) -> str:
    def spell(x: float) -> str:
        return f"{100 * x:.1f}%" if key in _SHARES else number(x)

    return spell(value) + (f" ({spell(ends[0])} to {spell(ends[1])})" if ends else "")
