"""Questions with known scores, and how to swap and shuffle them."""

from __future__ import annotations

from dataclasses import replace

from alignment.data.records import Comparison, Vote
from reward.questions import JudgedPair, Question

END = 2
SWAPPED = {"first": "second", "second": "first", "tie": "tie"}


def comparison(prompt="q", choices=("first",), texts=("x", "y"), size=2, place="d.jsonl:1", **fields):
    """Votes are given as choices, or as (choice, strength, labeler)."""
    votes = tuple(Vote(vote) if isinstance(vote, str) else Vote(*vote) for vote in choices)
    return Comparison(({"role": "user", "content": prompt},), *texts, votes, size, place, **fields)


def question(number, rows, lengths=(3, 2), ratings=()):
    """A question of which each row is (first, second, comparison)."""
    ids = [[*range(10, 9 + length), END] for length in lengths]
    pairs = tuple(JudgedPair(i, j, row.target, row.weight, 0.0, row) for i, j, row in rows)
    return Question([100 + number, 3], ids, pairs, ratings)


def pair_questions(rows):
    """One question a row: (prompt, choices, lengths)."""
    return [
        question(number, [(0, 1, comparison(prompt, choices))], lengths)
        for number, (prompt, choices, lengths) in enumerate(rows)
    ]


def swap(one):
    """The same question with each pair the other way round."""
    pairs = []
    for pair in one.pairs:
        row = pair.comparison
        votes = tuple(replace(vote, choice=SWAPPED[vote.choice]) for vote in row.votes)
        row = replace(row, first=row.second, second=row.first, votes=votes)
        pairs.append(JudgedPair(pair.second, pair.first, row.target, row.weight, 0.0, row))
    return replace(one, pairs=tuple(pairs))


def by_length(questions):
    """A model whose score is known: a tenth a token, and 1 for an end."""
    return [[0.1 * len(ids) + (ids[-1] == END) for ids in one.completion_ids] for one in questions]
