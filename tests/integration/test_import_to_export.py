"""A model from elsewhere, trained here and taken out again: plain transformers, without this suite, gives the same."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file
from test_stages import ROOT, write_demonstrations

from alignment.models.export import export
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import Message, encode_prompt

PROMPT = "Question 3\u2028here?"
# What a user does with an exported folder, in a process where importing any part of the suite fails.
OUTSIDE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("alignment", "sft", "reward", "ppo"):
            raise ImportError(f"{name} is not on this machine")

sys.meta_path.insert(0, Absent())
import json
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

folder, kind, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}[kind].from_pretrained(folder)
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Question 3\\u2028here?"}], add_generation_prompt=True, return_dict=True,
    return_tensors="pt",
)
with torch.no_grad():
    found = {"ids": ids["input_ids"], "logits": model(**ids).logits}
    if kind == "policy":
        found["tokens"] = model.generate(**ids, max_new_tokens=24, do_sample=False)
torch.save(found, out)
try:
    import alignment
except ImportError as error:
    assert "not on this machine" in str(error)
else:
    raise AssertionError("the suite could be imported")
assert not [name for name in sys.modules if name.split(".")[0] in ("alignment", "sft", "reward", "ppo")]
"""


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ALIGNMENT_REGISTRY": str(folder / "registry")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outside(tmp_path, exported, kind):
    """Logits and tokens of an exported folder by plain transformers, with only the site-packages to import from."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", OUTSIDE, str(exported), kind, str(tmp_path / "found.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An imported model with pickled weights, an adapter that SFT trained on it, and a reward model on that."""
    folder = tmp_path_factory.mktemp("house")
    tokenizer = tiny.make_tokenizer()
    theirs = tiny.write(folder / "theirs", tiny.make_policy(tokenizer), tokenizer)
    torch.save(load_file(theirs / "model.safetensors"), theirs / "pytorch_model.bin")
    (theirs / "model.safetensors").unlink()
    run(folder, sys.executable, "-m", "alignment.cli.main", "models", "import", str(theirs), "theirs")
    write_demonstrations(folder / "rows.jsonl")
    pairs = [{"prompt": f"Question {n}?", "chosen": f"Answer {n}.", "rejected": "No."} for n in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for stage, start, data in (("sft", "theirs", "rows.jsonl"), ("reward", "tuned-sft", "pairs.jsonl")):
        config = {
            "name": f"tuned-{stage}",
            "model": {"name": start, "method": "lora" if stage == "sft" else "full"},
            "data": {"train": data, "eval_share": 0.2, "max_length": 128},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
            "registry": {"name": f"tuned-{stage}"},
            "tracking": {"wandb": "disabled"},
        }
        (folder / f"{stage}.yaml").write_text(json.dumps(config))
        run(folder, sys.executable, "-m", stage, f"{stage}.yaml")
    return folder


def test_import_train_an_adapter_export_merged_and_load_without_the_suite(house, tmp_path):
    registry = Registry(house / "registry")
    version = registry.resolve("tuned-sft")
    assert version.manifest.base is not None and version.manifest.base.ref == "theirs@v1"
    assert {file for file in version.manifest.files if "safetensors" in file} == {"adapter_model.safetensors"}
    export("tuned-sft", tmp_path / "out", registry)
    found = outside(tmp_path, tmp_path / "out", "policy")

    source = find_model("tuned-sft", registry, "policy")
    tokenizer, policy = load_tokenizer(source), load_policy(source).eval()
    ids = torch.tensor([encode_prompt(tokenizer, [Message(role="user", content=PROMPT)])])
    assert torch.equal(found["ids"], ids)
    with torch.no_grad():
        ours = policy(input_ids=ids).logits
    assert (found["logits"] - ours).abs().max() <= 1e-5 * max(1.0, float(ours.abs().max()))
    greedy = ids
    with torch.no_grad():
        for _ in range(found["tokens"].shape[1] - ids.shape[1]):
            greedy = torch.cat([greedy, policy(input_ids=greedy).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(found["tokens"], greedy)
    with torch.no_grad():  # the adapter has changed what the model says
        base = load_policy(find_model("theirs", registry, "policy"))(input_ids=ids).logits
    assert (base - ours).abs().max() > 1e-3


@pytest.mark.parametrize("ref", ["tuned-sft", "theirs"])
def test_an_exported_policy_has_what_a_server_needs(house, tmp_path, ref):
    """vLLM asks for the architecture, the weights, a tokenizer with its template, and where generation ends."""
    export(ref, tmp_path / "out", Registry(house / "registry"))
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_bytes())
    assert generation["eos_token_id"] == config["eos_token_id"] is not None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template and tokenizer.eos_token_id == config["eos_token_id"]
    assert len(tokenizer) <= config["vocab_size"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "auto_map" not in config and not [name for name in names if name.endswith((".py", ".bin"))]


def test_an_exported_reward_model_scores_higher_by_the_constant_that_its_readme_names(house, tmp_path):
    registry = Registry(house / "registry")
    export("tuned-reward", tmp_path / "out", registry)
    found = outside(tmp_path, tmp_path / "out", "reward")
    source = find_model("tuned-reward", registry, "reward")
    ours = load_scalar_model(source, trained=True).eval()
    with torch.no_grad():
        score = ours.score(found["ids"], torch.ones_like(found["ids"], dtype=torch.bool))
    readme = (tmp_path / "out" / "README.md").read_text()
    (constant,) = [float(part.split()[0]) for part in readme.split("are higher by ")[1:]]
    assert abs(constant) > 1e-3
    assert abs(float(found["logits"][0, 0]) - constant - float(score)) <= 1e-5 * max(1.0, abs(float(score)))
