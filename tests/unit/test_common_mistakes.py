"""The fifteen things that go wrong most in fine-tuning elsewhere, each with what happens here instead.

In the order of section 5 of the survey that the data tools were built from. Each goes through what a user runs: the
reader, the stage's own preparation, or the command.
"""

import json

import pytest
from helpers import tiny
from tokenizers.processors import TemplateProcessing

from alignment.config.loading import validate
from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.row_files import DataError
from alignment.models.export import export
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.builtin import TEMPLATES
from alignment.templates.rendering import Unrenderable, encode_conversation, encode_prompt, encode_text, set_template
from sft.building import build_trainer
from sft.config import SFTStageConfig
from sft.data import IGNORED
from sft.prepare import prepare
from sft.train import train

CHAT = [
    {"role": "user", "content": "When does it open?"},
    {"role": "assistant", "content": "At nine."},
    {"role": "user", "content": "And on Sundays? "},
    {"role": "assistant", "content": "It is closed."},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a small model in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNMENT_REGISTRY", str(tmp_path / "registry"))
    tokenizer = tiny.make_tokenizer("chatml")
    tiny.write(tmp_path / "model", tiny.make_policy(tokenizer), tokenizer)
    return tmp_path


def row(prompt, answer):
    return {"prompt": prompt, "completion": answer}


def different(number):
    return row(chr(97 + number % 26) * (9 + number // 26), "Yes.")


def config(folder, rows, model=None, training=None, **data):
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "runs" / "run").mkdir(parents=True, exist_ok=True)
    values = {
        "name": "run",
        "model": {"name": str(folder / "model"), **(model or {})},
        "data": {"train": str(path), "eval_share": 0, "max_length": 60, **data},
        "registry": {"name": "m"},
        "tracking": {"wandb": "disabled"},
        "training": {"per_device_train_batch_size": 2, "max_steps": 1, **(training or {})},
    }
    return validate(SFTStageConfig, values, "test")


def refused(config, part):
    """The one line that a run stops with before it loads a model."""
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def messages(folder, rows, **data):
    records = read_records(config(folder, rows).data.train, to_examples, DataConfig(train="unused", **data))
    return [[turn["content"] for turn in record.messages] for record in records.items]


def bad_row(folder, row):
    """Where a row that cannot be used stands, and why."""
    path = config(folder, [different(0), row]).data.train
    with pytest.raises(DataError) as caught:
        read_records(path, to_examples, DataConfig(train="unused", max_bad_share=0.0))
    assert str(caught.value).startswith(f"{path}:2: ")
    return str(caught.value)


def test_pain_1_labels_that_are_cut_away_are_counted_named_and_stop_the_run(folder):
    rows = [*map(different, range(98)), row("Long?", "word " * 90), row("Longer?", "word " * 91)]
    assert "d.jsonl:99;" in refused(config(folder, rows), "2 of 100 rows (2.0%) are left out of training")
    found = prepare(config(folder, rows, too_long="drop")).report
    left_out = next(finding for finding in found.findings if finding.kind == "left_out")
    assert [place.rpartition(":")[2] for place in left_out.places] == ["99", "100"]
    refused(config(folder, [*rows[:-1], *map(different, range(98, 200))], too_long="raise"), "data.too_long=raise")


def test_pain_2_no_row_left_says_how_long_the_prompts_are(folder):
    refused(
        config(folder, [row("word " * 30, "word " * 90)]),
        "0 of 1 rows have trainable tokens at data.max_length=60; the median prompt is ",
    )


def test_pain_3_the_last_trained_token_is_what_generation_stops_at(folder):
    settings = config(folder, [{"messages": CHAT}, row("Fine?", "Ten cents.")])
    prepared = prepare(settings)
    eos = prepared.start.tokenizer.eos_token_id
    assert all(labels[-1] == eos for labels in prepared.data.train["labels"])
    assert build_trainer(settings, prepared).model.generation_config.eos_token_id == eos
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = TEMPLATES["chatml"].replace("{{ eos_token }}", "")
    assert encode_conversation(tokenizer, CHAT).input_ids[-1] == tokenizer.eos_token_id


def test_pain_4_the_loss_is_on_the_assistants_words_unless_asked_otherwise(folder):
    prepared = prepare(config(folder, [{"messages": CHAT}], max_length=100))
    (labels,) = prepared.data.train["labels"]
    trained = prepared.start.tokenizer.decode([label for label in labels if label != IGNORED])
    eos = prepared.start.tokenizer.eos_token
    assert trained == f"At nine.{eos}It is closed.{eos}"


def test_pain_5_columns_are_told_apart_and_unknown_ones_named(folder):
    assert messages(folder, [{"instruction": "Say", "input": "", "output": "word"}]) == [["Say", "word"]]
    reason = bad_row(folder, {"question_text": "a", "reply": "b"})
    assert "found the keys question_text, reply; expected messages | " in reason
    assert "data.columns renames" in reason


def test_pain_6_sharegpts_speakers_are_roles_and_a_stranger_is_an_error(folder):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    path = config(folder, [{"conversations": turns}]).data.train
    (record,) = read_records(path, to_examples, DataConfig(train="unused")).items
    assert [turn["role"] for turn in record.messages] == ["user", "assistant"]
    reason = bad_row(folder, {"conversations": [{"from": "narrator", "value": "a"}, turns[1]]})
    assert "message 1 of 'conversations' has role 'narrator'; expected system, user" in reason


def test_pain_7_there_is_one_bos_and_a_rendered_text_is_refused():
    tokenizer = tiny.make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for name in TEMPLATES:
        set_template(tokenizer, name)
        ids = encode_conversation(tokenizer, CHAT).input_ids
        assert (ids[0], ids.count(tokenizer.bos_token_id)) == (tokenizer.bos_token_id, 1)
    with pytest.raises(Unrenderable, match="a template has rendered it already"):
        encode_text(tokenizer, "<s>A line.")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordlevel"])
def test_pain_8_a_prompt_that_ends_in_a_space_is_the_same_alone_and_with_its_answer(kind, name):
    tokenizer = tiny.make_tokenizer(name) if kind == "bpe" else tiny.make_wordy_tokenizer(kind, name)
    prompt = encode_prompt(tokenizer, CHAT[:-1])
    encoded = encode_conversation(tokenizer, CHAT)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert not any(encoded.loss_mask[len(prompt) - 1 : len(prompt)])
    assert all(encoded.loss_mask[len(prompt) :])


def test_pain_9_the_template_goes_with_the_model_and_its_hash_into_the_registry(folder):
    done = train(config(folder, [row("Fine?", "Ten cents.")], model={"template": "alpaca"}))
    version = Registry(None).resolve(done["model"])
    assert version.manifest.chat_template_hash
    served = load_tokenizer(str(version.path))
    assert served.chat_template == TEMPLATES["alpaca"]
    assert served.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True) == (
        "### Instructions:\nWhen does it open?\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_pain_10_a_template_without_generation_marks_has_the_same_mask(name):
    tokenizer = tiny.make_tokenizer(name)
    marked = encode_conversation(tokenizer, CHAT)
    for mark in ("{% generation %}", "{% endgeneration %}"):
        assert mark in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(mark, "")
    assert encode_conversation(tokenizer, CHAT) == marked


def test_pain_11_a_column_that_changes_its_type_is_one_bad_row_with_its_line(folder):
    rows = [row("a", "b"), {"prompt": "q", "completion": 3}, row("c", "d"), {"prompt": "x", "completion": ["y", "z"]}]
    path = config(folder, [*rows, {"messages": CHAT, "extra": {"a": 1}}]).data.train
    records = read_records(path, to_examples, DataConfig(train="unused", max_bad_share=0.5))
    assert len(records.items) == 3
    assert [where for where, _ in records.bad] == [f"{path}:2", f"{path}:4"]
    assert records.bad[0][1] == "'completion' must be a string, found int"


def test_pain_12_a_token_that_the_model_does_not_know_is_made_room_for(folder):
    done = train(config(folder, [row("Fine?", "Ten cents.")], model={"pad_token": "<new>"}))
    path = str(Registry(None).resolve(done["model"]).path)
    weights = json.loads((folder / "registry").joinpath(path, "config.json").read_text())
    assert len(load_tokenizer(path)) == len(tiny.make_tokenizer()) + 1 <= weights["vocab_size"]


def test_pain_13_merging_a_4_bit_adapter_leaves_the_logits_as_they_are(folder):
    pytest.importorskip("bitsandbytes")
    tokenizer = tiny.make_tokenizer("chatml")
    shape = tiny.SHAPE.model_copy(update={"hidden_size": 64, "intermediate_size": 128})
    tiny.write(folder / "model", tiny.make_policy(tokenizer, shape=shape), tokenizer)
    done = train(config(folder, [row("Fine?", "Ten cents.")], model={"method": "qlora"}))
    report = export(done["model"], folder / "merged", Registry(None))
    assert report["written"].startswith("merged onto the dequantized weights")
    assert report["logits_difference"] < 1e-5


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "the content of message 2 of 'messages'"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "the content of message 2 of 'messages'"),
        ({"messages": []}, "must be a list of messages, found an empty one"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": None, "completion": "b"}, "'prompt' must be a string, found NoneType"),
    ],
)
def test_pain_14_empty_turns_are_bad_rows(folder, broken, part):
    assert part in bad_row(folder, broken)


def test_pain_15_small_sets_are_told_of_and_evaluation_keeps_no_logits(folder):
    """The Trainer gathers the logits of all rows where there is something to compute from them."""
    settings = config(folder, list(map(different, range(40))), eval_share=0.3)
    prepared = prepare(settings)
    assert "few_rows" in prepared.report.summary()["findings"]
    trainer = build_trainer(settings, prepared)
    assert trainer.compute_metrics is None
    outcome = trainer.evaluation_loop(trainer.get_eval_dataloader(), "eval", prediction_loss_only=None)
    kept = trainer.prediction_step(
        trainer.model, next(iter(trainer.get_eval_dataloader())), trainer.compute_metrics is None
    )
    assert kept == (None, None, None)
    assert outcome.metrics["eval_loss"] > 0
