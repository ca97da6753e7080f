"""Each stage on two real processes with real DeepSpeed, and PPO's arithmetic on one process, two, and two with ZeRO-2.

The first use of DeepSpeed on a machine compiles a small extension, for up to two minutes.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path

import launching
import pytest
import torch
from safetensors.torch import load_file

from alignment.generation.engine import complete
from alignment.models.policies import load_policy
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import encode_conversation

HERE = Path(__file__).resolve().parent
TOPICS = ("cards", "fines", "rooms", "loans", "hours", "maps", "films", "games")
SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def turn(role, content):
    return {"role": role, "content": content}


def question(number):
    return f"{'What about ' if number % 2 else 'Tell me of '}{TOPICS[number % 8]}, number {number}?"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Data and a folder in which the three stages run one after the other."""
    folder = tmp_path_factory.mktemp("house")
    demonstrations, pairs, prompts = [], [], []
    for number in range(16):
        prompt, answer = question(number), f"The {TOPICS[number % 8]} are on floor {number}."
        demonstrations.append({"messages": [turn("user", prompt), turn("assistant", answer)]})
        pairs.append({"prompt": prompt, "chosen": answer, "rejected": "No."})
        prompts.append({"prompt": prompt})
    for name, rows in (("sft", demonstrations), ("reward", pairs), ("ppo", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_stage(house, stage, sections):
    """Launch one stage under ZeRO-2 with its training rows recorded; (events, rows of each process)."""
    config = {
        "name": stage,
        "data": {"train": f"{stage}.jsonl", "eval_share": 0, "max_length": 96},
        "registry": {"name": stage, "path": "registry"},
        "tracking": {"wandb": "disabled"},
        **sections,
    }
    (house / f"{stage}.yaml").write_text(json.dumps(config))  # JSON is YAML
    rows = house / f"rows-{stage}"
    rows.mkdir()
    target = [str(HERE / "record_rows.py"), stage, f"{stage}.yaml"]
    done = launching.launch(launching.ZERO2, target, house, ROWS=str(rows))
    assert done.code == 0, done.output[-4000:]
    events = [json.loads(line) for line in (house / "runs" / stage / "events.jsonl").read_text().splitlines()]
    seen = [[json.loads(line) for line in (rows / f"{rank}.jsonl").read_text().splitlines()] for rank in range(2)]
    assert json.loads((house / "runs" / stage / "exit.json").read_text())["code"] == 0
    return events, seen


def check_backend(events):
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert {name: backend[name] for name in ("engine", "world_size", "zero_stage")} == {
        "engine": "DeepSpeedEngine",
        "world_size": 2,
        "zero_stage": 2,
    }


def check_rows(seen, expected):
    """Both processes trained, on rows that the other did not have, and together on every row once."""
    shares = [{tuple(row["ids"]) for row in rows} for rows in seen]
    assert all(shares)
    assert not shares[0] & shares[1]
    assert [len(rows) for rows in seen] == [expected // 2, expected // 2]
    assert len(shares[0] | shares[1]) == expected


@pytest.fixture(scope="module")
def sft(house):
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    return run_stage(house, "sft", {"model": {"name": "scratch:llama", "scratch": SCRATCH}, "training": training})


@pytest.fixture(scope="module")
def reward(house, sft):
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    return run_stage(house, "reward", {"model": {"name": "sft"}, "training": training})


@pytest.fixture(scope="module")
def ppo(house, reward):
    sections = {
        "model": {"policy": "sft", "reward": "reward"},
        "rollout": {"batch_size": 8, "max_new_tokens": 8},
        "ppo": {"num_minibatches": 2},
        "training": {"max_steps": 2, "microbatch_tokens": 60, "learning_rate": 1e-3},
    }
    return run_stage(house, "ppo", sections)


def can_answer(house, name):
    source = find_model(name, Registry(house / "registry"), role="policy")
    policy, tokenizer = load_policy(source), load_tokenizer(source)
    prompts = [[turn("user", question(number))] for number in (0, 3)]
    answers = complete(policy, tokenizer, prompts, max_new_tokens=4)
    return [len(answer.ids) for answer in answers]


def test_sft_on_two_processes(house, sft):
    events, seen = sft
    check_backend(events)
    check_rows(seen, 16)
    assert all(0 < length <= 4 for length in can_answer(house, "sft@v1"))


def test_the_reward_model_on_two_processes(house, reward):
    events, seen = reward
    check_backend(events)
    check_rows(seen, 32)  # both sides of sixteen pairs
    source = find_model("reward@v1", Registry(house / "registry"), role="reward")
    tokenizer = load_tokenizer(source)
    ids = encode_conversation(tokenizer, [turn("user", question(1)), turn("assistant", "No.")]).input_ids
    with torch.no_grad():
        score = load_scalar_model(source).score(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
    assert score.shape == (1,)
    assert torch.isfinite(score).all()


def test_ppo_on_two_processes(house, ppo):
    events, seen = ppo
    check_backend(events)
    check_rows(seen, 16)  # two iterations of eight prompts
    for step in (0, 1):
        assert [sum(row["step"] == step for row in rows) for rows in seen] == [4, 4]
    registry = Registry(house / "registry")
    before, after = (load_policy(find_model(name, registry, role="policy")) for name in ("sft@v1", "ppo@v1"))
    pairs = list(zip(before.state_dict().values(), after.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(0 < length <= 4 for length in can_answer(house, "ppo@v1"))
    parents = {parent.role: parent.ref for parent in registry.resolve("ppo").manifest.parents}
    assert parents == {"init": "sft@v1", "reference": "sft@v1", "reward": "reward@v1", "value": "reward@v1"}
    lines = (house / "runs" / "ppo" / "metrics.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, lines) if "policy/first_ratio" in row)
    assert first["policy/first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert first["rollout/kl"] == pytest.approx(0.0, abs=1e-5)


# --- the same numbers on any number of processes --------------------------------------------------------------------


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Rows of very unequal lengths: 24 to train on, which are three steps of eight, and 5 held out."""
    folder = tmp_path_factory.mktemp("ladder")
    for name, numbers in (("train", range(24)), ("eval", range(24, 29))):
        rows = [{"prompt": question(n), "completion": f"On floor {n}" + " or so" * (n * 7 % 12)} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sft_steps(folder, name, launcher, processes):
    """Six optimizer steps of eight rows, two batches to a step; (journal, events, weights, rows of each process)."""
    training = {
        "max_steps": 6,
        "logging_steps": 1,
        "per_device_train_batch_size": 4 // processes,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-4,  # the default turns rounding of a gradient near zero into a whole step
        "eval_strategy": "steps",
        "eval_steps": 6,
        "seed": 1,
    }
    config = {
        "name": name,
        "model": {"name": "scratch:llama", "scratch": SCRATCH},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 96},
        "training": training,
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    rows = folder / f"rows-{name}"
    rows.mkdir()
    target = [str(HERE / "record_rows.py"), "sft", f"{name}.yaml"]
    if launcher is None:
        done = launching.run([sys.executable, *target], folder, RANK="0", ROWS=str(rows))
    else:  # blocks of eight tokens, so that the two processes have unlike numbers of them
        done = launching.launch(launcher, target, folder, ROWS=str(rows), LOGITS_AT_ONCE=str(8 * SCRATCH["vocab_size"]))
    assert done.code == 0, done.output[-4000:]
    run = folder / "runs" / name
    logged, events, samples = (
        [json.loads(line) for line in (run / f"{file}.jsonl").read_text().splitlines()]
        for file in ("metrics", "events", "samples")
    )
    assert samples and not [event for event in events if event["event"] == "no_samples"]
    weights = load_policy(find_model(name, Registry(folder / "registry"), role="policy")).state_dict()
    seen = [
        [json.loads(line) for line in (rows / f"{rank}.jsonl").read_text().splitlines()] for rank in range(processes)
    ]
    return logged, events, weights, seen


@pytest.fixture(scope="module")
def ladder_alone(ladder):
    return sft_steps(ladder, "alone", None, 1)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("ddp", "DistributedDataParallel"),
        pytest.param("zero2", "DeepSpeedEngine", marks=pytest.mark.slow),
        ("zero3", "DeepSpeedEngine"),
    ],
)
def test_packed_sft_on_two_processes_makes_the_steps_of_one(ladder, ladder_alone, name, engine):
    """The loss is over the tokens of a step, wherever they are; under ZeRO-3 the output layer's weight is spread."""
    zero3 = launching.ZERO2.read_text().replace("zero_stage: 2", "zero_stage: 3\n  zero3_save_16bit_model: true")
    launcher = launching.ZERO2
    if name != "zero2":
        launcher = ladder / f"{name}-launch.yaml"
        launcher.write_text(launching.DDP if name == "ddp" else zero3)
    logged, events, weights, seen = sft_steps(ladder, name, launcher, 2)
    (backend,) = [event for event in events if event["event"] == "backend"]
    zero_stage = {"ddp": 0, "zero2": 2, "zero3": 3}[name]
    assert (backend["engine"], backend["world_size"], backend["zero_stage"]) == (engine, 2, zero_stage)
    assert [event["packed"] for event in events if event["event"] == "batches"] == [True]
    for step in range(6):
        shares = [{tuple(row["ids"]) for row in rows if row["step"] == step} for rows in seen]
        assert [len(share) for share in shares] == [4, 4]
        assert not shares[0] & shares[1]
        assert len(shares[0] | shares[1]) == 8
    one, _, one_weights, (one_seen,) = ladder_alone
    assert len({tuple(row["ids"]) for row in one_seen if row["step"] < 3}) == 24  # each row once an epoch
    for figure in ("train/loss", "train/grad_norm", "train/num_tokens", "train/mean_token_accuracy", "eval/loss"):
        expected = [row[figure] for row in one if figure in row]
        assert expected
        assert [row[figure] for row in logged if figure in row] == pytest.approx(expected, rel=1e-4), figure
    assert weights.keys() == one_weights.keys()
    for weight, value in one_weights.items():
        torch.testing.assert_close(weights[weight], value, atol=1e-5, rtol=1e-3)


CLIPPED = "training.max_grad_norm=0.2"
RLOO = ('ppo.advantage_estimator="rloo"', "rollout.num_generations=4", "critic=none")
VARIANTS = {"separate": (CLIPPED,), "trunk": (CLIPPED, "critic=trunk"), "rloo": (CLIPPED, *RLOO)}
# One response at a time, so that a process whose responses are short makes fewer passes.
VARIANTS |= {"early": (CLIPPED, "rollout.generation_batch_size=1")}


def work(folder, config, *overrides):
    """Run the worker; (weights, report)."""
    folder.mkdir()
    target = [str(HERE / "ppo_worker.py"), str(folder), *overrides]
    done = launching.launch(config, target, folder) if config else launching.run([sys.executable, *target], folder)
    assert done.code == 0, done.output[-4000:]
    return load_file(folder / "weights.safetensors"), json.loads((folder / "report.json").read_text())


def launch_file(folder, backend):
    if backend == "zero3":
        return launching.deepspeed_file(folder, "launch", **launching.PARTED)
    if backend == "fsdp2":
        return launching.ROOT / "configs" / "accelerate" / "fsdp2.yaml"
    (folder / "launch.yaml").write_text(launching.DDP if backend == "multi" else launching.ZERO2.read_text())
    return folder / "launch.yaml"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process does, of each variant once."""
    return functools.cache(lambda name: work(tmp_path_factory.mktemp(name) / "out", None, *VARIANTS[name]))


@pytest.mark.parametrize(
    ("backend", "variant"),
    [
        ("zero2", "trunk"),
        pytest.param("multi", "separate", marks=pytest.mark.slow),
        pytest.param("zero2", "separate", marks=pytest.mark.slow),
        pytest.param("multi", "rloo", marks=pytest.mark.slow),
        pytest.param("zero3", "early", marks=pytest.mark.slow),
        pytest.param("fsdp2", "early", marks=pytest.mark.slow),
        pytest.param("fsdp2", "separate", marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_what_one_does(tmp_path, alone, backend, variant):
    """Three iterations from sampling to clipped optimizer steps, with unequal lengths, other numbers of microbatches on
    each process and rates that fall: weights and figures agree. Each step has backward passes over policy and critic
    apart, so that DeepSpeed meets passes in which some parameters have no gradient."""
    launcher = launch_file(tmp_path, backend)
    weights, report = work(tmp_path / "out", launcher, *VARIANTS[variant])
    engine = {"multi": "PolicyAndValue", "fsdp2": "FSDP2"}.get(backend, "DeepSpeedEngine")
    stage = {"zero2": 2, "zero3": 3}.get(backend, 0)
    assert (report["engine"], report["world_size"], report["zero_stage"]) == (engine, 2, stage)
    one_weights, one = alone(variant)
    assert one["world_size"] == 1
    for (first, second), (whole,) in zip(report["own"], one["own"], strict=True):
        assert first + second == whole  # the processes' rows are disjoint, and all of them
        assert len(first) == len(second)
    assert not report["training_mode"]  # no dropout
    assert report["rates"] == [pytest.approx(rates) for rates in one["rates"]]
    assert report["rates"][1][0] == pytest.approx(1e-3 / 3)  # it falls over three iterations
    for ours, theirs in zip(report["stats"], one["stats"], strict=True):
        # A count of tokens at the edge of a clip may differ by rounding.
        exact = {name: value for name, value in theirs.items() if "clip_fraction" not in name}
        assert {name: ours[name] for name in exact} == pytest.approx(exact, rel=1e-3, abs=1e-5)
        assert ours["train/grad_norm"] > 0.2  # clipping is in play
    moved = max(float((one_weights[name] - start).abs().max()) for name, start in tiny_start(variant).items())
    apart = max(float((one_weights[name] - weights[name]).abs().max()) for name in one_weights)
    assert weights.keys() == one_weights.keys()
    assert moved > 1e-3
    assert apart < 1e-5


def tiny_start(variant):
    from helpers.digits import build_models

    critic = {"trunk": "trunk", "rloo": None}.get(variant, "separate")
    return build_models(ref_seed=1, critic=critic).trained.state_dict()


STOPPED = ["multi", "zero2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero3", "fsdp2"))]


@pytest.mark.parametrize("backend", STOPPED)
def test_what_is_not_finite_on_one_process_stops_both_and_reaches_no_weight(tmp_path, backend):
    _, report = work(tmp_path / "out", launch_file(tmp_path, backend), "spoil=1")
    assert report["world_size"] == 2
    assert report["refused"] == ["training diverged at iteration 1"] * 2
    assert report["unchanged"] == [True, True]


@pytest.mark.parametrize("backend", STOPPED)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_step_that_is_not_finite_on_one_process_is_skipped_on_both(resumed_house, forks_of, tmp_path, stage, backend):
    """Two such steps are skipped; three in a row end the run."""
    from resuming import configure

    call, ends = forks_of(launch_file(tmp_path, backend)), {"1:2,3": 0, "1:3,4,5": 2}
    for spoil, expected in ends.items():
        run = f"{stage}-{backend}-spoiled{expected}"
        training = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0}
        config = configure(resumed_house, run, stage, {"model": {"name": "base"}, "training": training})
        rows = tmp_path / run
        rows.mkdir()
        code = call(resumed_house, stage, [config], RECORDER="spoil_steps", SPOIL=spoil, ROWS=str(rows))
        assert code == expected, (resumed_house / "log.txt").read_text()[-4000:]
        for rank in range(2):
            before = json.loads((rows / f"shards-{rank}.json").read_text())
            kept = [step for step in range(1, len(before)) if before[step - 1] == before[step]]
            assert kept == {0: [2, 3], 2: [3, 4]}[expected]
        lines = (resumed_house / "runs" / run / "events.jsonl").read_text().splitlines()
        skipped = [row["step"] for row in map(json.loads, lines) if row["event"] == "step_skipped"]
        assert skipped == {0: [2, 3], 2: [3, 4, 5]}[expected]
    report = json.loads((resumed_house / "runs" / run / "bad_batch.json").read_text())
    assert [len(process["rows"]) for process in report["processes"]] == [2, 2]
    losses = [float(process["losses"][0]) for process in report["processes"]]
    assert [math.isfinite(loss) for loss in losses] == [True, False]


@pytest.mark.slow
def test_bfloat16_under_deepspeed_starts_at_ratio_one_and_kl_zero(tmp_path):
    """DeepSpeed rounds the trained weights; the reference has to be rounded with them."""
    _, report = work(tmp_path / "out", launching.ZERO2, "training.bf16=true")
    assert report["engine"] == "DeepSpeedEngine"
    assert report["stats"][0]["rollout/kl"] == pytest.approx(0.0, abs=1e-6)
    assert report["stats"][0]["policy/first_ratio"] == pytest.approx(1.0, abs=1e-2)


def test_ppo_on_nvme_is_refused_in_one_line(tmp_path):
    """Before anything is read or loaded: neither the models nor the data it names exist."""
    nvme = {"device": "nvme", "nvme_path": str(tmp_path)}
    launcher = launching.deepspeed_file(tmp_path, "launch", stage=3, offload_param=nvme)
    config = {
        "name": "refused",
        "model": {"policy": "nothing", "reward": "nothing"},
        "data": {"train": "nothing.jsonl"},
        "registry": {"name": "refused", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "ppo.yaml").write_text(json.dumps(config))
    done = launching.launch(launcher, ["-m", "ppo", "ppo.yaml"], tmp_path)
    assert done.code != 0
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert "NVMe" in line
    assert "offload_param_device: cpu" in line
    assert json.loads((tmp_path / "runs" / "refused" / "exit.json").read_text())["code"] == 2
