"""Inter-annotator agreement and the reliability of each labeler, in numpy.

A `Ballot` maps the labelers of one item to their labels; a labeler who did not see the item is not in it. Labels of one
set of ballots have one type: choices ("first", "second", "tie"), or numbers if their order matters (ranks, scores). A
statistic that cannot be computed (no item was seen by two people, or there is one label only) is None, not 0 or 1.
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
    from alignment.data.formats import Choice

Label = Hashable
Ballot = Mapping[str, Label]
Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]

FULL_TRUST = 20
"""Overlapping votes below which a labeler's reliability is shrunk toward the mean of all labelers."""
CERTAIN_OVERLAPS = 100
"""Overlapping votes that distinguish an ordinary labeler from a coin with certainty."""
COIN_Z = 2.5
"""z-score that only 0.6% of coins exceed in their agreement with the other labelers."""


class Kappa(NamedTuple):
    """A chance-corrected agreement and its number of items."""

    value: float
    n: int


# --- agreement -----------------------------------------------------------------------------------------------------


def cohen_kappa(ballots: Sequence[Ballot], one: str, other: str) -> Kappa | None:
    """Agreement of two labelers on their common items, corrected for chance agreement.

    (p_o - p_e) / (1 - p_e), with p_e from each labeler's label frequencies. Cohen 1960, Educational and Psychological
    Measurement 20(1). None if they share no item, or if both always use the same label.
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
    """`cohen_kappa` of each pair of labelers that has one, by their sorted names."""
    shared: dict[tuple[str, str], list[Ballot]] = {}
    for ballot in ballots:
        for pair in combinations(sorted(ballot), 2):
            shared.setdefault(pair, []).append(ballot)
    kappas = {pair: cohen_kappa(shared[pair], *pair) for pair in sorted(shared)}
    return {pair: kappa for pair, kappa in kappas.items() if kappa is not None}


def fleiss_kappa(ballots: Sequence[Ballot]) -> Kappa | None:
    """Agreement of m labelers, who may differ between items, on items with exactly m labels.

    Fleiss 1971, Psychological Bulletin 76(5). m is the number of labels, 2 or more, that most items have (the larger of
    equally common ones); other items are ignored. Krippendorff's alpha uses all items.
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

    Krippendorff, Content Analysis (2nd ed. 2004), chapter 11. The squared distance of two different labels is 1
    (nominal), their squared difference (interval), or the squared number of labels given between them, with half of
    those at both ends (ordinal). Items with one label are left out.
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

    `n` counts the items that two or more labelers saw. Resamples in which all labels are equal have no alpha and are
    left out. None if the ballots have no alpha.
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
    """(units, labels, labels): the coincidence matrix of each group of items."""
    labels: list[Any]
    n: int


def _coincidences(ballots: Sequence[Ballot], groups: Sequence[Hashable] | None = None) -> _Coincidences | None:
    seen = {label for ballot in ballots if len(ballot) >= 2 for label in ballot.values()}
    if not seen:
        return None
    labels: list[Any] = sorted(seen, key=lambda label: (isinstance(label, str), label))
    place = {label: position for position, label in enumerate(labels)}
    keys = range(len(ballots)) if groups is None else groups
    used = [(key, ballot) for key, ballot in zip(keys, ballots, strict=True) if len(ballot) >= 2]
    index = {key: position for position, key in enumerate(dict.fromkeys(key for key, _ in used))}
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
    """Fraction of items on which three labelers agree; `n` counts the items that three or more saw.

    An item that more than three saw counts with the fraction of its trios that agree. The 95% interval resamples groups
    (prompts) of items: the pairs of one ranking are not independent.
    """
    fractions: list[float] = []
    keys: list[Hashable] = []
    for index, ballot in enumerate(ballots):
        if len(ballot) >= 3:
            same = sum(math.comb(count, 3) for count in Counter(ballot.values()).values())
            fractions.append(same / math.comb(len(ballot), 3))
            keys.append(index if groups is None else groups[index])
    return bootstrap_mean(fractions, keys) if fractions else None


# --- fractions ------------------------------------------------------------------------------------------------------


