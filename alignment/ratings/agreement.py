"""How far labelers agree, and how good each one is. numpy alone, no model.

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
    from alignment.data.formats import Choice

Label = Hashable
Ballot = Mapping[str, Label]
Level = Literal["nominal", "ordinal", "interval"]
Floats = NDArray[np.float64]

FULL_TRUST = 20
"""Overlapping votes from which a labeler's reliability is their own; below, it is drawn toward everybody's mean."""
TOLD_APART = 100
"""Overlapping votes from which an ordinary labeler is told apart from a coin with certainty."""
COIN = 2.5
"""Standard errors by which a coin hardly ever agrees with the others more than half of the time (0.6% of coins)."""


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


class Reliability(NamedTuple):
    """What is known of each labeler from the pairs that others decided too; ties are left out."""

    accuracy: dict[str, float]
    """Probability that a decided vote of theirs is for the better answer; nan where no two saw the same pair."""
    overlaps: dict[str, int]
    """Decided votes that this rests on."""
    weights: dict[str, float]
    """Training weight of their votes; the mean over labelers is 1."""


def reliability(ballots: Sequence[Mapping[str, Choice]]) -> Reliability:
    """How much each labeler's votes are worth, from their decided votes alone.

    A tie says that the answers are alike, which is neither right nor wrong, so ties count neither for nor against
    anybody. Of two answers a labeler who is right with probability a (`dawid_skene`) votes as one who knows the better
    one with probability 2a - 1 and otherwise tosses a coin. That probability is the weight: 0 at chance or below.
    Log-odds would weigh best in one pair's ballot (Nitzan and Paroush 1982), but grow without bound as a nears 1, so
    that one consistent labeler would drown out the others in training.

    An estimate of 2a - 1 is rarely exactly 0 for a coin. So it is multiplied by max(0, 1 - (COIN / z)^2), where z is by
    how many standard errors of a coin the labeler agrees with the verdict of the others. Labelers with fewer than
    `TOLD_APART` overlaps have that only in part. Where nobody is better than chance, or nothing overlaps, all weigh 1.
    """
    decided: list[Ballot] = [{who: choice for who, choice in row.items() if choice != "tie"} for row in ballots]
    coin = dawid_skene(decided)
    names = sorted({who for ballot in ballots for who in ballot})
    overlaps = {name: coin.overlaps.get(name, 0) for name in names}
    votes = sum(overlaps.values())
    if not votes or coin.num_labels < 2:
        return Reliability(
            {name: coin.accuracy.get(name, math.nan) for name in names}, overlaps, dict.fromkeys(names, 1.0)
        )
    mean = math.fsum(a * coin.overlaps[name] for name, a in coin.accuracy.items()) / votes
    accuracy = {name: coin.accuracy.get(name, mean) for name in names}  # who only says tie is like the others
    lead = _lead_over_a_coin(decided, coin)
    known = {}
    for name in names:
        z = max(lead.get(name, 0.0), 0.0)
        shown = max(0.0, 1 - (COIN / z) ** 2) if z else 0.0
        part = min(1.0, overlaps[name] / TOLD_APART)
        known[name] = max(0.0, 2 * accuracy[name] - 1) * (part * shown + 1 - part)
    average = math.fsum(known.values()) / len(known)
    weights = {name: weight / average if average > 0 else 1.0 for name, weight in known.items()}
    return Reliability(accuracy, overlaps, weights)


def _lead_over_a_coin(decided: Sequence[Ballot], coin: OneCoin) -> dict[str, float]:
    """By how many standard errors each labeler agrees with the others more than a coin does.

    The others' votes are weighed by their log-odds, and the labeler's own vote is left out: it would agree with itself.
    """
    agreed: Counter[str] = Counter()
    judged: Counter[str] = Counter()
    for ballot in decided:
        sides = {
            who: math.log(a / (1 - a)) * (1 if choice == "first" else -1)
            for who, choice in ballot.items()
            if 0 < (a := coin.accuracy[who]) < 1
        }
        total = math.fsum(sides.values()) if len(ballot) >= 2 else 0.0
        for who, choice in ballot.items():
            rest = total - sides.get(who, 0.0)
            if len(ballot) >= 2 and abs(rest) > 1e-9:
                judged[who] += 1
                agreed[who] += (rest > 0) == (choice == "first")
    return {who: (2 * agreed[who] - n) / math.sqrt(n) for who, n in judged.items()}
