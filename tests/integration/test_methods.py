"""Each method as a user meets it: train from scratch, publish, load, go on from it, generate, export."""

import json

import pytest
from test_stages import SCRATCH, write_demonstrations

from alignment.config.loading import validate
from alignment.config.sections import ADAPTERS
from alignment.generation.engine import complete
from alignment.models.export import TOLERANCE, export
from alignment.models.methods import METHODS
from alignment.models.policies import load_policy
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    write_demonstrations(folder / "sft.jsonl", 48)
    pairs = [{"prompt": f"Question {n}?", "chosen": f"Answer {n * 7}.", "rejected": "No."} for n in range(24)]
    (folder / "reward.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def run(house, stage, name, model):
    """One run of a stage in this process; (metrics, events)."""
    import reward.train
    import sft.train
    from reward.config import RewardStageConfig
    from sft.config import SFTStageConfig

    values = {
        "name": name,
        "model": model,
        "data": {"train": str(house / f"{stage}.jsonl"), "eval_share": 0.2, "max_length": 96},
        "training": {"max_steps": 8 if stage == "sft" else 30, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "registry": {"name": name.partition("-")[0], "path": str(house / "registry")},
        "tracking": {"runs": str(house / "runs"), "wandb": "disabled"},
    }
    cls, train = {"sft": (SFTStageConfig, sft.train.train), "reward": (RewardStageConfig, reward.train.train)}[stage]
    config = validate(cls, values, name)
    config.run_dir.mkdir(parents=True)
    metrics = train(config)["metrics"]
    return metrics, [json.loads(line) for line in (config.run_dir / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_from_scratch_to_an_export(house, method):
    scratch = {"name": "scratch:llama", "scratch": SCRATCH, "method": method}
    first, events = run(house, "sft", f"{method}-1", scratch)
    (started,) = [event for event in events if event["event"] == "method"]
    second, _ = run(house, "sft", f"{method}-2", {"name": method, "method": method})
    assert second["eval_loss"] < first["eval_loss"]
    registry = Registry(house / "registry")
    versions = registry.versions(method)
    for version in versions:
        files = {file for file in version.manifest.files if file.endswith(".safetensors")}
        assert files == {"adapter_model.safetensors" if method in ADAPTERS else "model.safetensors"}
        assert version.parent("init").ref == (f"{method}-base@v1" if version.number == 1 else f"{method}@v1")
    if method in ADAPTERS:  # the same adapter went on; AdaLoRA's ranks are spent, and a new one started on the merged
        onto = f"{method}@v1" if method == "adalora" else f"{method}-base@v1"
        assert versions[1].manifest.base.ref == onto
    if method == "adalora":
        assert (started["ranks"], first["ranks"]) == (7 * 12, 7 * 8)
    source = find_model(method, registry, "policy")
    (answer,) = complete(
        load_policy(source), load_tokenizer(source), [[{"role": "user", "content": "Question 1?"}]], max_new_tokens=4
    )
    assert 0 < len(answer.ids) <= 4
    report = export(method, house / "exported" / method, registry)
    assert report.get("logits_difference", 0.0) <= TOLERANCE


@pytest.fixture(scope="module")
def start(house):
    """An adapter version, from which reward models start."""
    run(house, "sft", "start", {"name": "scratch:llama", "scratch": SCRATCH, "method": "lora"})
    return "start"


@pytest.mark.parametrize("method", ["head", "lora", "qlora", "adalora"])
def test_a_reward_model_by_a_method_is_published_as_a_policy_is(house, start, method):
    metrics, _ = run(house, "reward", f"reward-{method}", {"name": start, "method": method})
    version = Registry(house / "registry").load("reward", role="reward")
    base = Registry(house / "registry").resolve(start)
    weights = {name for name in version.manifest.files if name.endswith(".safetensors")}
    if method == "head":
        assert (weights, version.manifest.base) == ({"model.safetensors"}, None)
    else:
        assert weights == {"adapter_model.safetensors"}
        assert (version.manifest.base.ref, version.manifest.base.digest) == (base.ref, base.digest)
    if method in ("lora", "qlora"):  # judged on what was loaded again: a merge gone wrong would say nothing
        assert metrics["accuracy"]["value"] == 1.0
