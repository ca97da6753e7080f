"""Completions behind a shared prompt against each completion alone: scores, gradients, and what must not be seen."""

from __future__ import annotations

import math
import random

import peft
import pytest
import torch
import transformers
from helpers import architectures, tiny
from helpers.architectures import VOCABULARY

import alignment.models.packing
from alignment.models.adapters import without_adapter
from alignment.models.packing import ATTENTION
from alignment.models.scalar import ScalarModel, ScoreHead
from alignment.models.selfcheck import CheckError
from alignment.tensors import pad_rows
from reward.batches import QuestionCollator, check_layout, choose_batch_layout, score_batch, score_questions
from reward.questions import JudgedPair, Question

KINDS = ("llama", "qwen2", "gpt2", "mistral", "gemma", "qwen3", "gemma3_text", "phi3", "gpt_neox", "opt")
PAD, EOS = 0, 2


def classifier(kind, head=True, **changes):
    """A reward model of a `model_type` in training mode, without dropout, with weights large enough to show errors."""
    shape = architectures.GPT2 if kind == "gpt2" else architectures.SHAPE
    extra = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if kind == "bert" else {}
    values = shape | {"num_labels": 1, "pad_token_id": PAD} | extra | changes
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForSequenceClassification.from_config(config).train()
    if head:
        model.score, old = ScoreHead(model.score.in_features), model.score
        torch.nn.init.normal_(model.score.weight, std=1 / math.sqrt(old.in_features + 1))
    return model


def question(draw, prompt, lengths):
    """Random tokens; completions end in EOS."""

    def tokens(count):
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    return Question(tokens(prompt), [[*tokens(length), EOS] for length in lengths], ())


def questions(seed=0, ks=(2, 1, 3, 2)):
    draw = random.Random(seed)
    return [question(draw, draw.choice([0, 1, 2, 11]), [draw.randrange(0, 8) for _ in range(k)]) for k in ks]


def alone(model, asked):
    """The score of each completion by a forward of its own, as transformers computes it."""
    rows = [one.prompt_ids + ids for one in asked for ids in one.completion_ids]
    return torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0].float() for row in rows])


def collate(asked, layout="packed"):
    return QuestionCollator(layout, PAD)(asked)


def gradients(model, scores):
    """Of scores with unequal weights, by the name of the parameter."""
    model.zero_grad()
    (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, asked, layout):
    expected = alone(model, asked)
    expected_gradients = gradients(model, expected)
    assert choose_batch_layout(model, 128)[0] == layout
    found = score_batch(model, collate(asked, layout))
    found_gradients = gradients(model, found)
    assert found.dtype == torch.float32
    assert expected.std() > 0.03 or len(expected) == 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found_gradients.keys() == expected_gradients.keys()
    norm = math.sqrt(sum(g.norm() ** 2 for g in expected_gradients.values()))
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).norm() < 1e-5 * norm, name


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_each_completion_alone(kind):
    assert_same(classifier(kind), questions(), "packed")


@pytest.mark.parametrize("k", range(1, 10))
def test_any_number_of_completions_takes_one_forward(k):
    model = classifier("llama")
    calls = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    draw = random.Random(k)
    asked = [question(draw, 7, [draw.randrange(0, 6) for _ in range(k)]), question(draw, 3, [4])]
    choose_batch_layout(model, 128)
    scores = score_batch(model, collate(asked))
    assert len(calls) == 1
    torch.testing.assert_close(scores, alone(model, asked), atol=1e-5, rtol=1e-5)


def test_the_prompt_is_computed_once_and_scores_are_read_at_eos():
    asked = [question(random.Random(0), 10, [3, 4]), question(random.Random(1), 2, [3])]
    batch = collate(asked)
    assert batch["packed_groups"] == [[10, 4, 5], [0, 6]]
    assert batch["input_ids"].shape == (1, 25)
    assert batch["position_ids"][0].tolist() == [*range(10), *range(10, 14), *range(10, 15), *range(6)]
    assert batch["last"].tolist() == [13, 18, 24]
    assert (batch["input_ids"][0, batch["last"]] == EOS).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_spans_the_row(kind, monkeypatch):
    """A row of N tokens costs no N x N anything: masks are as large as one completion behind its prompt."""
    model, shapes = classifier(kind), []

    def watched(module, query, key, value, mask, **options):
        shapes.append((query.shape[2], key.shape[2], None if mask is None else tuple(mask.shape)))
        return sdpa(module, query, key, value, mask, **options)

    sdpa = alignment.models.packing.sdpa_attention_forward
    monkeypatch.setattr(alignment.models.packing, "sdpa_attention_forward", watched)
    choose_batch_layout(model, 128)
    score_batch(model, collate([question(random.Random(0), 10, [3, 4]), question(random.Random(1), 0, [6, 2])]))
    layer = [(10, 10, None), (4, 14, (1, 1, 4, 14)), (5, 15, (1, 1, 5, 15)), (7, 7, None), (3, 3, None)]
    assert shapes == layer * model.config.num_hidden_layers


