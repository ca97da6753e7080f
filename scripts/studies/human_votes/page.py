"""The page of the study, all of whose figures come from the rows."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.intervals import Estimate, bootstrap_mean
from studies.human_votes import analysis
from studies.human_votes.analysis import Contest, Rows, Seed
from studies.human_votes.data import OWN_PROMPTS
from studies.human_votes.sizes import Size
from studies.human_votes.statistics import best_of_n_kl

SHOWN = 3
"""Answers printed of each kind."""


def page(rows: Rows, steps: Sequence[str], name: str, size: Size) -> str:
    """The whole page in Markdown. What has no row is named as missing."""
    seeds = [found for seed in range(size.seeds) if (found := analysis.read_seed(rows, seed, size.counts)) is not None]
    parts = [
        "# A real model and human votes",
        _intro(rows, steps, name, size),
        _votes(rows),
        *(_methods(rows, seeds, size) if seeds else ["## PPO and best-of-n\n\nNot measured yet."]),
        _answers(rows, seeds, size) if seeds else "",
        LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- the setting ---------------------------------------------------------------------------------------------------


def _intro(rows: Rows, steps: Sequence[str], name: str, size: Size) -> str:
    paragraphs = [
        f"""`scripts/study.py real_model --size {name}`. Every figure below is computed from the rows that it left, by
        `--page`; nothing is written in by hand.""",
        """SmolLM2-135M-Instruct learns by LoRA what people chose (SFT); that is the *start*. The votes are pairs of
        HH-harmless (Anthropic's published test file, one vote a pair, not shipped here). A fifth of the prompts is held
        out, the rest is dealt into two halves A and B by prompt, so no prompt and no vote is in both. SFT, the prompts
        of PPO, and the reward model that PPO goes against are of A. Best-of-n chooses by the same reward model of A.
        The judges are reward models that learned from B alone. PPO holds its roles on one frozen base, with the critic
        on the policy's trunk.""",
    ]
    if "data" in rows:
        data = rows["data"]
        pairs, groups, prompts = data["pairs"], data["groups"], data["prompts"]
        most = f", at most {size.pairs} of a part" if size.pairs else ""
        passes = "one pass" if size.epochs == 1 else f"{size.epochs} passes"
        paragraphs.append(
            f"""Of {data["read"]:,} pairs {data["fitting"]:,} fit into {size.max_length} tokens and are used{most}:
            A {pairs["a"]} pairs ({groups["a"]} prompts), B {pairs["b"]} ({groups["b"]}), held out {pairs["test"]}
            ({groups["test"]}). SFT and reward models: {passes}. PPO: {size.iterations} iterations of
            {size.batch_size} answers, {prompts["train"]} prompts. The methods answer {prompts["held_out"]} held-out
            prompts of at most {size.prompt_length} tokens, in at most {size.max_new_tokens} tokens, at temperature
            {size.temperature:g}. PPO's KL coefficient """
            + ("adapts towards the KL of best-of-n." if size.match_kl else "is the recipe's; nothing matches the KLs.")
        )
    if "sft" in rows:
        before, after = rows["sft"]["loss_before"], rows["sft"]["loss_after"]
        paragraphs.append(f"SFT took the loss on the held-out chosen answers from {before:.3f} to {after:.3f} a token.")
    spent = sum(row["seconds"] for row in rows.values()) / 3600
    done = f"{len(rows)} of {len(steps)} steps are done, in {spent:.1f} hours."
    missing = ", ".join(f"`{step}`" for step in steps if step not in rows)
    paragraphs.append(f"{done} **Missing:** {missing}." if missing else done)
    return "\n\n".join(map(_paragraph, paragraphs))


# --- reward models -------------------------------------------------------------------------------------------------


def _votes(rows: Rows) -> str:
    halves = {half: analysis.reward_rows(rows, half) for half in "ab"}
    title = "## What reward models learn from the votes"
    if not any(halves.values()):
        return f"{title}\n\nNot measured yet."
    lines = [
        "| votes of | seed | accuracy | length rule | ahead | log-loss | scores with length |",
        "|---|---|---|---|---|---|---|",
    ]
    for half, models in halves.items():
        lines += [f"| {half.upper()} | {row['seed']} |{_reward_cells(row)}" for row in models]
    several = rows.get("several")
    if several:
        lines.append(f"| several people on each pair | 0 |{_reward_cells(several)}")
    said = """Accuracy on held-out prompts, the same for A and B; 95% intervals over prompts. *Length rule* is the
    better of "longer" and "shorter" on the same votes, chosen on them; *ahead* is the model's lead over it in points.
    Chance has a log-loss of 0.693. *Scores with length*: rank correlation of the differences."""
    if "data" in rows:
        longer = rows["data"]["longer"]
        said += f""" People chose the longer answer in {_share(longer["a"])} of A's votes, {_share(longer["b"])} of B's
        and {_share(longer["test"])} of those held out, lengths in characters."""
    return "\n\n".join([title, _paragraph(said), "\n".join(lines), _agreement(halves), _reachable(several)])


