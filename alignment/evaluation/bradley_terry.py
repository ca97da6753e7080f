"""Strengths of two and more sides from pairwise outcomes: Bradley-Terry with ties, and intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.evaluation.clusters import effective_prompts, prompt_draws, prompt_index, t_quantile
from alignment.intervals import Estimate

Floats = NDArray[np.float64]

RIDGE = 0.05
"""Keeps an unbeaten side finite; a twentieth of one outcome's weight. Without votes a strength has deviation 4.5."""
NUM_RESAMPLES = 1000


def bradley_terry(
    pairs: Sequence[tuple[str, str, float]], prompts: Sequence[Hashable], *, seed: int = 0
) -> dict[str, Estimate]:
    """Log-strength of each side with its 95% interval over prompts; their mean is 0. `n` counts a side's outcomes.

    P(a beats b) is `win_probability(strength a, strength b)`; times 174 a log-strength is in Elo points. A tie is half
    a win of each (Bradley & Terry 1952, Biometrika 39; fitted by Newton's method with a small ridge). An
    interval is Student's quantile times the bootstrap's standard error over prompts. Resamples say nothing where some
    sides never lost to the others or never met them (`separated`): there intervals hold the likelihood's as well, which
    are wide.

    Args:
        pairs: (a, b, outcome of a): 1 win, 1/2 tie, 0 loss.
        prompts: the prompt of each pair; all its pairs are drawn together.

    Returns:
        From the strongest to the weakest; {} without pairs.
    """
    assert len(pairs) == len(prompts), "one prompt for each pair"
    if not pairs:
        return {}
    sides = list(dict.fromkeys(name for a, b, _ in pairs for name in (a, b)))
    assert all(a != b and 0 <= outcome <= 1 for a, b, outcome in pairs), "two sides and an outcome in [0, 1]"
    index = {name: position for position, name in enumerate(sides)}
    member, num_prompts = prompt_index(prompts)
    wins = np.zeros((num_prompts, len(sides), len(sides)))
    for prompt, (a, b, outcome) in zip(member.tolist(), pairs, strict=True):
        wins[prompt, index[a], index[b]] += outcome
        wins[prompt, index[b], index[a]] += 1 - outcome

    total = wins.sum(0)
    draws = prompt_draws(num_prompts, seed=seed, num_resamples=NUM_RESAMPLES)
    resampled = fit_strengths((draws @ wins.reshape(num_prompts, -1)).reshape(-1, *total.shape))
    values = fit_strengths(total[None])[0]
    effective = effective_prompts(wins.sum((1, 2)))
    t = t_quantile(effective - 1)
    reach = t * resampled.std(0) * math.sqrt(num_prompts / max(num_prompts - 1, 1))
    lows, highs = values - reach, values + reach
    games = wins + wins.transpose(0, 2, 1)
    once = np.divide(wins, games, out=np.zeros_like(wins), where=games > 0).sum(0)
    if separated(once) or bool((reach < 1e-9).any()):
        low, high = _curvature_interval(once, t)
        lows, highs = np.minimum(lows, low), np.maximum(highs, high)
    counts = np.rint(games.sum((0, 1))).astype(int)
    return {
        sides[k]: Estimate(value=float(values[k]), ci=(float(lows[k]), float(highs[k])), n=int(counts[k]))
        for k in sorted(range(len(sides)), key=lambda k: (-values[k], k))
    }


def win_probability(strength_a: float, strength_b: float) -> float:
    """Probability that a side of log-strength a beats one of log-strength b; ties count one half."""
    return 1 / (1 + math.exp(min(strength_b - strength_a, 700.0)))


def separated(wins: Floats) -> bool:
    """Whether some sides never lost to the others, or never met them, so that the likelihood has no maximum.

    Args:
        wins: of row over column, ties one half, (K, K) (Ford 1957, The American Mathematical Monthly 64(8)).
    """
    reach = np.eye(len(wins)) + (wins > 0)
    for _ in range(len(wins)):
        reach = (reach @ reach > 0).astype(np.float64)
    return not bool((reach > 0).all())


def unlinked(pairs: Sequence[tuple[str, str, float]]) -> list[list[str]]:
    """Groups of sides that no votes link, if there are two or more; strengths of different groups say nothing."""
    sides = list(dict.fromkeys(name for a, b, _ in pairs for name in (a, b)))
    groups = {name: {name} for name in sides}
    for a, b, _ in pairs:
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            groups.update(dict.fromkeys(groups[a], groups[a]))
    parts = {id(group): [name for name in sides if name in group] for group in groups.values()}
    return list(parts.values()) if len(parts) > 1 else []


def fit_strengths(wins: Floats, ridge: float = RIDGE) -> Floats:
    """Log-strengths with mean 0 of the highest penalised likelihood, a fit for each matrix: (R, K, K) -> (R, K)."""
    games = wins + wins.transpose(0, 2, 1)
    won = wins.sum(-1)
    strengths = np.zeros(won.shape)
    for _ in range(60):
        p = 1 / (1 + np.exp(strengths[:, None, :] - strengths[:, :, None]))
        gradient = won - (games * p).sum(-1) - ridge * strengths
        step = np.linalg.solve(_hessian(games, p, ridge), gradient[..., None])[..., 0]
        # A full Newton step can overshoot where one side wins nearly all; a bounded one cannot.
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-12))
        strengths += step
        if np.abs(step).max() < 1e-8:
            break
    return strengths - strengths.mean(-1, keepdims=True)


def _hessian(games: Floats, p: Floats, ridge: float) -> Floats:
    weights = games * p * (1 - p)
    eye = np.eye(games.shape[-1])
    return eye * (weights.sum(-1)[..., None] + ridge) - weights


def _curvature_interval(wins: Floats, t: float) -> tuple[Floats, Floats]:
    """Wald intervals of the penalised likelihood where resamples say nothing: lower and upper ends, (K,) each.

    A strength that votes do not bound grows as the ridge shrinks. Its outer end is that of the small ridge; its inner
    end is that of a ridge of about half an outcome, as Jeffreys' prior. Sides that never met keep the small ridge.
    """
    games = wins + wins.T
    centred = np.eye(len(wins)) - 1 / len(wins)
    fits = []
    for ridge in (RIDGE, RIDGE if separated(games) else 10 * RIDGE):
        strengths = fit_strengths(wins[None], ridge)[0]
        p = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
        covariance = centred @ np.linalg.inv(_hessian(games, p, ridge)) @ centred
        fits.append((strengths, t * np.sqrt(np.diag(covariance))))
    (outer, outer_reach), (inner, inner_reach) = fits
    low = np.where(outer < inner - 1e-9, outer - outer_reach, inner - inner_reach)
    return low, np.where(outer > inner + 1e-9, outer + outer_reach, inner + inner_reach)
