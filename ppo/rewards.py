from typing import Any

Source = Any


def load_sources(c):
    return []


def weighted(parts, weights):
    return sum(parts[k] * w for k, w in weights.items())
