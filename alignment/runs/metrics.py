"""Every metric that a stage journals, declared once: its name, unit and meaning.

Dashboards, the report and W&B take names and units from here. Tests (`ALIGNMENT_STRICT_METRICS=1`) refuse an
undeclared name, so every metric that is shown has a documented meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

STRICT = "ALIGNMENT_STRICT_METRICS"
_MEMBER = re.compile(r"member-\d+/")


@dataclass(frozen=True)
class Metric:
    """One journalled metric.

    Args:
        name: as in `metrics.jsonl`; `reward/*` is a family of metrics.
        unit: of the values, "" for a number without one; `share` is a fraction from 0 to 1.
        meaning: a clause that follows the name.
    """

    name: str
    unit: str
    meaning: str

    @property
    def is_clock(self) -> bool:
        """Whether it measures the machine, so that two runs of the same seed differ in it."""
        return self.unit == "s" or self.unit.endswith("/s")


def _metrics(*rows: tuple[str, str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(*row) for row in rows)


_TRAINER = _metrics(
    ("train/loss", "nats", "what was minimised, mean since the last line"),
    ("train/mean_loss", "nats", "the same over the whole run, once at its end"),
    ("train/grad_norm", "", "norm of the whole gradient before clipping"),
    ("train/learning_rate", "", "of the last optimizer step"),
    ("train/epoch", "epochs", "passes over the data so far"),
    ("train/num_tokens", "tokens", "seen so far, on all processes, without padding"),
    ("train/tokens_per_second", "tokens/s", "since the last line, on all processes"),
    ("train/samples_per_second", "samples/s", "of the whole run, once at its end"),
    ("time/train", "s", "of the whole training, once at its end"),
    ("time/eval", "s", "of an evaluation"),
)
SFT = _TRAINER + _metrics(
    ("train/mean_token_accuracy", "share", "response tokens that were the most likely ones"),
    ("train/entropy", "nats/token", "of the predictions"),
    ("train/aux_loss", "", "load balance of a mixture of experts"),
    ("eval/loss", "nats/token", "on held-out rows"),
    ("eval/mean_token_accuracy", "share", "held-out response tokens that were the most likely ones"),
)
REWARD = _TRAINER + _metrics(
    ("train/accuracy", "share", "votes that the scores agree with, ties left out"),
    ("train/mean_reward", "", "score of the completions that were judged"),
    ("eval/loss", "nats/vote", "on held-out questions, as the votes give it"),
    ("eval/accuracy", "share", "held-out votes that the scores agree with, ties left out"),
    ("eval/mean_reward", "", "score of the held-out completions"),
    ("eval/length_baseline", "share", "held-out votes that `longer is better` agrees with"),
    ("eval/shared_accuracy", "share", "the same on pairs that two or more labelers decided"),
    ("eval/one_human", "share", "votes on these pairs that one other labeler agrees with"),
    ("eval/best_reachable", "share", "votes on these pairs that a model which knew each probability would agree with"),
    ("eval/log_loss", "nats/vote", "of the held-out votes"),
    ("eval/ece", "share", "expected calibration error of the probabilities"),
    ("labels/alpha", "", "Krippendorff's alpha of the choices between two answers: 0 by chance, 1 where all agree"),
    ("labels/three_way", "share", "items on which three labelers say the same"),
    ("labels/one_human", "share", "votes that one other labeler of the same pair agrees with"),
    ("labels/best_reachable", "share", "votes that a model which knew each pair's probability would agree with"),
    ("labels/position", "share", "decisions for the answer that was shown first"),
    ("labels/length", "share", "decisions for the longer answer"),
    ("labels/seconds", "s", "median time of an answer"),
    ("labels/answers", "answers", "that are learned from"),
)
PPO = _metrics(
    ("rollout/score", "", "what the reward said, with what long and unfinished responses cost"),
    ("rollout/score_std", "", "its standard deviation over the responses"),
    ("rollout/reward", "", "the score less the KL's part of the reward"),
    ("rollout/kl", "nats/response", "from the reference, k1"),
    ("rollout/kl_coef", "", "weight of the KL"),
    ("rollout/length", "tokens", "of a response, with EOS"),
    ("rollout/length_correlation", "", "between a response's length and its score, Pearson"),
    ("rollout/ended", "share", "responses that end by themselves"),
    ("rollout/without_spread", "share", "prompts whose responses all have one score, of those that were sampled"),
    ("rollout/lag", "updates", "since the weights that sampled, where `rollout.lag` is 1"),
    ("rollout/sampler_gap_mean", "nats/token", "between log-probabilities of the sampler (vLLM, or the policy one "
     "update ago) and of the policy"),
    ("rollout/sampler_gap_max", "nats", "the same at the token where it is largest"),
    ("rollout/importance_capped", "share", "tokens whose weight for this is cut to 2"),
    ("rollout/tokens_per_second", "tokens/s", "sampled, on all processes"),
    ("reward/*", "", "one part of the score: the reward model or a head of it, a function, an ensemble's disagreement "
     "(score_std)"),
    ("multiplier/*", "", "points of the score that a point of a constrained part is worth"),
    ("slack/*", "", "how far the mean of a constrained part is on the right side of its bound"),
    ("policy/entropy", "nats/token", "of the distributions that were sampled from"),
    ("policy/loss", "", "the clipped objective"),
    ("policy/ratio", "", "probability now over at the rollout"),
    ("policy/first_ratio", "", "the same in the first minibatch, where it is 1 by construction"),
    ("policy/approx_kl", "nats/token", "from the policy of the rollout, k3"),
    ("policy/clip_fraction", "share", "tokens whose ratio was clipped"),
    ("policy/kl_loss", "nats/token", "KL as a term of the loss"),
    ("policy/grad_norm", "", "norm of the policy's gradient before clipping"),
    ("value/loss", "", "squared error of the critic, a half"),
    ("value/clip_fraction", "share", "values that were clipped"),
    ("value/explained_variance", "share", "variance of what came after each token that the critic explains"),
    ("value/grad_norm", "", "norm of the critic's gradient before clipping"),
    ("ptx/loss", "nats/token", "on the demonstrations that are mixed in"),
    ("train/grad_norm", "", "norm of the whole gradient before clipping"),
    ("train/epochs", "epochs", "passes over the rollout"),
    ("train/learning_rate", "", "of the policy"),
    ("time/generate", "s", "sampling the responses of an iteration, as far as training waited for it"),
    ("time/score", "s", "scores, log-probabilities and values of an iteration's responses"),
    ("time/rollout", "s", "both together"),
    ("time/optimize", "s", "the optimizer steps of an iteration"),
    ("eval/score", "", "of answers to the held-out prompts, with what long and unfinished ones cost"),
    ("eval/score_se", "", "its standard error over prompts"),
    ("eval/raw_score", "", "of the same answers, without these costs"),
    ("eval/raw_score_se", "", "its standard error over prompts"),
    ("eval/finished_raw_score", "", "of those among them that end by themselves"),
    ("eval/reward/*", "", "one part of the raw score on held-out prompts"),
    ("eval/reward_se/*", "", "its standard error over prompts"),
    ("eval/held_out_score", "", "of the same answers, by the reward model that training never saw"),
    ("eval/best_of_n_score", "", "of the best of n answers of the start, n as large as it was drawn for: PPO's rival"),
    ("eval/best_of_n_held_out_score", "", "of the same answers, by the reward model that training never saw"),
    ("eval/explained_variance", "share", "variance of what held-out answers earn that the critic explains"),
    ("eval/kl", "nats/response", "from the reference, on held-out prompts"),
    ("eval/length", "tokens", "of an answer to a held-out prompt"),
    ("eval/ended", "share", "held-out answers that end by themselves"),
    ("eval/win_rate", "share", "held-out answers better than those of the start, ties one half, by the run's judge"),
    ("eval/win_rate_low", "share", "lower end of its 95% interval over prompts"),
    ("eval/win_rate_high", "share", "upper end of its 95% interval over prompts"),
)  # fmt: skip
HISTOGRAMS: dict[str, tuple[Metric, ...]] = {
    "sft": (),
    "reward": _metrics(
        ("eval/chosen_score", "", "scores of the completions that people preferred"),
        ("eval/rejected_score", "", "scores of the others"),
    ),
    "ppo": _metrics(
        ("eval/score", "", "of the held-out answers"),
        ("eval/kl", "nats/response", "of the held-out answers"),
        ("eval/length", "tokens", "of the held-out answers"),
        ("rollout/advantage", "", "per token, as the loss takes it"),
    ),
}
STAGES: dict[str, tuple[Metric, ...]] = {"sft": SFT, "reward": REWARD, "ppo": PPO}


def plain_name(name: str) -> str:
    """The name of what a reward model's member or head has of its own: `eval/loss` of `member-2/eval/loss`, and
    `eval/accuracy` of `eval/accuracy/helpful`."""
    return "/".join(_MEMBER.sub("", name, count=1).split("/")[:2])


@cache
def find(stage: str, name: str, histogram: bool = False) -> Metric | None:
    """The declaration of a name, or None; `plain_name` finds that of a reward model's members and heads."""
    plain = plain_name(name) if stage == "reward" else name
    for metric in (HISTOGRAMS if histogram else STAGES).get(stage, ()):
        if metric.name == plain or (metric.name.endswith("/*") and plain.startswith(metric.name[:-1])):
            return metric
    return None


def check(stage: str, name: str, histogram: bool = False) -> None:
    """Assert that a name is declared."""
    assert find(stage, name, histogram) is not None, f"{name} of {stage} is not declared in alignment/runs/metrics.py"
