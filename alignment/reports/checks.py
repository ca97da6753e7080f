"""The checks of each stage's runs: name, purpose and requirements.

This table is the source for the terminal, the report, W&B and docs/reference/checks.md. It has no thresholds: a stage
journals a finding when it occurs (`Journal.finding`). A check is named after its goal, so that the name reads well
beside `pass`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MEMBER = re.compile(r"(member-\d+) (.*)")


@dataclass(frozen=True)
class Check:
    """One check of a run.

    Args:
        key: name in the journal (`watching`, `finding`, `cleared`).
        name: name for people.
        about: the property that is checked, and why it matters.
        needs: required data, as a noun phrase; empty if every run has it.
        evidence: metrics that the journal has if the check was made; `x/*` means any metric of that family.
        values: minimum number of steps with these metrics.
        important: a run without this measurement is not `pass`.
        at_end: decided at the end of the run; a run that ended early is not measured.
    """

    key: str
    name: str
    about: str
    needs: str = ""
    evidence: tuple[str, ...] = ()
    values: int = 1
    important: bool = False
    at_end: bool = False


END, FINITE = "end", "finite"
COMMON = (
    Check(END, "run finished", "How the run ended, according to RUN/exit.json."),
    Check(
        FINITE,
        "numbers finite",
        "Whether a metric was NaN or infinite. Training has usually diverged where one was.",
    ),
)
_DATA = (
    Check(
        "set aside",
        "rows usable",
        "Rows that could not be read or used. They are missing from training, and often have one cause.",
    ),
    Check(
        "data check",
        "data clean",
        "Duplicates, contradictions, held-out prompts that are in training too, personal data, broken turns. A model "
        "learns such faults, and repeated prompts make its held-out metrics too good.",
    ),
)
_TWO_EVALUATIONS = "held-out rows and two evaluations or more (training.eval_strategy)"
SFT = (
    *COMMON,
    *_DATA,
    Check(
        "overfitting",
        "no overfitting",
        "Whether the held-out loss rose while the training loss fell. The model then memorises its rows.",
        _TWO_EVALUATIONS,
        ("eval/loss",),
        3,  # including the one before the first step
        important=True,
    ),
)
_RATED = "held-out ratings (data.eval or data.eval_share)"
_DECIDED = "held-out votes that prefer one of two answers"
_REPORT = ("eval/length_baseline",)
REWARD = (
    *COMMON,
    *_DATA,
    Check(
        "labels",
        "labels sound",
        "Agreement of labelers, and their biases: the side that they choose, haste, gold items. A reward model learns "
        "biases as if they were preferences.",
        "votes that name their labelers",
    ),
    Check(
        "overfitting",
        "no overfitting",
        "Whether the held-out loss rose while the training loss fell. The model then memorises its rows.",
        _TWO_EVALUATIONS,
        ("eval/loss",),
        2,
    ),
    Check("nothing held out", "ratings held out", "Whether ratings were held out from training to evaluate the model."),
    Check(
        "all ties",
        "votes decide",
        "Whether a held-out vote prefers one answer. Ties alone cannot show which model is right.",
        "held-out pairs",
        _REPORT,
    ),
    Check(
        "few prompts",
        "enough prompts held out",
        "The number of prompts behind the accuracy. With few, its interval is wide.",
        _DECIDED,
        _REPORT,
    ),
    Check(
        "no overlap",
        "agreement of people known",
        "Whether held-out pairs have votes of two people. Only those measure human agreement.",
        "held-out pairs that two people voted on",
        ("eval/one_human",),
    ),
    Check(
        "worse than chance",
        "labels the right way round",
        "Whether the accuracy lies clearly below 50%. Labels are then usually swapped somewhere.",
        _DECIDED,
        _REPORT,
        important=True,
    ),
    Check(
        "chance",
        "better than guessing",
        "Whether the interval of the accuracy lies above 50%. Otherwise nothing shows that the model learned anything.",
        _DECIDED,
        _REPORT,
        important=True,
    ),
    Check(
        "suspicious",
        "accuracy believable",
        "Whether the accuracy is above 80% although human agreement is unknown; it is usually 63 to 77% of pairs.",
        _DECIDED,
        _REPORT,
    ),
    Check(
        "above reachable",
        "within what these votes allow",
        "Whether the accuracy is above the best reachable one on these votes. That is often a leak.",
        "held-out pairs of 20 prompts that two people decided",
        ("eval/best_reachable",),
    ),
    Check(
        "length rule",
        "better than a length rule",
        "Whether the model beats 'longer is better' (or 'shorter'). Otherwise it may have learned only length.",
        _DECIDED,
        _REPORT,
    ),
    Check(
        "length correlation",
        "score not tied to length",
        "Whether score differences correlate with length differences. PPO would then learn length.",
        "held-out pairs whose scores and lengths differ",
        _REPORT,
    ),
    Check(
        "ties",
        "unsure where people tie",
        "Whether score differences are smaller if most people call it a tie. If not, the model is overconfident there.",
        "20 held-out pairs that most people call a tie, and others",
        _REPORT,
    ),
    Check(
        "near duplicates",
        "like answers score alike",
        "Whether answers that share most of their words get scores as far apart as others do. Then small changes of "
        "the text move the score too much.",
        "20 held-out pairs of nearly equal answers, and others",
        _REPORT,
    ),
    Check(
        "calibration",
        "probabilities calibrated",
        "Whether predicted probabilities match the votes (ECE). Overconfident margins make PPO chase noise.",
        "held-out pairs",
        ("eval/ece",),
    ),
    Check(
        "log loss",
        "better log-loss than guessing",
        "Whether the held-out log-loss is below that of predicting 50% for every pair. Above it, score differences are "
        "too large for their accuracy.",
        "held-out pairs",
        ("eval/log_loss",),
    ),
    Check(
        "eos unread",
        "end of an answer read",
        "Whether the score changes without the end token. A model that ignores it cannot teach the policy to end.",
        "held-out pairs with answers that end",
        ("eval/log_loss",),
    ),
    Check(
        "eos rise",
        "finished answers score no lower",
        "Whether answers score higher without the end token. PPO would gain by never ending.",
        "held-out pairs with answers that end",
        ("eval/log_loss",),
    ),
)
_PROMPTS = "held-out prompts (data.eval or data.eval_share)"
PPO = (
    *COMMON,
    *_DATA,
    Check(
        "stopped",
        "no error stopped training",
        "Whether training stopped on an error: it diverged, or a reward was not finite.",
        "one iteration",
        ("rollout/score",),
    ),
    Check(
        "better than the start",
        "better than the start",
        "Whether the published policy's answers to held-out prompts win against those of the initial policy, and by "
        "which judge. This is the purpose of the run.",
        f"{_PROMPTS}, and a run that is done",
        ("eval/win_rate",),
        important=True,
        at_end=True,
    ),
    Check(
        "over-optimisation",
        "held-out judge agrees",
        "Whether a reward model that training never saw scores the answers higher too. The training reward "
        "can be hacked, and it cannot show that itself.",
        f"a second reward model (model.held_out_reward), {_PROMPTS} and two evaluations",
        ("eval/score", "eval/held_out_score"),
        2,
        important=True,
    ),
    Check(
        "component fell",
        "no part of the reward fell",
        "Each part of the reward (the reward model, a function, a service) on held-out prompts. The sum can rise while "
        "a part that you want falls.",
        f"{_PROMPTS} and two evaluations",
        ("eval/score", "eval/reward/*"),
        2,
    ),
    Check(
        "constraint",
        "bounds kept",
        "Whether the means of constrained parts of the reward (rewards.constraints) are within their bounds on "
        "held-out prompts.",
        f"rewards.constraints and {_PROMPTS}",
        ("slack/*", "eval/reward/*"),
        important=True,
    ),
    Check(
        "gain from ending",
        "gain in what answers say",
        "Whether your own reward rose, or only what an answer without an end, or a long one, costs. A policy can gain "
        "by answering in a few words.",
        f"{_PROMPTS} and two evaluations",
        ("eval/score", "eval/raw_score"),
        2,
        important=True,
    ),
    Check(
        "negative KL",
        "samples drawn from the policy",
        "Whether the KL from the reference is negative, which no KL can be. The answers then come from another "
        "distribution than the one that is trained.",
        "three iterations",
        ("rollout/kl",),
        3,
    ),
    Check(
        "exploding KL",
        "KL in bounds",
        "How far the policy has moved from the reference. Far from it, a learned reward means little.",
        "one iteration",
        ("rollout/kl",),
    ),
    Check(
        "entropy collapse",
        "answers still vary",
        "Whether the entropy fell to a tenth of its initial value. The policy then gives one answer only.",
        "one iteration",
        ("policy/entropy",),
    ),
    Check(
        "truncation",
        "answers end in time",
        "The fraction of answers that rollout.max_new_tokens truncates. They are scored incomplete.",
        "one iteration",
        ("rollout/ended",),
    ),
    Check(
        "critic",
        "critic predicts the reward",
        "Whether the critic predicts the observed rewards (returns with lambda 1) better than their mean does. "
        "Otherwise advantages are noise.",
        "a critic (ppo.advantage_estimator=gae) and 13 iterations",
        ("value/explained_variance",),
        13,
    ),
    Check(
        "length drift",
        "length steady",
        "Whether answers grew or shrank by half. Unwanted drift is the most common sign of a hacked reward.",
        "two iterations",
        ("rollout/length",),
        2,
    ),
    Check(
        "length sought",
        "score not tied to length",
        "Whether longer answers score higher within a rollout. The reward may favour length.",
        "three iterations in which lengths and scores differ",
        ("rollout/length_correlation",),
        3,
    ),
    Check(
        "sampler gap",
        "sampled by the trained policy",
        "How far the log-probabilities of vLLM's samples are from the policy's, right after it received the "
        "weights. More than rounding means old or missing weights; far more stops the run.",
        "rollout.vllm and one iteration",
        ("rollout/sampler_gap_mean",),
    ),
)
STAGES: dict[str, tuple[Check, ...]] = {"sft": SFT, "reward": REWARD, "ppo": PPO}


def find(stage: str, key: str) -> Check | None:
    """A check by its name in the journal, including `member-2 overfitting`; None if it is not declared."""
    member, plain = match.groups() if (match := _MEMBER.fullmatch(key)) else ("", key)
    for check in STAGES.get(stage, ()):
        if check.key == plain:
            if not member:
                return check
            evidence = tuple(f"{member}/{name}" for name in check.evidence)
            return Check(key, f"{check.name} ({member})", check.about, check.needs, evidence, check.values)
    return None


def docs_tables() -> Iterator[str]:
    """The tables of docs/reference/checks.md."""
    titles = {"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}
    yield from _table("Every stage", COMMON)
    for stage, checks in STAGES.items():
        yield from _table(titles[stage], tuple(check for check in checks if check not in COMMON))


def _table(title: str, checks: tuple[Check, ...]) -> Iterator[str]:
    yield from (
        f"**{title}**",
        "",
        "| check | in the journal | what it looks at, and why | needs |",
        "|---|---|---|---|",
    )
    for check in checks:
        name = f"**{check.name}**" if check.important else check.name
        yield f"| {name} | `{check.key}` | {check.about} | {check.needs} |"
    yield ""
