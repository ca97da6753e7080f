"""Find near duplicates among millions of texts from a sketch of 128 bytes each; the texts themselves are not kept.

A text is the set of its runs of five characters, case and spaces folded. Its sketch holds, for each of 128 hash
functions, eight bits of the minimum hash over that set (b-bit MinHash: Broder 1997, Li and Koenig 2010), so
the fraction of equal bytes in two sketches estimates the Jaccard similarity of the sets, to about 0.035 at 0.8. Pairs
worth comparing share a band of eight bytes (locality-sensitive hashing, 16 bands): a pair of similarity 0.8 is found
with probability 0.95, one of 0.9 with 0.9999, and unrelated texts hardly ever meet.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
HASHES = 128
BAND = 8
THRESHOLD = 0.8
"""Minimum estimated similarity of near duplicates: about one word in ten is changed."""
MAX_SKETCHES = 1_000_000
WINDOW = 256
"""Number of following texts that each text is compared with, in a band that many texts share."""

_CHUNK = 200  # shingles hashed at a time, so that the arrays fit in the CPU cache
_PAIRS = 1 << 16
_HASH_WEIGHTS = np.random.default_rng(2010).integers(0, 2**63, HASHES // BAND, dtype=np.uint64) * 2 + 1
# Odd multipliers modulo 2**32 (multiply-shift hashing), drawn once from a fixed seed: sketches are reproducible.
_MULTIPLIERS = np.random.default_rng(1997).integers(0, 2**31, (HASHES, 1), dtype=np.uint32) * 2 + 1


def folded(text: str) -> str:
    """The text with case and runs of white space normalized."""
    return " ".join(text.casefold().split())


def digest(text: str) -> int:
    """A 64-bit hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shingles(text: str) -> NDArray[np.uint32]:
    """Hashes of a text's runs of five characters, in order; a shorter text is one run."""
    codes = np.frombuffer(folded(text).ljust(SHINGLE, "\0").encode("utf-32-le", "surrogatepass"), np.uint32).astype(
        np.uint64
    )
    count = len(codes) - SHINGLE + 1
    mixed = np.zeros(count, np.uint64)
    for offset in range(SHINGLE):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finalizer
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def sketch(text: str) -> NDArray[np.uint8]:
    """The sketch of a text, (128,)."""
    hashes = shingles(text)
    minima = np.full(HASHES, 2**32 - 1, np.uint32)
    for start in range(0, len(hashes), _CHUNK):
        np.minimum(minima, (_MULTIPLIERS * hashes[start : start + _CHUNK]).min(axis=1), out=minima)
    # The low bits of a product depend only on the low bits of its factor, so all bits are mixed first. Otherwise one
    # pair in 256 of very short texts would agree everywhere.
    minima = (minima ^ (minima >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    return ((minima ^ (minima >> np.uint32(13))) * np.uint32(0xC2B2AE35) >> np.uint32(24)).astype(np.uint8)


class Sketches:
    """Sketches of a stream of texts in 128 bytes each; those after the first `limit` texts are not kept."""

    def __init__(self, limit: int = MAX_SKETCHES) -> None:
        self._bytes = bytearray()
        self._limit = limit
        self.num_seen = 0

    def add(self, text: str) -> None:
        if self.num_seen < self._limit:
            self._bytes += sketch(text).tobytes()
        self.num_seen += 1

    @property
    def num_unseen(self) -> int:
        """Number of texts after the limit."""
        return max(0, self.num_seen - self._limit)

    def labels(self, threshold: float = THRESHOLD) -> NDArray[np.int64]:
        """The index of the first text in each text's group of near duplicates, (N,); its own index if it has none."""
        kept = np.frombuffer(self._bytes, np.uint8).reshape(-1, HASHES)
        labels = np.arange(self.num_seen)
        labels[: len(kept)] = near_duplicates(kept, threshold)
        return labels


def near_duplicates(sketches: NDArray[np.uint8], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """Group sketches, (N, 128), that share a band and agree in `threshold` of their bytes, transitively.

    Returns:
        The smallest index in each sketch's group, (N,).
    """
    bands = np.ascontiguousarray(sketches).view(np.uint64)
    # Equal sketches are merged first. Otherwise the copies of one text would fill the window and hide its neighbours.
    hashes = bands @ _HASH_WEIGHTS  # hashes: sorting the sketches themselves would double the memory
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    groups = Groups(len(first))
    for band in bands.T:
        _join_band(groups, sketches, first, band[first], int(np.ceil(threshold * HASHES)))
    labels = groups.labels()
    smallest = np.full(len(first), len(sketches))
    np.minimum.at(smallest, labels, first)
    return smallest[labels][inverse.reshape(-1)]


def _join_band(
    groups: Groups, sketches: NDArray[np.uint8], rows: NDArray[np.int64], keys: NDArray[np.generic], needed: int
) -> None:
    """Compare the sketches in `rows` that share a key: first neighbours, then those two positions apart, and so on."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    labels = groups.labels()
    first = np.arange(len(order))
    for distance in range(1, WINDOW):
        first = first[first + distance < len(order)]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        left, right = order[first], order[first + distance]
        separate = labels[left] != labels[right]
        left, right = left[separate], right[separate]
        joined = False
        for start in range(0, len(left), _PAIRS):
            first_rows, second_rows = left[start : start + _PAIRS], right[start : start + _PAIRS]
            alike = (sketches[rows[first_rows]] == sketches[rows[second_rows]]).sum(axis=1) >= needed
            for one, other in zip(first_rows[alike].tolist(), second_rows[alike].tolist(), strict=True):
                groups.join(one, other)
                joined = True
        if joined:
            labels = groups.labels()


class Groups:
    """A disjoint-set forest (union-find) of the numbers 0..N-1; a group's label is its smallest number."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def find(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = one = int(parent[parent[one]])
        return one

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def join_equal(self, keys: NDArray[np.generic]) -> None:
        """Join all numbers whose keys, (N,), are equal."""
        _, inverse = np.unique(keys, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        same = np.flatnonzero(inverse[order][1:] == inverse[order][:-1])
        for left, right in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            self.join(left, right)

    def labels(self) -> NDArray[np.int64]:
        """The label of each number's group, (N,)."""
        while True:
            shorter = self._parent[self._parent]
            if np.array_equal(shorter, self._parent):
                return self._parent.copy()
            self._parent = shorter
