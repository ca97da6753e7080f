"""Each file of configs/accelerate starts a run on CPU processes, and what really runs is what the file says."""

import json

import launching
import pytest

ACCELERATE = launching.ROOT / "configs" / "accelerate"
SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "world_size", "stage"),
    [("cpu", 2, 0), ("single", 1, 0), ("ddp", 2, 0), ("zero1", 2, 1), ("zero3-offload", 2, 3), ("multinode", 2, 2)],
)
def test_a_file_starts_what_it_says(tmp_path, name, world_size, stage):
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n}."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "x",
        "model": {"name": "scratch:llama", "scratch": SCRATCH | {"num_attention_heads": 2}},
        "data": {"train": "rows.jsonl", "eval_share": 0, "max_length": 64},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "registry": {"name": "x", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "a.yaml").write_text(json.dumps(config))
    one_node = ["--num_machines", "1", "--num_processes", "2"] if name == "multinode" else []
    done = launching.launch(ACCELERATE / f"{name}.yaml", [*one_node, "-m", "sft", "a.yaml"], tmp_path)
    assert done.code == 0, done.output[-4000:]
    events = [json.loads(line) for line in (tmp_path / "runs/x/events.jsonl").read_text().splitlines()]
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert (backend["world_size"], backend["zero_stage"]) == (world_size, stage)
    assert (backend["engine"] == "DeepSpeedEngine") == (stage > 0)
