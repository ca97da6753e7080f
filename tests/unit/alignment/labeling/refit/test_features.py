"""Hidden states of answers: the head gives the model's scores from them, and they are kept and gone on with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny

from alignment.errors import UserError
from alignment.labeling.refit import features
from alignment.labeling.refit.features import hidden_states, last_states
from alignment.models.sources import ModelSource
from alignment.templates.rendering import encode_conversation

PROMPT = ({"role": "user", "content": "When does the library open?"},)
TEXTS = ["At nine.", "You can keep a book for three weeks.", "The library opens at nine on weekdays.", "A line."]
ANSWERS = [(PROMPT, text) for text in TEXTS]


@pytest.fixture
def model(tmp_path, tokenizer):
    scalar = tiny.make_scalar(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)
    return scalar, ModelSource(str(tiny.write(tmp_path / "reward", scalar.model, tokenizer)))


def ids_of(tokenizer, text):
    return encode_conversation(tokenizer, [*PROMPT, {"role": "assistant", "content": text}]).input_ids


def test_the_head_gives_the_models_own_scores(tmp_path, model, tokenizer):
    scalar, source = model
    found = torch.tensor(hidden_states(source, ANSWERS, tmp_path / "r.db"))
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([ids_of(tokenizer, text)])
        with torch.no_grad():
            wanted = scalar.score(ids, torch.ones_like(ids, dtype=torch.bool))
            assert scalar.model.score(row).item() == pytest.approx(wanted.item(), abs=1e-4)


def test_left_padding_changes_nothing(model, tokenizer):
    scalar, _ = model
    ids = ids_of(tokenizer, TEXTS[0])
    plain = last_states(scalar, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    padded = torch.tensor([[tokenizer.pad_token_id] * 3 + ids])
    mask = torch.tensor([[False] * 3 + [True] * len(ids)])
    assert last_states(scalar, padded, mask) == pytest.approx(plain, abs=1e-5)


def test_what_is_kept_is_not_computed_again(tmp_path, model, monkeypatch):
    _, source = model
    db = tmp_path / "r.db"
    first = hidden_states(source, ANSWERS[:2], db)
    computed = []
    real = features.last_states
    monkeypatch.setattr(features, "last_states", lambda *some: computed.append(len(some[1])) or real(*some))
    both = hidden_states(source, ANSWERS[:3], db)
    assert (both[:2] == first).all() and sum(computed) == 1
    monkeypatch.setattr(features, "load_scalar_model", None)  # no model is needed now
    again = hidden_states(source, [*ANSWERS[2:0:-1], ANSWERS[2]], db)
    assert (again == both[[2, 1, 2]]).all()


def test_a_torn_record_is_cut_off(tmp_path, model):
    _, source = model
    db = tmp_path / "r.db"
    whole = hidden_states(source, ANSWERS, db)
    (kept,) = tmp_path.glob("r.db.features-*")
    for size in (kept.stat().st_size - 5, 7, 0):  # in the last record, in the first line, an empty file
        kept.write_bytes(kept.read_bytes()[:size])
        assert hidden_states(source, ANSWERS, db) == pytest.approx(whole, abs=1e-5)


def test_another_model_has_another_file(tmp_path, model, tokenizer):
    _, source = model
    hidden_states(source, ANSWERS, tmp_path / "r.db")
    other = tiny.make_scalar(tmp_path / "p2", tiny.make_policy(tokenizer, seed=1), tokenizer)
    hidden_states(ModelSource(str(tiny.write(tmp_path / "r2", other.model, tokenizer))), ANSWERS, tmp_path / "r.db")
    assert len(list(tmp_path.glob("r.db.features-*"))) == 2


def test_what_does_not_fit_is_nan(tmp_path, model):
    _, source = model
    found = hidden_states(source, [(PROMPT, "at nine " * 400), ANSWERS[0]], tmp_path / "r.db")
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_a_policy_has_no_score_head_but_hidden_states(tmp_path, tokenizer):
    source = ModelSource(str(tiny.write(tmp_path / "policy", tiny.make_policy(tokenizer), tokenizer)))
    with pytest.raises(UserError, match="a policy, which has no score head"):
        hidden_states(source, ANSWERS, tmp_path / "r.db")
    assert np.isfinite(hidden_states(source, ANSWERS, tmp_path / "r.db", trained=False)).all()


def test_a_folder_that_cannot_be_written_is_said(tmp_path, model):
    _, source = model
    with pytest.raises(UserError, match=r"r\.db\.features-\w+: cannot be written, and it keeps the hidden states"):
        hidden_states(source, ANSWERS, tmp_path / "nowhere" / "r.db")