def binomial_test(successes: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided p-value: the probability, under a success rate of p, of an outcome that is no
    more probable than the observed one (the method of small p-values, as R's binom.test)."""
    assert 0 <= successes <= n, (successes, n)
    assert 0 < p < 1, p
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    logs = log_factorials[n] - log_factorials - log_factorials[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    # The tolerance treats outcomes that differ only by rounding as equally probable.
    return min(1.0, float(np.exp(logs[logs <= logs[successes] + 1e-7]).sum()))


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with its 95% score interval (Wilson 1927, JASA 22), which also holds at 0 and 1. n is 1 or more."""
    assert 0 <= successes <= n, (successes, n)
    assert n > 0, "a proportion needs n >= 1"
    z = 1.959963984540054
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(value=share, ci=(max(0.0, middle - half), min(1.0, middle + half)), n=n)


class Preference(NamedTuple):
    """Fraction of decisions that went one way, with its interval and the p-value under a fair coin."""

    share: Estimate
    p_value: float


def preference(decisions: Iterable[bool]) -> Preference | None:
    """Test decisions against a fair coin; None without a decision.

    For position bias, a decision is whether the answer shown first was chosen. For length preference, it is whether the
    longer answer was chosen.
    """
    outcomes = list(decisions)
    if not outcomes:
        return None
    return Preference(wilson(sum(outcomes), len(outcomes)), binomial_test(sum(outcomes), len(outcomes)))


# --- labelers ------------------------------------------------------------------------------------------------------


class OneCoin(NamedTuple):
    """The estimates of `dawid_skene`."""

    accuracy: dict[str, float]
    """Per labeler: the probability that their label is the true one; nan if no two saw the same item."""
    overlaps: dict[str, int]
    """Per labeler: the number of votes on items that others saw too, from which the accuracy is estimated."""
    truth: list[dict[Label, float]]
    """Per ballot: the probability that each label is the true one; empty if fewer than two saw the item."""
    num_labels: int


def dawid_skene(ballots: Sequence[Ballot], max_steps: int = 500, tolerance: float = 1e-9) -> OneCoin:
    """Estimate each labeler's accuracy without ground truth: the one-coin model, fitted by EM.

    Dawid and Skene 1979, Applied Statistics 28(1), with one parameter a labeler instead of a confusion matrix, which a
    few dozen overlaps cannot support: the label is right with probability a, otherwise uniform over the other labels.
    The true label of an item is latent, with a prior that is estimated. EM starts from the vote fractions.

    A labeler with fewer than `FULL_TRUST` overlaps gets average pseudo-votes up to that number, so that a few
    lucky votes do not make an accuracy of 1; without any overlap, the accuracy is the mean. Accuracies stay 1 / (n + 2)
    away from 0 and 1 (Laplace's rule), with n the larger of overlaps and FULL_TRUST. Two labelers alone are not
    distinguishable.
    """
    labels = sorted(
        {label for ballot in ballots for label in ballot.values()}, key=lambda label: (str(type(label)), label)
    )
    labelers = sorted({labeler for ballot in ballots for labeler in ballot})
    overlapping = [index for index, ballot in enumerate(ballots) if len(ballot) >= 2]
    row = {index: position for position, index in enumerate(overlapping)}
    label_of = {label: position for position, label in enumerate(labels)}
    labeler_of = {labeler: position for position, labeler in enumerate(labelers)}
    votes = np.array(
        [(row[i], labeler_of[labeler], label_of[given]) for i in overlapping for labeler, given in ballots[i].items()],
        dtype=np.int64,
    ).reshape(-1, 3)
    rows, voters, given = votes.T
    overlaps = np.bincount(voters, minlength=len(labelers))
    trust = np.maximum(overlaps, FULL_TRUST)

    posterior = np.zeros((len(overlapping), len(labels)))
    np.add.at(posterior, (rows, given), 1.0)
    posterior /= posterior.sum(1, keepdims=True)
    accuracy = np.full(len(labelers), 1.0 if len(overlapping) else np.nan)
    for _ in range(max_steps if len(overlapping) and len(labels) > 1 else 0):
        previous = accuracy
        right = np.bincount(voters, posterior[rows, given], len(labelers))
        mean = right.sum() / len(votes)
        accuracy = (right + (trust - overlaps) * mean) / trust
        accuracy = np.clip(accuracy, 1 / (trust + 2), 1 - 1 / (trust + 2))
        prior = (posterior.sum(0) + 1) / (len(overlapping) + len(labels))
        # Likelihood of a vote: a if the true label is the given one, else (1 - a) / (number of labels - 1).
        wrong = np.log((1 - accuracy) / (len(labels) - 1))
        logs = (
            np.tile(np.log(prior), (len(overlapping), 1)) + np.bincount(rows, wrong[voters], len(overlapping))[:, None]
        )
        np.add.at(logs, (rows, given), np.log(accuracy[voters]) - wrong[voters])
        posterior = np.exp(logs - logs.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        if np.abs(accuracy - previous).max() < tolerance:
            break
    truth: list[dict[Label, float]] = [{} for _ in ballots]
    for index, position in row.items():
        truth[index] = dict(zip(labels, posterior[position].tolist(), strict=True))
    return OneCoin(
        dict(zip(labelers, accuracy.tolist(), strict=True)),
        dict(zip(labelers, overlaps.tolist(), strict=True)),
        truth,
        len(labels),
    )


class Reliability(NamedTuple):
    """Reliability of each labeler, from the pairs that others decided too; ties are left out."""

    accuracy: dict[str, float]
    """Probability that their decided vote is for the better answer; nan if no two saw the same pair."""
    overlaps: dict[str, int]
    """Number of decided votes behind the estimate."""
    weights: dict[str, float]
    """Training weight of their votes; the mean over labelers is 1."""


def reliability(ballots: Sequence[Mapping[str, Choice]]) -> Reliability:
    """Estimate the training weight of each labeler's votes from their decided votes.

    A tie is neither right nor wrong, so ties are ignored. A labeler who is right with probability a (`dawid_skene`)
    votes like one who knows the better answer with probability 2a - 1 and otherwise tosses a coin. That probability is
    the weight: 0 at chance or below. Log-odds are optimal for one pair's ballot (Nitzan and Paroush 1982), but grow
    without bound as a nears 1, so one consistent labeler would dominate training.

    The estimate of 2a - 1 is rarely exactly 0 for a coin. So it is multiplied by max(0, 1 - (COIN_Z / z)^2), where z is
    the z-score of the labeler's agreement with the verdict of the others. The factor is phased in up to
    `CERTAIN_OVERLAPS` overlaps. If nobody is better than chance, or nothing overlaps, all weights are 1.
    """
    decided: list[Ballot] = [{name: choice for name, choice in row.items() if choice != "tie"} for row in ballots]
    coin = dawid_skene(decided)
    names = sorted({name for ballot in ballots for name in ballot})
    overlaps = {name: coin.overlaps.get(name, 0) for name in names}
    votes = sum(overlaps.values())
    if not votes or coin.num_labels < 2:
        return Reliability(
            {name: coin.accuracy.get(name, math.nan) for name in names}, overlaps, dict.fromkeys(names, 1.0)
        )
    mean = math.fsum(a * coin.overlaps[name] for name, a in coin.accuracy.items()) / votes
    accuracy = {name: coin.accuracy.get(name, mean) for name in names}  # a labeler with ties only gets the mean
    z_scores = _agreement_z_scores(decided, coin)
    raw_weights = {}
    for name in names:
        z = max(z_scores.get(name, 0.0), 0.0)
        factor = max(0.0, 1 - (COIN_Z / z) ** 2) if z else 0.0
        certainty = min(1.0, overlaps[name] / CERTAIN_OVERLAPS)
        raw_weights[name] = max(0.0, 2 * accuracy[name] - 1) * (certainty * factor + 1 - certainty)
    average = math.fsum(raw_weights.values()) / len(raw_weights)
    weights = {name: weight / average if average > 0 else 1.0 for name, weight in raw_weights.items()}
    return Reliability(accuracy, overlaps, weights)


def _agreement_z_scores(decided: Sequence[Ballot], coin: OneCoin) -> dict[str, float]:
    """The z-score of each labeler's agreement with the others, under the hypothesis of a coin.

    The others' votes are weighted by their log-odds; the labeler's own vote is left out.
    """
    agreed: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    for ballot in decided:
        log_odds = {
            labeler: math.log(a / (1 - a)) * (1 if choice == "first" else -1)
            for labeler, choice in ballot.items()
            if 0 < (a := coin.accuracy[labeler]) < 1
        }
        total = math.fsum(log_odds.values()) if len(ballot) >= 2 else 0.0
        for labeler, choice in ballot.items():
            others = total - log_odds.get(labeler, 0.0)
            if len(ballot) >= 2 and abs(others) > 1e-9:
                compared[labeler] += 1
                agreed[labeler] += (others > 0) == (choice == "first")
    return {labeler: (2 * agreed[labeler] - n) / math.sqrt(n) for labeler, n in compared.items()}
