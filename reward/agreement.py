"""How far labelers agree, how good each one is, and how well a model could do on their votes. numpy alone, no model.

A `Ballot` is what was said of one item: labeler -> label; a labeler who did not see it is not in it. Labels of one set
of ballots are of one kind: choices ("first", "second", "tie"), or numbers where their order counts (ranks, scores).
Every figure that cannot be computed (no item that two people saw, one label only) is None, never a made-up 0 or 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignment.intervals import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from alignment.data import Choice

Label = Hashable
Ballot = Mapping[str, Label]
Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]

FULL_TRUST = 20
"""Overlapping votes from which a labeler's reliability is their own; below, it is drawn toward everybody's mean."""


class Kappa(NamedTuple):
    """A chance-corrected agreement and the number of items behind it."""

    value: float
    n: int


# --- agreement -----------------------------------------------------------------------------------------------------


def cohen_kappa(ballots: Sequence[Ballot], one: str, other: str) -> Kappa | None:
    """Agreement of two labelers on the items that both saw, against what their own habits would give by chance.

    (p_o - p_e) / (1 - p_e), p_e from each one's own shares of the labels. Cohen 1960, Educational and Psychological
    Measurement 20(1). None where they share no item or both use one and the same label throughout.
    """
    both = [(ballot[one], ballot[other]) for ballot in ballots if one in ballot and other in ballot]
    if not both:
        return None
    n = len(both)
    ones, others = Counter(a for a, _ in both), Counter(b for _, b in both)
    observed = sum(a == b for a, b in both) / n
    expected = sum(ones[label] * others[label] for label in ones) / n**2
    return Kappa((observed - expected) / (1 - expected), n) if expected < 1 else None


def cohen_kappas(ballots: Sequence[Ballot]) -> dict[tuple[str, str], Kappa]:
    """`cohen_kappa` of each two labelers that have one, by their names in sorted order."""
    shared: dict[tuple[str, str], list[Ballot]] = {}
    for ballot in ballots:
        for pair in combinations(sorted(ballot), 2):
            shared.setdefault(pair, []).append(ballot)
    kappas = {pair: cohen_kappa(shared[pair], *pair) for pair in sorted(shared)}
    return {pair: kappa for pair, kappa in kappas.items() if kappa is not None}


def fleiss_kappa(ballots: Sequence[Ballot]) -> Kappa | None:
    """Agreement of m labelers, not always the same ones, where each item has exactly m labels.

    Fleiss 1971, Psychological Bulletin 76(5). m is the number of labels, 2 or more, that most items have (the larger of
    equally common ones); other items do not count, and Krippendorff's alpha is the figure that uses them all.
    """
    sizes = Counter(len(ballot) for ballot in ballots if len(ballot) >= 2)
    if not sizes:
        return None
    m = max(sizes, key=lambda size: (sizes[size], size))
    counts = [Counter(ballot.values()) for ballot in ballots if len(ballot) == m]
    total = sum(counts, Counter())
    observed = sum(sum(c * (c - 1) for c in count.values()) for count in counts) / (len(counts) * m * (m - 1))
    expected = sum((c / (len(counts) * m)) ** 2 for c in total.values())
    return Kappa((observed - expected) / (1 - expected), len(counts)) if expected < 1 else None


def krippendorff_alpha(ballots: Sequence[Ballot], level: Level = "nominal") -> float | None:
    """1 - observed / expected disagreement, for any number of labelers and missing labels.

    Krippendorff, Content Analysis (2nd ed. 2004), chapter 11. The squared distance of two labels is 1 where they differ
    (nominal), their difference squared (interval), or the number of labels given from one to the other, half of both
    ends' counted, squared (ordinal). Items with one label have nothing to compare and are left out.
    """
    table = _coincidences(ballots)
    return None if table is None else _alpha(table.units.sum(0), table.labels, level)


def alpha_estimate(
    ballots: Sequence[Ballot],
    level: Level = "nominal",
    groups: Sequence[Hashable] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """`krippendorff_alpha` with a 95% percentile interval, resampling whole groups (prompts) of items.

    `n` counts the items that two or more labelers saw. Resamples in which all labels are the same have no alpha and are
    left out; None where there is no alpha at all.
    """
    table = _coincidences(ballots, groups)
    value = None if table is None else _alpha(table.units.sum(0), table.labels, level)
    if table is None or value is None:
        return None
    rng = np.random.default_rng(seed)
    num_units, size, _ = table.units.shape
    flat = table.units.reshape(num_units, -1)
    values = []
    for _ in range(num_resamples):
        draw = np.bincount(rng.integers(num_units, size=num_units), minlength=num_units)
        alpha = _alpha((draw @ flat).reshape(size, size), table.labels, level)
        if alpha is not None:
            values.append(alpha)
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(value=value, ci=(float(low), float(high)), n=table.n)


class _Coincidences(NamedTuple):
    units: Floats
    """(units, labels, labels): per group of items, how often two of its labels met, each item weighing as many as its
    labels."""
    labels: list[Any]
    n: int


def _coincidences(ballots: Sequence[Ballot], groups: Sequence[Hashable] | None = None) -> _Coincidences | None:
    seen = {label for ballot in ballots if len(ballot) >= 2 for label in ballot.values()}
    if not seen:
        return None
    labels: list[Any] = sorted(seen, key=lambda label: (isinstance(label, str), label))
    place = {label: number for number, label in enumerate(labels)}
    keys = range(len(ballots)) if groups is None else groups
    used = [(key, ballot) for key, ballot in zip(keys, ballots, strict=True) if len(ballot) >= 2]
    index = {key: number for number, key in enumerate(dict.fromkeys(key for key, _ in used))}
    units = np.zeros((len(index), len(labels), len(labels)))
    for key, ballot in used:
        counts = np.zeros(len(labels))
        for label in ballot.values():
            counts[place[label]] += 1
        units[index[key]] += (np.outer(counts, counts) - np.diag(counts)) / (len(ballot) - 1)
    return _Coincidences(units, labels, len(used))


def _alpha(coincidences: Floats, labels: Sequence[Any], level: Level) -> float | None:
    marginals = coincidences.sum(0)
    if level == "nominal":
        distance = 1 - np.eye(len(labels))
    elif level == "ordinal":
        middle = np.cumsum(marginals) - marginals / 2
        distance = (middle[:, None] - middle) ** 2
    else:
        numbers = np.array(labels, dtype=np.float64)
        distance = (numbers[:, None] - numbers) ** 2
    expected = float((np.outer(marginals, marginals) * distance).sum()) / (marginals.sum() - 1)
    return 1 - float((coincidences * distance).sum()) / expected if expected > 0 else None


def three_way_agreement(ballots: Sequence[Ballot], groups: Sequence[Hashable] | None = None) -> Estimate | None:
    """Share of items on which three labelers all say the same; `n` counts the items that three or more saw.

    Of an item that more than three saw, the share of its trios that do. The 95% interval resamples whole groups
    (prompts) of items: the pairs of one ranking are not independent.
    """
    shares: list[float] = []
    keys: list[Hashable] = []
    for number, ballot in enumerate(ballots):
        if len(ballot) >= 3:
            same = sum(math.comb(count, 3) for count in Counter(ballot.values()).values())
            shares.append(same / math.comb(len(ballot), 3))
            keys.append(number if groups is None else groups[number])
    return bootstrap_mean(shares, keys) if shares else None


# --- shares --------------------------------------------------------------------------------------------------------


def binomial_test(successes: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p-value: the probability, if each of n is a success with probability p, of an outcome that is no
    more probable than the one seen (the method of small p-values: R's binom.test)."""
    assert 0 <= successes <= n, (successes, n)
    assert 0 < p < 1, p
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    logs = log_factorials[n] - log_factorials - log_factorials[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    # The tolerance counts an outcome as no more probable where the two differ by rounding alone.
    return min(1.0, float(np.exp(logs[logs <= logs[successes] + 1e-7]).sum()))


def wilson(successes: int, n: int) -> Estimate:
    """A share with its 95% score interval (Wilson 1927, JASA 22), which is honest for 5 of 5 too. n is 1 or more."""
    assert 0 <= successes <= n, (successes, n)
    assert n > 0, "no share of nothing"
    z = 1.959963984540054
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(value=share, ci=(max(0.0, middle - half), min(1.0, middle + half)), n=n)


class Preference(NamedTuple):
    """Share of decisions that went one way, with its interval and the p-value of a fair coin."""

    share: Estimate
    p_value: float


def preference(decisions: Iterable[bool]) -> Preference | None:
    """How often it was so, against a fair coin; None without a decision.

    Position bias: whether each decided pair went to the answer shown first. Length preference: whether it went to the
    longer one, of answers that differ in length.
    """
    told = list(decisions)
    if not told:
        return None
    return Preference(wilson(sum(told), len(told)), binomial_test(sum(told), len(told)))


# --- labelers ------------------------------------------------------------------------------------------------------


class OneCoin(NamedTuple):
    """What `dawid_skene` found."""

    accuracy: dict[str, float]
    """Per labeler: the probability that their label is the true one; nan where no two saw the same item."""
    overlaps: dict[str, int]
    """Per labeler: their votes on items that somebody else saw too, which is all that their accuracy rests on."""
    truth: list[dict[Label, float]]
    """Per ballot: the probability of each label to be the true one; empty where fewer than two saw it."""
    num_labels: int


def dawid_skene(ballots: Sequence[Ballot], max_steps: int = 500, tolerance: float = 1e-9) -> OneCoin:
    """How often each labeler is right, without knowing what is right: the one-coin model, by EM.

    Dawid and Skene 1979, Applied Statistics 28(1), with one parameter a labeler instead of a confusion matrix (which a
    few dozen overlaps cannot support): right with probability a, else any of the other labels alike. The truth of an
    item is a hidden label with shares of its own. EM begins from the shares of votes.

    A labeler with fewer than `FULL_TRUST` overlaps is filled up to that many with votes of average quality, so that two
    lucky votes make nobody perfect, and one without any overlap has the mean. Nobody is surer than 1 / (n + 2) from 0
    and 1 (Laplace's rule), n being the larger of overlaps and FULL_TRUST. Two labelers alone cannot be told apart.
    """
    labels = sorted(
        {label for ballot in ballots for label in ballot.values()}, key=lambda each: (str(type(each)), each)
    )
    labelers = sorted({labeler for ballot in ballots for labeler in ballot})
    used = [number for number, ballot in enumerate(ballots) if len(ballot) >= 2]
    row = {number: place for place, number in enumerate(used)}
    label_of = {label: place for place, label in enumerate(labels)}
    labeler_of = {labeler: place for place, labeler in enumerate(labelers)}
    votes = np.array(
        [(row[i], labeler_of[who], label_of[said]) for i in used for who, said in ballots[i].items()], dtype=np.int64
    ).reshape(-1, 3)
    items, whose, said = votes.T
    overlaps = np.bincount(whose, minlength=len(labelers))
    trust = np.maximum(overlaps, FULL_TRUST)

    posterior = np.zeros((len(used), len(labels)))
    np.add.at(posterior, (items, said), 1.0)
    posterior /= posterior.sum(1, keepdims=True)
    accuracy = np.full(len(labelers), 1.0 if len(used) else np.nan)
    for _ in range(max_steps if len(used) and len(labels) > 1 else 0):
        before = accuracy
        right = np.bincount(whose, posterior[items, said], len(labelers))
        mean = right.sum() / len(votes)
        accuracy = (right + (trust - overlaps) * mean) / trust
        accuracy = np.clip(accuracy, 1 / (trust + 2), 1 - 1 / (trust + 2))
        shares = (posterior.sum(0) + 1) / (len(used) + len(labels))
        # Of a labeler's vote: a for the label that was said, the rest for each of the others alike.
        wrong = np.log((1 - accuracy) / (len(labels) - 1))
        logs = np.tile(np.log(shares), (len(used), 1)) + np.bincount(items, wrong[whose], len(used))[:, None]
        np.add.at(logs, (items, said), np.log(accuracy[whose]) - wrong[whose])
        posterior = np.exp(logs - logs.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        if np.abs(accuracy - before).max() < tolerance:
            break
    truth: list[dict[Label, float]] = [{} for _ in ballots]
    for number, place in row.items():
        truth[number] = dict(zip(labels, posterior[place].tolist(), strict=True))
    return OneCoin(
        dict(zip(labelers, accuracy.tolist(), strict=True)),
        dict(zip(labelers, overlaps.tolist(), strict=True)),
        truth,
        len(labels),
    )


def reliability(ballots: Sequence[Ballot]) -> dict[str, float]:
    """Training weight of each labeler's votes: `vote_weights` of `dawid_skene`."""
    return vote_weights(dawid_skene(ballots))


def vote_weights(found: OneCoin) -> dict[str, float]:
    """Training weight of each labeler's votes; the mean over labelers is 1.

    With K labels, a labeler who is right with probability a (`dawid_skene`, shrunk) votes as one who knows the answer
    with probability (aK - 1) / (K - 1) and otherwise draws a label blindly. That probability is the share of their
    votes that says something about the answer, and is the weight: 0 at chance or below, in proportion from there.
    Log-odds would weigh best in one item's ballot (Nitzan and Paroush 1982), but grow without bound as a nears 1, so
    that one consistent labeler would drown out the others in training. Where nobody is better than chance, or there is
    one label only or no overlap, all weigh 1.
    """
    if not any(found.overlaps.values()):
        return dict.fromkeys(found.accuracy, 1.0)
    chance = 1 / max(found.num_labels, 2)
    known = {labeler: max(0.0, (a - chance) / (1 - chance)) for labeler, a in found.accuracy.items()}
    mean = math.fsum(known.values()) / len(known) if known else 0.0
    if mean <= 0 or found.num_labels < 2:
        return dict.fromkeys(known, 1.0)
    return {labeler: weight / mean for labeler, weight in known.items()}


# --- the ceiling ---------------------------------------------------------------------------------------------------


class Ceiling(NamedTuple):
    """How often one person agrees with the majority of the others."""

    accuracy: Estimate
    """`n` counts the votes that were judged."""
    model: Estimate | None
    """A model's choices in place of each judged vote, by the same majorities: the figure to hold against `accuracy`."""
    items: int
    """Items behind it: those that at least one vote could be judged on."""
    undecided: int
    """Votes that were not judged, because the others were equally divided or all said tie."""


def human_ceiling(
    votes: Sequence[Sequence[Choice]],
    groups: Sequence[Hashable] | None = None,
    first_is_better: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Ceiling | None:
    """Accuracy of one person's vote against the majority of the other votes on the same item.

    The figure to put beside a reward model's accuracy: it says how well people, with the same answers before them,
    agree with each other.

    Each vote in turn is left out and judged by the rest. Ties: in the rest they count for neither side, and where
    neither side is ahead the vote is not judged (as a model is not judged on a pair that people call a tie); a tie
    judged against a decided rest is worth 1/2, as a model's equal scores are. A vote weighs 1 / (votes on its item), so
    that items count alike. With two votes an item this is plain agreement; a majority needs three.

    Args:
        votes: per item what each labeler chose.
        groups: the prompt of each item; the 95% intervals resample whole prompts.
        first_is_better: what a model says of each item: 1, 0, or 1/2 where it cannot tell.

    Returns:
        None where no vote can be judged.
    """
    values: list[float] = []
    model: list[float] = []
    keys: list[Hashable] = []
    weights: list[float] = []
    items = undecided = 0
    for index, item in enumerate(votes):
        lead = item.count("first") - item.count("second")
        judged = 0
        for vote in item if len(item) >= 2 else ():
            mine = {"first": 1, "second": -1, "tie": 0}[vote]
            rest = lead - mine
            if rest == 0:
                undecided += 1
                continue
            judged += 1
            values.append(0.5 if mine == 0 else float(mine * rest > 0))
            if first_is_better is not None:
                model.append(first_is_better[index] if rest > 0 else 1 - first_is_better[index])
            keys.append(index if groups is None else groups[index])
            weights.append(1 / len(item))
        items += bool(judged)
    if not values:
        return None
    return Ceiling(
        accuracy=bootstrap_mean(values, keys, weights, seed=seed),
        model=bootstrap_mean(model, keys, weights, seed=seed) if model else None,
        items=items,
        undecided=undecided,
    )
