"""The reward stage on two real processes with real DeepSpeed: K answers to a prompt, the steps of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import launching
import pytest
import torch
from test_two_processes import SCRATCH, TOPICS, question

from alignment.models.ensembles import load_reward_model
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import find_model
from alignment.registry import Registry

HERE = Path(__file__).resolve().parent
BACKENDS = {"ddp": ("DistributedDataParallel", 0), "zero2": ("DeepSpeedEngine", 2), "zero3": ("DeepSpeedEngine", 3)}


def run(house, stage, name, config, launcher=None):
    """One run of a stage, on one process without a launcher; (metrics, events, published metrics, rows seen)."""
    config = {
        "name": name,
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
        **config,
    }
    (house / f"{name}.yaml").write_text(json.dumps(config))
    rows = house / f"rows-{name}"
    rows.mkdir()
    target = [str(HERE / "record_rows.py"), stage, f"{name}.yaml"]
    if launcher is None:
        done = launching.run([sys.executable, *target], house, RANK="0", ROWS=str(rows))
    else:
        done = launching.launch(launcher, target, house, ROWS=str(rows))
    assert done.code == 0, done.output[-4000:]
    logged, events = (
        [json.loads(line) for line in (house / "runs" / name / f"{file}.jsonl").read_text().splitlines()]
        for file in ("metrics", "events")
    )
    published = Registry(house / "registry").resolve(name).manifest.metrics
    seen = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(rows.iterdir())]
    return logged, events, published, seen


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Rankings of two to four answers of unlike lengths, and an SFT model to start from."""
    folder = tmp_path_factory.mktemp("house")
    demonstrations, rankings, held_out = [], [], []
    for number in range(29):
        answers = [f"On floor {number + place}" + " or so" * ((number + place) * 5 % 7) for place in range(4)]
        answers = answers[: 2 + number % 3]
        ranks = [1 + (place * (1 + number % 2)) % 3 for place in range(len(answers))]
        row = {"prompt": question(number), "completions": answers, "ranks": ranks}
        (rankings if number < 24 else held_out).append(row)
        demonstrations.append({"prompt": question(number), "completion": f"The {TOPICS[number % 8]}: floor {number}."})
    for name, rows in (("sft", demonstrations), ("train", rankings), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    model = {"name": "scratch:llama", "scratch": SCRATCH}
    run(folder, "sft", "sft", {"model": model, "data": {"train": "sft.jsonl", "eval_share": 0}, "training": training})
    return folder


def reward(house, name, launcher, processes, packing=None, method="full", **more):
    training = {
        "max_steps": 6,
        "logging_steps": 1,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-4,  # the default turns rounding of a gradient near zero into a whole step
        "eval_strategy": "steps",
        "eval_steps": 6,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "random",  # padded rows would be grouped by length
        "seed": 1,
        "packing": packing,
        **more,
    }
    config = {
        "model": {"name": "sft", "method": method},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 96},
        "training": training,
    }
    return run(house, "reward", name, config, launcher)


@pytest.fixture(scope="module")
def alone(house):
    return reward(house, "alone", None, 1)


def weights(house, name):
    return load_scalar_model(find_model(name, Registry(house / "registry"), role="reward")).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "packing"), [(name, None) for name in BACKENDS] + [("zero3", False)])
def test_two_processes_make_the_steps_of_one(house, alone, backend, packing):
    """Losses are over the pairs of a step, wherever they are; each process runs one forward a batch whatever K is."""
    zero3 = launching.ZERO2.read_text().replace("zero_stage: 2", "zero_stage: 3\n  zero3_save_16bit_model: true")
    launcher = house / f"{backend}-launch.yaml"
    launcher.write_text({"ddp": launching.DDP, "zero2": launching.ZERO2.read_text(), "zero3": zero3}[backend])
    name = f"{backend}-{packing}".lower()
    logged, events, published, seen = reward(house, name, launcher, 2, packing)
    of = {event["event"]: event for event in events}
    assert (of["backend"]["engine"], of["backend"]["zero_stage"]) == BACKENDS[backend]
    assert of["backend"]["world_size"] == 2
    assert of["batches"]["layout"] == ("padded" if packing is False else "packed")
    for step in range(6):
        shares = [{tuple(row["ids"]) for row in rows if row["step"] == step} for rows in seen]
        assert not shares[0] & shares[1]
        assert all(shares)
    one, _, one_published, (one_seen,) = alone
    assert {tuple(row["ids"]) for rows in seen for row in rows} == {tuple(row["ids"]) for row in one_seen}
    assert sum(map(len, seen)) == len(one_seen)
    for figure in ("train/loss", "train/grad_norm", "train/accuracy", "eval/loss", "eval/accuracy", "eval/mean_reward"):
        expected = [row[figure] for row in one if figure in row]
        assert expected
        assert [row[figure] for row in logged if figure in row] == pytest.approx(expected, rel=1e-3, abs=1e-5), figure
    assert published["score_bias"] == pytest.approx(one_published["score_bias"], abs=1e-4)
    ours, theirs = weights(house, name), weights(house, "alone")
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-4


@pytest.mark.slow
def test_members_are_trained_one_after_the_other_on_two_processes(house):
    """Each with an engine of its own, to what one process makes."""
    figures, scores = {}, {}
    for name, launcher, processes in (("members-one", None, 1), ("members-two", launching.ZERO2, 2)):
        logged, events, published, _ = reward(house, name, launcher, processes, method="lora", members=2)
        backends = [event for event in events if event["event"] == "backend"]
        assert [(event["world_size"], event.get("member")) for event in backends] == [(processes, None), (processes, 1)]
        if launcher:
            assert all(event["engine"] == "DeepSpeedEngine" for event in backends)
        figures[name] = [row[key] for key in ("train/loss", "member-1/train/loss") for row in logged if key in row]
        assert len(figures[name]) == 12
        source = find_model(name, Registry(house / "registry"), role="reward")
        ids, mask = torch.arange(3, 60).reshape(3, -1), torch.ones(3, 19, dtype=torch.bool)
        with torch.no_grad():
            scores[name] = load_reward_model(source).eval().member_scores(ids, mask)
        assert set(published) >= {"member-0", "member-1"}
    assert figures["members-two"] == pytest.approx(figures["members-one"], rel=1e-3)
    torch.testing.assert_close(scores["members-two"], scores["members-one"], atol=1e-4, rtol=1e-3)
