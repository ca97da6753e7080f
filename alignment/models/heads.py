"""One score of a reward model with several: a head, or a weighted sum of them, as its name says.

`help-desk-reward#facts` is the head `facts`; `help-desk-reward#facts=1,manners=0.5` is the sum with these weights, as
PPO's `model.reward_weights` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignment.errors import ModelError, did_you_mean
from alignment.models.scalar import ScalarModel, collapse


def take_head(scalar: ScalarModel, asked: str, label: str) -> ScalarModel:
    """The model with one score in place of its heads, changed in place.

    Args:
        asked: what stands behind the `#`.
        label: how the model is called in errors.

    Raises:
        ModelError: it has one score, or other heads; or these are no weights.
    """
    if not scalar.heads:
        raise ModelError(f"{label}: a reward model with one score, and no head {asked!a}; leave #{asked} out")
    return collapse(scalar, _weights(asked, scalar.heads, label))


def _weights(asked: str, heads: Sequence[str], label: str) -> list[float]:
    """The weight of each head."""
    parts = [[asked, "1"]] if asked in heads else [part.split("=") for part in asked.split(",")]
    weights: dict[str, float] = {}
    for name, *given in parts:
        if name not in heads:
            raise ModelError(
                f"{label}#{asked}: there is no head {name!a}; it has {', '.join(heads)}" + did_you_mean(name, heads)
            )
        try:
            (text,) = given
            weights[name] = float(text)
        except ValueError:
            weights[name] = math.nan
        if not math.isfinite(weights[name]):
            raise ModelError(f"{label}#{asked}: expected a head, or weights as {'=1,'.join(heads)}=1")
    return [weights.get(name, 0.0) for name in heads]
