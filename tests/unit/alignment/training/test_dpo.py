import json
import math

import pytest
import torch
from helpers.tiny import make_policy, make_tokenizer, votes, write
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.config.loading import validate
from alignment.data.records import Comparison
from alignment.data.row_files import DataError
from alignment.errors import ConfigError
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.registry import Registry
from alignment.templates.rendering import Message
from alignment.training.dpo import DPOBaselineConfig, encode_pairs, train_dpo

PROMPTS = [(Message(role="user", content=text),) for text in ("one", "two", "three", "four")]
PAIRS = [Comparison(prompt, "good answer", "bad", votes(2, 1)) for prompt in PROMPTS[:2]] + [
    Comparison(prompt, "bad", "good answer", votes(0, 1)) for prompt in PROMPTS[2:]
]


@pytest.fixture
def config(tmp_path):
    tokenizer = make_tokenizer()
    folder = write(tmp_path / "model", make_policy(tokenizer), tokenizer)
    return {
        "name": "dpo",
        "model": {"name": str(folder)},
        "data": {"train": "votes.jsonl"},
        "training": {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "num_train_epochs": 6, "beta": 0.3},
        "registry": {"name": "tiny-dpo", "path": str(tmp_path / "registry")},
    }


def test_the_preferred_answer_is_chosen_and_ties_and_long_pairs_have_no_row():
    tokenizer = make_tokenizer()
    tie = Comparison(PROMPTS[0], "a", "b", votes(1, 1))
    long = Comparison(PROMPTS[0], "a" * 500, "b", votes(1, 0))
    rows = encode_pairs([*PAIRS, tie, long], tokenizer, max_length=60)
    assert len(rows) == len(PAIRS)
    for row in rows:
        assert tokenizer.decode(row["chosen_ids"], skip_special_tokens=True).strip() == "good answer"
        assert row["rejected_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["prompt_ids"]).count("user") == 1


def test_pairs_used_and_left_out_are_said_and_few_warned_of_and_no_run_is_named(config, capsys):
    tie = Comparison(PROMPTS[0], "a", "b", votes(1, 1))
    long = Comparison(PROMPTS[0], "word " * 600, "b", votes(1, 0))
    version = train_dpo(validate(DPOBaselineConfig, config, "test"), [*PAIRS, tie, long], PAIRS, [{"name": "v.jsonl"}])
    said = capsys.readouterr().err
    assert f"dpo: learns from {len(PAIRS)} pairs, {len(PAIRS)} held out; left out: 1 tied, 1 longer than" in said
    assert f"dpo: {len(PAIRS)} pairs: fewer than 50 show little" in said
    assert version.manifest.run_id is None  # there is no run folder


def test_the_loss_is_the_papers_and_training_raises_the_preferred_answers(config):
    parsed = validate(DPOBaselineConfig, config, "test")
    version = train_dpo(parsed, PAIRS, PAIRS, [{"name": "votes.jsonl", "rows": 4, "ratings": 7}])
    registry = Registry(config["registry"]["path"])
    tokenizer = make_tokenizer()
    rows = encode_pairs(PAIRS, tokenizer, 512)

    def answer_logprobs(model, key):
        prompts, answers = rows["prompt_ids"], rows[key]
        return torch.tensor(
            [
                model(torch.tensor([p + a]))
                .logits[0, len(p) - 1 : -1]
                .log_softmax(-1)
                .gather(-1, torch.tensor(a)[:, None])
                .sum()
                for p, a in zip(prompts, answers, strict=True)
            ]
        )

    with torch.no_grad():
        start = load_policy(config["model"]["name"]).eval()
        trained = load_policy(find_model(version.ref, registry, role="policy")).eval()
        margins = [
            answer_logprobs(trained, key) - answer_logprobs(start, key) for key in ("chosen_ids", "rejected_ids")
        ]
    logits = 0.3 * (margins[0] - margins[1])
    metrics = version.manifest.metrics
    assert metrics["eval_loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(logits).mean()), abs=1e-5)
    assert metrics["eval_accuracy"] == 1.0 and metrics["eval_loss"] < math.log(2) / 2
    assert (version.manifest.stage, version.manifest.role) == ("dpo", "policy")
    assert version.manifest.data[0].ratings == 7 and version.manifest.parents[0].role == "init"


def test_an_adapter_is_published_on_its_base(config, tmp_path):
    parsed = validate(DPOBaselineConfig, config | {"model": config["model"] | {"method": "lora"}}, "test")
    version = train_dpo(parsed, PAIRS, [], [{"name": "votes.jsonl"}])
    assert version.manifest.base is not None and (version.path / "adapter_config.json").exists()
    load_policy(find_model(version.ref, Registry(config["registry"]["path"]), role="policy"))


def test_without_a_decided_pair_nothing_is_trained(config):
    parsed = validate(DPOBaselineConfig, config, "test")
    with pytest.raises(DataError, match="none of the 1 training pairs is left: each is a tie"):
        train_dpo(parsed, [Comparison(PROMPTS[0], "a", "b", votes(1, 1))], [], [])


def test_the_command_trains_on_a_file_and_refuses_an_unknown_key(config, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "chosen": "good answer", "rejected": "bad"}) + "\n" for i in range(8))
    )
    common = ["baseline", "dpo", config["model"]["name"], str(data), "--name", "by-command"]
    registry = ["--registry", config["registry"]["path"]]
    refused = CliRunner().invoke(app, [*common, "training.betta=1", *registry])
    assert refused.exit_code == 2 and "did you mean 'training.beta'" in refused.output
    done = CliRunner().invoke(app, [*common, "training.max_steps=1", "data.eval_share=0", *registry, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == "by-command@v1"


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("training", {"save_steps": 5}, "training.save_steps"),
        ("training", {"load_best_model_at_end": True}, "training.load_best_model_at_end"),
        ("tracking", {"wandb": "offline"}, "tracking.wandb"),
        ("data", {"too_long": "drop"}, "data.too_long"),
    ],
)
def test_what_it_does_not_read_is_refused_by_name(config, section, values, named):
    parsed = validate(DPOBaselineConfig, config | {section: config.get(section, {}) | values}, "test")
    with pytest.raises(ConfigError, match=f"{named}: alignment baseline dpo does not read it"):
        train_dpo(parsed, PAIRS, [], [])


def test_several_processes_are_refused(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs on one process"):
        train_dpo(validate(DPOBaselineConfig, config, "test"), PAIRS, [], [])
