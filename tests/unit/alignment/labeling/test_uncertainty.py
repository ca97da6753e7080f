"""Items by a reward model's doubt: against scores computed one text at a time."""

from __future__ import annotations

import itertools
import math
import sqlite3

import pytest
import torch
from helpers import tiny

from alignment.errors import UserError
from alignment.labeling.uncertainty import distance, order_items
from alignment.ratings import RatingsStore
from alignment.templates.rendering import encode_conversation

PROMPT = [{"role": "user", "content": "When does the library open?"}]
TEXTS = ["At nine.", "You can keep a book for three weeks.", "The library opens at nine on weekdays.", "A line."]


@pytest.fixture
def model(tmp_path, tokenizer):
    scalar = tiny.make_scalar(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)
    return scalar, str(tiny.write(tmp_path / "reward", scalar.model, tokenizer))


@pytest.fixture
def db(tmp_path):
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True) as store:
        store.settings.repeat_share = 0.0
        for pair in itertools.combinations(TEXTS, 2):
            store.add_item(PROMPT, [{"text": text} for text in pair])
        store.add_item(PROMPT, [{"text": text} for text in TEXTS], kind="rank")
        store.add_item(PROMPT, [{"text": TEXTS[0]}], kind="single")
        store.add_item(
            PROMPT, [{"text": "at nine " * 400}, {"text": TEXTS[0]}]
        )  # longer than the model's 256 positions
    return path


def stored(path):
    with sqlite3.connect(path) as db:
        return dict(db.execute("SELECT id, uncertainty FROM item"))


def test_each_item_gets_the_distance_of_its_nearest_two(db, model, tokenizer):
    scalar, folder = model
    with torch.no_grad():
        scores = []
        for text in TEXTS:
            ids = encode_conversation(tokenizer, [*PROMPT, {"role": "assistant", "content": text}]).input_ids
            scores.append(scalar.score(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)).item())
    wanted = [abs(1 / (1 + math.exp(b - a)) - 0.5) for a, b in itertools.combinations(scores, 2)]
    result = order_items(db, folder)
    found = stored(db)
    assert [found[i] for i in range(1, 7)] == pytest.approx(wanted, abs=1e-5)
    assert found[7] == pytest.approx(min(wanted), abs=1e-5)  # the ranking
    assert found[8] is None and found[9] is None
    assert (result["items"], result["left_out"], result["model"]) == (7, 2, folder)
    assert result["near"] == pytest.approx(sum(value < 0.1 for value in [*wanted, min(wanted)]) / 7)
    least = {i for i in range(1, 8) if found[i] == min(found[j] for j in range(1, 8))}
    with RatingsStore(db) as store:
        given = {}
        for labeler in (f"labeler {i}" for i in range(20)):  # half of them get a random one
            assignment = store.claim(labeler, order="uncertain")
            given.setdefault(assignment.why, set()).add(assignment.item)
            store.submit(assignment, "skip", 1.0)
    assert given["uncertain"] <= least


def test_items_that_the_template_refuses_are_left_out(db, tmp_path):
    tokenizer = tiny.make_tokenizer()  # its own, to be changed
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    scalar = tiny.make_scalar(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)
    folder = str(tiny.write(tmp_path / "reward", scalar.model, tokenizer))
    with RatingsStore(db) as store:
        refused = store.add_item([{"role": "system", "content": "Be kind."}, *PROMPT], [{"text": "a"}, {"text": "b"}])
    result = order_items(db, folder)
    assert (result["items"], result["left_out"], stored(db)[refused]) == (7, 3, None)


def test_a_distance_is_of_probabilities_and_never_overflows():
    assert distance([0.0, 0.0]) == 0.0
    assert distance([1e6, -1e6]) == 0.5
    assert distance([0.0, math.log(3), 50.0]) == pytest.approx(0.25)  # p = 3/4


def test_a_policy_is_refused(db, tmp_path, tokenizer):
    policy = tiny.write(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)
    with pytest.raises(UserError, match="a policy, which has no score head"):
        order_items(db, str(policy))
    assert set(stored(db).values()) == {None}