@pytest.mark.parametrize("kind", KINDS)
def test_neither_another_completion_nor_another_question_is_seen(kind):
    """Not by one bit, nor by a gradient of one."""
    model = classifier(kind)
    choose_batch_layout(model, 128)
    draw = random.Random(3)
    first, second = question(draw, 9, [5, 5, 5]), question(draw, 4, [6, 6])
    inner = [*first.completion_ids[1]]
    inner[2] = 3 if inner[2] != 3 else 4
    changed = Question(first.prompt_ids, [first.completion_ids[0], inner, first.completion_ids[2]], ())

    def scores(asked):
        return score_batch(model, collate(asked))

    before, after = scores([first, second]), scores([changed, second])
    assert after[1] != before[1]
    assert torch.equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])

    embeddings = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: embeddings.append(out))
    found = scores([first, second])
    hook.remove()
    (gradient,) = torch.autograd.grad(found[1], embeddings[0])
    seen = gradient[0].abs().sum(-1) > 0
    prefix, *branches = collate([first, second])["packed_groups"][0]
    start = prefix + branches[0]
    own = torch.zeros_like(seen)
    own[:prefix] = own[start : start + branches[1]] = True
    assert torch.equal(seen, own)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scores_do_not_depend_on_the_batch(layout):
    model = classifier("gpt2").eval()
    asked = questions(seed=5, ks=(2, 4, 1, 9, 2, 3))
    expected = alone(model, asked)
    choose_batch_layout(model, 128)
    for size in (1, 2, 6):
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        found = torch.cat([score_batch(model, collate(batch, layout)) for batch in batches])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_scores_the_same():
    """As a ScalarModel does it: PPO's rollouts are padded there."""
    model = classifier("gpt2").eval()
    asked = questions(seed=6)
    rows = [one.prompt_ids + ids for one in asked for ids in one.completion_ids]
    expected = score_batch(model, collate(asked, "padded"))
    choose_batch_layout(model, 128)
    ids, mask = pad_rows(rows, PAD, "left")
    torch.testing.assert_close(ScalarModel(model).score(ids, mask), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score_batch(model, collate(asked)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_checkpointed_activations_change_nothing(kind):
    model = classifier(kind)
    choose_batch_layout(model, 128)
    batch = collate(questions())
    scores = score_batch(model, batch)
    expected = gradients(model, scores)
    model.gradient_checkpointing_enable()
    again = score_batch(model, batch)
    assert torch.equal(scores, again)
    for name, gradient in gradients(model, again).items():
        torch.testing.assert_close(gradient, expected[name])


def test_the_head_stays_in_float32_under_autocast():
    model = classifier("llama")
    choose_batch_layout(model, 128)
    asked = questions()
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_batch(model, collate(asked))
        expected = alone(model, asked)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
    torch.testing.assert_close(scores, expected, atol=0.1, rtol=0.05)


def test_an_adapter_and_its_head_are_trained():
    model = classifier("llama")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["score"], init_lora_weights=False)
    model = peft.get_peft_model(model, lora)
    assert_same(model, questions(), "packed")
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lora_A" in name for name in trained)
    assert any("score.modules_to_save" in name for name in trained)
    assert without_adapter(model).config._attn_implementation == ATTENTION


def test_the_forward_of_the_wrapper_is_what_runs():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **options):
            return self.module(*args, **options)

    model = classifier("llama")
    wrapper = Wrapper(model)
    calls = []
    wrapper.register_forward_hook(lambda *_: calls.append(1))
    choose_batch_layout(model, 128)
    for layout in ("packed", "padded"):
        score_batch(model, collate(questions(), layout), wrapper)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("bloom", {}, "positions"),
        ("gptj", {}, "attention cannot be replaced"),
        ("jamba", {}, "carry a state"),
        ("mistral", {"sliding_window": 8}, "window of 8 tokens is shorter than rows of 128 (data.max_length)"),
        ("bert", {}, "not a layer named `score`"),
        ("modernbert", {}, "not a layer named `score`"),
    ],
)
def test_what_cannot_share_a_prefix_is_padded_and_says_why(kind, changes, part):
    layout, reason = choose_batch_layout(classifier(kind, head=False, **changes), 128)
    assert layout == "padded"
    assert part in reason


