"""Rows as the best-known data sets publish them go from the file to a trained model with one command each.

The contents are invented; the keys and their nesting follow the data sets' cards.
"""

import json
from pathlib import Path

import pytest

import reward.train
import sft.train
from alignment.config.loading import validate
from alignment.registry import Registry
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
WORDS = ("cats", "rain", "bread", "trains", "tea", "snow", "maps", "bells", "ships", "wool", "salt", "oaks")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def smoltalk(word, good, bad):
    yield {"messages": [{"role": "system", "content": "Be brief."}, user(word), assistant(good)], "source": "x"}


def ultrafeedback(word, good, bad):
    rating = {"helpfulness": {"Rating": "5", "Rationale": "x"}}
    answers = [
        {"model": name, "response": text, "overall_score": score, "fine-grained_score": 1.0, "annotations": rating}
        for name, text, score in (("m", bad, 2.0), ("n", good, 9.0))
    ]
    yield {"source": "x", "instruction": word, "models": ["m", "n"], "completions": answers, "correct_answers": ["x"]}


def helpsteer2(word, good, bad):
    for text, mark in ((good, 4), (bad, 1)):
        yield {
            "prompt": word,
            "response": text,
            "helpfulness": mark,
            "correctness": mark,
            "coherence": 4,
            "verbosity": 1,
        }


def tulu3(word, good, bad):
    yield {
        "id": word, "source": "x", "prompt": word, "chosen": [user(word), assistant(good)],
        "rejected": [user(word), assistant(bad)], "chosen_rating": 4.5, "rejected_rating": 2.0, "chosen_model": "m",
        "rejected_model": "n",
    }  # fmt: skip


def oasst2(word, good, bad):
    common = {"lang": "en", "deleted": False, "review_result": True, "message_tree_id": word}
    yield {"message_id": word, "parent_id": None, "text": word, "role": "prompter", "rank": None, **common}
    for rank, text in enumerate((good, bad)):
        yield {
            "message_id": f"{word}{rank}",
            "parent_id": word,
            "text": text,
            "role": "assistant",
            "rank": rank,
            **common,
        }


def arena(word, good, bad):
    sides = [[user(word), assistant(text)] for text in (good, bad)]
    yield {
        "question_id": word, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "arena_user_1",
        "conversation_a": sides[0], "conversation_b": sides[1], "turn": 1, "anony": True, "language": "English",
    }  # fmt: skip


SFT, REWARD = (smoltalk, oasst2), (ultrafeedback, helpsteer2, tulu3, oasst2, arena)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for make in {*SFT, *REWARD}:
        rows = [
            row for word in WORDS for row in make(f"Are {word} old?", f"Yes, {word} are old.", f"Who knows {word}.")
        ]
        (folder / f"{make.__name__}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def train(stage, config, name, model, data):
    values = {
        "name": name,
        "model": model,
        "data": {"train": data, "eval_share": 0, "max_length": 96},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    parsed = validate(config, values, "test")
    parsed.run_dir.mkdir(parents=True)
    stage(parsed)
    assert Registry("registry").resolve(name).manifest.data[0].rows > 0
    return json.loads(Path("runs", name, "data_report.json").read_text())


@pytest.mark.parametrize("make", SFT, ids=lambda make: make.__name__)
def test_demonstrations(make):
    scratch = {"name": "scratch:llama", "scratch": SHAPE}
    report = train(sft.train.train, SFTStageConfig, f"sft-{make.__name__}", scratch, f"{make.__name__}.jsonl")
    assert (report["kept"], report["bad"]) == (len(WORDS), 0)


@pytest.mark.parametrize("make", REWARD, ids=lambda make: make.__name__)
def test_judgements(make):
    if not Registry("registry").is_reference("base"):
        scratch = {"name": "scratch:llama", "scratch": SHAPE}
        train(sft.train.train, SFTStageConfig, "base", scratch, "smoltalk.jsonl")
    name = f"reward-{make.__name__}"
    report = train(reward.train.train, RewardStageConfig, name, {"name": "base"}, f"{make.__name__}.jsonl")
    assert report["bad"] == 0
    events = [json.loads(line) for line in Path("runs", name, "events.jsonl").read_text().splitlines()]
    assert next(event for event in events if event["event"] == "data")["pairs"] == len(WORDS)