def _reward_cells(row: Mapping[str, Any]) -> str:
    length = row["length"]
    baseline = length["baseline"]
    if baseline and length["rule"] == "shorter":
        low, high = baseline["ci"]
        baseline = {**baseline, "value": 1 - baseline["value"], "ci": (1 - high, 1 - low)}
    rule = f"{length['rule']}, {_share(baseline)}"
    correlation = length["correlation"]
    return (
        f" {_share(row['accuracy'])} | {rule} | {_points(length['ahead'])} | {_number(row['log_loss'], 3)} | "
        f"{_number(correlation)} |"
    )


def _agreement(halves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    a, b = halves["a"], halves["b"]
    return _paragraph(
        f"""Each pair of HH has one vote, so how far people agree, and what share a model can reach, **cannot be known
        from it**. What can be known is how far models agree that share no vote. On the held-out pairs two of A agree in
        {_share(analysis.alike(a))}, two of B in {_share(analysis.alike(b))}, one of A and one of B in
        {_share(analysis.alike(a, b))}. The mean of A's models agrees with {_share(analysis.mean_vote(a))} of the votes,
        the mean of B's with {_share(analysis.mean_vote(b))}."""
    )


def _reachable(several: Mapping[str, Any] | None) -> str:
    if not several or not several["shared"]:
        return "A set with several votes on each pair has not been run, so no reachable share is known of any."
    shared = several["shared"]
    return _paragraph(
        f"""Where several people voted on each pair (PandaLM, {several["prompts"]} held-out prompts) one of them agrees
        with another's vote in {_share(shared["one_human"])}, the best possible model in {_share(shared["best"])}, and
        the reward model in {_share(shared["model"])}. That says nothing of how far people agree on HH."""
    )


# --- methods -------------------------------------------------------------------------------------------------------


def _methods(rows: Rows, seeds: Sequence[Seed], size: Size) -> list[str]:
    best = [str(n) for n in size.counts]
    against = {method: analysis.contest(seeds, method, "start") for method in ("ppo", *best)}
    kl = bootstrap_mean(np.concatenate([seed.kl for seed in seeds]), [p for s in seeds for p in range(s.prompts)])
    nearest = min(best, key=lambda n: abs(best_of_n_kl(int(n)) - kl["value"]))
    head = {n: analysis.contest(seeds, "ppo", n) for n in dict.fromkeys((nearest, best[-1]))}
    return [
        _against_start(seeds, against, kl),
        _head_to_head(head, nearest, kl, len(seeds)),
        _carried_over(seeds, ("ppo", best[-1])),
        _found(rows, seeds, against, head, best[-1]),
    ]


def _against_start(seeds: Sequence[Seed], against: Mapping[str, Contest], kl: Estimate) -> str:
    judges = ", ".join(f"seed {seed.seed}: {', '.join(seed.judges)}" for seed in seeds)
    said = f"""Each against an answer of the start to the same prompt. The judges ({judges}) prefer the answer whose
    mean score is higher, each judge in its own standard deviations. *Length held equal*: a logistic regression of that
    preference on log(length / length of the start's answer), in tokens, read at equal lengths, as AlpacaEval 2 does in
    spirit; *matched*: the win rate among the pairs whose lengths are within a quarter of each other. *Votes expected*:
    the share of people's votes that the judges' own probabilities come to, worth what their log-loss above is.
    KL from the start in nats per answer: PPO's
    is measured, best-of-n's is log n - (n-1)/n. Each seed has a reward model of A of its own ({len(seeds)} so far);
    intervals are 95% over prompts."""
    lines = [
        "## PPO and best-of-n, judged by the other half of the votes",
        "",
        _paragraph(said),
        "",
        "| method | KL | length | ended | win rate | length held equal | matched | votes expected |",
        "|---|---|---|---|---|---|---|---|",
        f"| start | 0 |{_shape(seeds, 'start')} | | | |",
    ]
    for method, found in against.items():
        name, distance = ("PPO", _number(kl))
        if method != "ppo":
            name, distance = (f"best of {method}", f"{best_of_n_kl(int(method)):.2f}")
        close = "too few pairs"
        if found.matched:
            close = f"{_share(found.matched)}, {found.matched['n']} pairs"
        shares = [_share(found.won), _share(found.controlled), close, _share(found.votes)]
        lines.append(f"| {name} | {distance} |{_shape(seeds, method)} " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _shape(seeds: Sequence[Seed], method: str) -> str:
    length = np.mean(np.concatenate([seed.lengths[method] for seed in seeds]))
    ended = np.mean(np.concatenate([seed.ended[method] for seed in seeds]))
    return f" {length:.1f} | {ended:.0%} |"


def _head_to_head(head: Mapping[str, Contest], nearest: str, kl: Estimate, count: int) -> str:
    lines = [
        "### PPO against best-of-n",
        "",
        _paragraph(
            """The same judges on the two answers to the same prompt. Above one half PPO is ahead. The lead is the
            length-controlled win rate less one half, in points, its mean over seeds with Student's 95% interval."""
        ),
        "",
        "| against | win rate (over prompts) | length held equal (over prompts) | by seed | lead (over seeds) |",
        "|---|---|---|---|---|",
    ]
    for n, found in head.items():
        which = f"best of {n}" + (
            f", nearest in KL ({best_of_n_kl(int(n)):.2f}, PPO {kl['value']:.2f})" if n == nearest else ""
        )
        each = ", ".join(f"{value:.0%}" for value in found.seeds_controlled)
        lead = _points(found.lead) if found.lead else f"unknown: {count} seed"
        lines.append(f"| {which} | {_share(found.won)} | {_share(found.controlled)} | {each} | {lead} |")
    return "\n".join(lines)


def _carried_over(seeds: Sequence[Seed], methods: Sequence[str]) -> str:
    kinds = {
        "own": "the reward model of A that it went against",
        "same": "reward models of the same votes from other seeds",
        "other": "the judges, of B",
    }
    lines = [
        "### How much of the gain other models see",
        "",
        _paragraph(
            """Mean score above the start's, in standard deviations of the model's scores of the start's answers; length
            is not held equal here."""
        ),
        "",
        "| by | " + " | ".join("PPO" if m == "ppo" else f"best of {m}" for m in methods) + " |",
        "|---|" + "---|" * len(methods),
    ]
    for kind, text in kinds.items():
        cells = [analysis.gain_by(seeds, method, kind) for method in methods]
        lines.append(f"| {text} | " + " | ".join(_number(cell) if cell else "missing" for cell in cells) + " |")
    return "\n".join(lines)


# --- what is said of it --------------------------------------------------------------------------------------------


def _found(
    rows: Rows, seeds: Sequence[Seed], against: Mapping[str, Contest], head: Mapping[str, Contest], most: str
) -> str:
    """Sentences that the intervals decide."""
    lines = ["## What it shows", ""]
    judges = [row for name in seeds[0].judges if (row := rows.get(f"reward-{name}")) is not None]
    if (judge := analysis.mean_vote(judges)) is not None:
        worth = {1: "more than chance", 0: "which is not shown to be more than chance", -1: "less than chance"}
        lines.append(
            f"- **The judges** agree with {_share(judge)} of the held-out votes, {worth[_side(judge, 0.5)]}. Whatever "
            "they say of PPO or best-of-n has no more weight than that."
        )
    lines.append(_lengths(rows, seeds, most))
    lines += [_sentence("PPO", against["ppo"]), _sentence(f"Best of {most}", against[most])]
    for n, found in head.items():
        side = _side(found.controlled, 0.5)
        text = {
            1: "To the judges PPO is ahead of",
            0: "No difference is shown between PPO and",
            -1: "To the judges PPO is behind",
        }[side]
        text = f"- {text} **best of {n}** with length held equal ({_share(found.controlled)}, over prompts); "
        if found.lead is None:
            text += "one seed says nothing of others."
        else:
            over = {1: "ahead over seeds too", 0: "over seeds nothing is shown", -1: "behind over seeds too"}
            text += f"{over[_side(found.lead, 0.0)]} ({_points(found.lead)} points)."
        lines.append(text if found.matched else text + FEW)
    return "\n".join(lines)


def _lengths(rows: Rows, seeds: Sequence[Seed], most: str) -> str:
    mean = {m: np.mean(np.concatenate([s.lengths[m] for s in seeds])) for m in ("start", "ppo", most)}
    text = f"- **Length**: the start's answers have {mean['start']:.0f} tokens on average, those of PPO "
    text += f"{mean['ppo']:.0f}, of best of {most} {mean[most]:.0f}."
    against = [row["length"]["correlation"] for s in seeds if (row := rows.get(f"reward-a-{s.seed}"))]
    known = [f"{each['value']:+.2f}" for each in against if each]
    if known:
        text += (
            f" The scores that both went by go with length, rank correlation {', '.join(known)} on people's answers."
        )
    return text


FEW = " Hardly any two answers are of like length, so the figure at equal lengths is extrapolated."


def _sentence(name: str, found: Contest) -> str:
    raw, held = _side(found.won, 0.5), _side(found.controlled, 0.5)
    said = {1: "prefer it to the start", 0: "are not shown to prefer either", -1: "prefer the start"}
    text = f"- **{name}**: the judges {said[raw]} ({_share(found.won)})"
    few = "" if found.matched else FEW
    if raw == held:
        also = "and with length held equal as well" if raw else "nor with length held equal"
        return f"{text}, {also} ({_share(found.controlled)}).{few}"
    return (
        text
        + f"; with length held equal they {said[held]} ({_share(found.controlled)}), so length has a part in it.{few}"
    )


def _side(found: Estimate, middle: float) -> int:
    low, high = found["ci"]
    return 1 if low > middle else -1 if high < middle else 0


LIMITS = """## What it does not show

- That people would prefer these answers. No person read them: the judges are small reward models of a few hundred
  votes, of the same base as everything else, so they can share a mistake with the reward model of A that has nothing
  to do with votes.
- Anything about harm. HH's harmless votes are mostly on provocations; a model can win them by being evasive.
- How far people agree on these pairs, and so what accuracy could be reached.
- That PPO or best-of-n is better in general. There is one model of 135M parameters, one set of votes, one setting of
  each, chosen beforehand and not tuned; best-of-n pays n times the sampling at every answer, PPO once in training.
- Intervals over prompts take the trained models as given. Those over seeds have two degrees of freedom with three
  seeds, and all seeds share the SFT model and the halves. Nothing was corrected for the number of comparisons.
- A win rate at equal lengths is a model's: the regression leans on pairs of unlike lengths too. Beside it stand the
  matched pairs, which are fewer."""


# --- answers -------------------------------------------------------------------------------------------------------


def _answers(rows: Rows, seeds: Sequence[Seed], size: Size) -> str:
    """To the study's own prompts: those where the judges see PPO gain most and lose most."""
    seed = seeds[0]
    told = rows[f"answers-{seed.seed}"]
    own = told["own"]
    gains = np.zeros(own)
    for judge in seed.judges:
        scores = rows[f"score-{seed.seed}-by-{judge}"]["scores"]
        scale = seed.scores[judge]["start"].std() or 1.0
        gains += (np.array(scores["ppo"][-own:]) - np.array(scores["start"][-own:])) / scale / len(seed.judges)
    order = [int(index) for index in np.argsort(-gains)]
    count = min(SHOWN, own // 2)
    lines = [
        "## Answers, good and bad",
        "",
        _paragraph(
            f"""To {own} prompts written for this study (the data's own texts are not shipped), seed {seed.seed}: the
            {count} on which the judges see PPO gain most over the start, and the {count} on which it does worst. Chosen
            by that alone. The gain is in the judges' standard deviations. Some answers are wrong or unkind."""
        ),
    ]
    picks = rows[f"score-{seed.seed}-by-a-{seed.seed}"]["picks"][str(size.n)][-own:]
    for title, some in (("gains most", order[:count]), ("does worst", order[-count:][::-1])):
        lines += ["", f"### PPO {title}", ""]
        for index in some:
            answers = told["shown"][index]
            lines += [
                f"**{OWN_PROMPTS[index]}** ({gains[index]:+.2f})",
                "",
                f"- start: {_quoted(answers['start'][0])}",
                f"- PPO: {_quoted(answers['ppo'][0])}",
                f"- best of {size.n}: {_quoted(answers['pool'][picks[index]])}",
                "",
            ]
        lines.pop()
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """An answer on one line, which Markdown and HTML leave as it is."""
    folded = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", folded) or "(nothing)"


# --- figures -------------------------------------------------------------------------------------------------------


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 140, break_long_words=False, break_on_hyphens=False)


def _share(found: Mapping[str, Any] | None) -> str:
    return "not measured" if found is None else f"{found['value']:.1%} ({found['ci'][0]:.0%} to {found['ci'][1]:.0%})"


def _points(found: Mapping[str, Any] | None) -> str:
    """A difference of shares, in points."""
    if found is None:
        return "not measured"
    return f"{100 * found['value']:+.1f} ({100 * found['ci'][0]:+.0f} to {100 * found['ci'][1]:+.0f})"


def _number(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    if found is None:
        return "not measured"
    return f"{found['value']:.{digits}f} ({found['ci'][0]:.{digits}f} to {found['ci'][1]:.{digits}f})"