@pytest.mark.parametrize(("kind", "layout"), [("llama", "packed"), ("stablelm", "padded")])
def test_a_layout_that_gives_other_scores_is_left_for_padding(kind, layout):
    """StableLM does not hand its arguments on to its attention, which would go across the sequences of a row."""
    model, asked = classifier(kind, head=kind == "llama"), questions(seed=3, ks=(3, 2))
    assert choose_batch_layout(model, 128)[0] == "packed"
    found, reason = check_layout(model, asked, PAD, "packed")
    assert (found, reason is None) == (layout, layout == "packed")
    assert model.training
    scores = sum(score_questions(model, asked, PAD), [])
    assert scores == pytest.approx(alone(model.eval(), asked).tolist(), abs=1e-5)


def test_a_classifier_that_gives_no_score_is_refused():
    model = classifier("llama")
    with torch.no_grad():
        model.score.weight[:] = float("nan")
    with pytest.raises(CheckError, match="LlamaForSequenceClassification gives no score for a plain row"):
        check_layout(model, questions(ks=(2, 2)), PAD, "padded")


@pytest.mark.parametrize("kind", ["bert", "bloom"])
def test_padded_rows_score_as_alone(kind):
    assert_same(classifier(kind, head=False), questions(seed=2), "padded")


def test_pairs_and_ratings_are_numbered_through_the_batch():
    def pair(first, second, target):
        return JudgedPair(first, second, target, weight=first + 0.5, margin=second / 4, comparison=None)

    one = Question([5], [[6, EOS], [7, EOS], [8, EOS]], (pair(0, 2, 1.0), pair(1, 2, 0.5)), (1.0, None, 7.0))
    two = Question([5], [[6, EOS], [7, EOS]], (pair(1, 0, 0.0),))
    batch = collate([one, two])
    assert batch["first"].tolist() == [0, 1, 4]
    assert batch["second"].tolist() == [2, 2, 3]
    assert batch["target"].tolist() == [1.0, 0.5, 0.0]
    assert batch["weight"].tolist() == [0.5, 1.5, 1.5]
    assert batch["margin"].tolist() == [0.5, 0.5, 0.0]
    assert batch["ratings"].tolist()[::2] == [1.0, 7.0, pytest.approx(math.nan, nan_ok=True)]
    assert batch["ratings"].isnan().tolist() == [False, True, False, True, True]
    assert "ratings" not in collate([two])


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_questions_are_scored_in_order_within_a_budget(kind, max_tokens):
    model = classifier(kind, head=kind == "llama")
    asked = questions(seed=8, ks=(2, 9, 1, 4, 2))
    expected = alone(model.eval(), asked).split([len(one.completion_ids) for one in asked])
    score_questions(model, asked, PAD)  # tries the layout, once for each model
    sizes = []
    model.base_model.register_forward_hook(
        lambda _m, args, options, _out: sizes.append((args[0] if args else options["input_ids"]).numel()),
        with_kwargs=True,
    )
    model.train()
    found = score_questions(model, asked, PAD, max_tokens)
    assert model.training
    for scores, wanted in zip(found, expected, strict=True):
        assert scores == pytest.approx(wanted.tolist(), abs=1e-5)
    largest = max(max(one.lengths) * len(one.lengths) for one in asked)
    assert max(sizes) <= max(max_tokens, largest)
    assert len(sizes) == {1: 5, 10_000: 1}.get(max_tokens, len(sizes))


def test_a_scalar_model_scores_its_questions(tokenizer, tmp_path):
    scalar = tiny.make_scalar(tmp_path, tiny.make_policy(tokenizer), tokenizer)
    asked = questions(seed=9)
    rows = [torch.tensor([one.prompt_ids + ids]) for one in asked for ids in one.completion_ids]
    expected = [scalar.score(ids, torch.ones_like(ids, dtype=torch.bool)).item() for ids in rows]
    found = score_questions(scalar, asked, tokenizer.pad_token_id)
    assert sum(found, []) == pytest.approx(expected, abs=1e-4)
    assert score_questions(scalar, [], tokenizer.pad_token_id) == []
