"""Sketches and the groups made from them, against sets and a brute-force search; personal data by shape."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import duplicates, privacy
from alignment.data.duplicates import BAND, HASHES, Groups, Sketches, near_duplicates, shingles, sketch
from alignment.data.privacy import luhn, scrub, scrub_row


def jaccard(one, other):
    one, other = (
        {text[i : i + 5] for i in range(len(text) - 4)}
        for text in (" ".join(t.casefold().split()) for t in (one, other))
    )
    return len(one & other) / len(one | other)


def words(seed, count=60):
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(count)]


def edited(seed, edits):
    text = words(seed)
    for place in range(edits):
        text[place * 5] = "other"
    return " ".join(words(seed)), " ".join(text)


def test_equal_bytes_estimate_the_similarity_of_the_sets():
    """The standard error of 128 draws is at most 0.044, so of the mean over 40 texts 0.007."""
    for edits in (0, 2, 5, 10):
        pairs = [edited(seed, edits) for seed in range(40)]
        estimates = [(sketch(one) == sketch(other)).mean() for one, other in pairs]
        assert np.mean(estimates) == pytest.approx(np.mean([jaccard(*pair) for pair in pairs]), abs=0.03)


def test_case_and_spaces_do_not_count_and_any_text_has_a_sketch():
    assert (sketch("When  does it\nOPEN?") == sketch("when does it open?")).all()
    for text in ("", "a", "猫", "\ud800 half", "x" * 5000):
        assert sketch(text).shape == (HASHES,)
    assert len(shingles("abcdefg")) == 3


def test_very_short_texts_that_differ_have_sketches_that_differ():
    """Each is one shingle, so all 128 bytes come from one number."""
    sketches = np.stack([sketch(f"{n:05}") for n in range(2000)])
    assert near_duplicates(sketches).tolist() == list(range(2000))


def test_a_sketch_is_the_same_on_every_machine():
    """Sketches may be compared across runs; Python's own hash of a text changes with each."""
    assert sketch("The library opens at nine.")[:8].tolist() == [152, 13, 221, 59, 50, 125, 202, 219]


def brute(sketches, threshold):
    """Connected components of the pairs that share a band and agree in enough bytes, by a plain search."""
    count = len(sketches)
    bands = sketches.reshape(count, -1, BAND)
    near = [
        [
            (bands[i] == bands[j]).all(axis=1).any() and (sketches[i] == sketches[j]).mean() >= threshold
            for j in range(count)
        ]
        for i in range(count)
    ]
    labels = list(range(count))
    changed = True
    while changed:
        changed = False
        for i in range(count):
            for j in range(count):
                if near[i][j] and labels[i] != labels[j]:
                    labels[i] = labels[j] = min(labels[i], labels[j])
                    changed = True
    return labels


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 5)), min_size=1, max_size=12))
def test_groups_are_the_components_of_a_brute_force_search(rows):
    """Sketches made of one of four origins with some bytes changed: chains of near duplicates happen."""
    sketches = np.stack([np.random.default_rng(origin).integers(0, 256, HASHES, np.uint8) for origin, _, _ in rows])
    for row, (_, changed, start) in zip(sketches, rows, strict=True):
        row[start * 8 : start * 8 + changed] ^= 1 + start
    assert near_duplicates(sketches, 0.8).tolist() == brute(sketches, 0.8)


def test_near_texts_meet_and_others_do_not():
    texts = [text for seed in range(30) for text in edited(seed, 2)]
    sketches = Sketches()
    for text in texts:
        sketches.add(text)
    assert sketches.labels().tolist() == [2 * (i // 2) for i in range(60)]


def test_copies_do_not_hide_a_neighbour(monkeypatch):
    """Five hundred copies stand between two near texts in the order of any band."""
    monkeypatch.setattr(duplicates, "WINDOW", 4)
    one, other = edited(1, 1)
    sketches = np.stack([sketch(one)] * 500 + [sketch(other)])
    assert near_duplicates(sketches).tolist() == [0] * 501


def test_texts_beyond_the_limit_stand_alone():
    sketches = Sketches(limit=2)
    for text in ("one and the same", "something else", "one and the same"):
        sketches.add(text)
    assert sketches.num_unseen == 1
    assert sketches.labels().tolist() == [0, 1, 2]
    assert Sketches().labels().tolist() == []


@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)).map(lambda j: (n, j))))
def test_joined_numbers_are_named_by_the_smallest(case):
    count, joins = case
    groups, expected = Groups(count), [{i} for i in range(count)]
    for one, other in joins:
        groups.join(one, other)
        union = expected[one] | expected[other]
        for member in union:
            expected[member] = union
    assert groups.labels().tolist() == [min(group) for group in expected]


# --- personal data -----------------------------------------------------------------------------------------------


@given(st.text("0123456789", min_size=1, max_size=18))
def test_luhn_accepts_one_check_digit_of_ten_and_no_single_mistake(body):
    passing = [body + digit for digit in "0123456789" if luhn(body + digit)]
    assert len(passing) == 1
    number = passing[0]
    for place, digit in enumerate(number):
        assert not luhn(number[:place] + str((int(digit) + 3) % 10) + number[place + 1 :])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ada.b+x@example.co.uk, please.", "Write to [MAIL], please."),
        ("4111 1111 1111 1111", "[CARD]"),
        ("Card 5500-0000-0000-0004.", "Card [CARD]."),
        ("378282246310005", "[CARD]"),
        ("+44 20 7946 0958", "[PHONE]"),
        ("(212) 555-0187 or 212-555-0187", "[PHONE] or [PHONE]"),
        ("call 07700 900123 now", "call [PHONE] now"),
    ],
)
def test_personal_data_is_replaced(text, expected):
    assert scrub(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "2020-01-02 12:30",
        "192.168.100.100",
        "978-3-16-148410-0",
        "3.14159265358979",
        "1,234,567,890",
        "user@localhost",
        "2 3 4 5 6 7 8 9 10 11 12 13",
        "1914-1918",
    ],
)
def test_other_numbers_stay(text):
    assert scrub(text) == (text, {})


@given(st.text("0123456789 +-().,/x", max_size=60) | st.from_regex(privacy._PHONE) | st.from_regex(privacy._CARD))
def test_the_quick_look_for_digits_misses_nothing(text):
    if privacy._PHONE.search(text) or privacy._CARD.search(text):
        assert privacy._DIGITS.search(text) or not any(
            privacy._is_one(kind, match.group())
            for kind, pattern in (("card", privacy._CARD), ("phone", privacy._PHONE))
            for match in pattern.finditer(text)
        )


@given(st.text())
def test_a_scrubbed_text_is_clean(text):
    once, _ = scrub(f"{text} ada@example.com")
    assert scrub(once) == (once, {})


def test_a_row_is_scrubbed_at_any_depth():
    row = {"messages": [{"content": "ada@example.com"}], "card": 4111111111111111, "score": 0.5, "ok": True, "n": None}
    scrubbed, found = scrub_row(row)
    assert scrubbed == row | {"messages": [{"content": "[MAIL]"}], "card": "[CARD]"}
    assert found == {"mail": 1, "card": 1}
