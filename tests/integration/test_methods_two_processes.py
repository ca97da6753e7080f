"""Each method of SFT on two real processes with real DeepSpeed: it learns what one process learns, to rounding."""

import json
import sys
from pathlib import Path

import launching
import pytest
from safetensors.torch import load_file
from test_stages import SCRATCH, write_demonstrations

from alignment.methods import METHODS
from alignment.registry import Registry

HERE = Path(__file__).resolve().parent
ZERO3 = launching.ROOT / "configs" / "accelerate" / "zero3.yaml"
ALLOWED = [name for name, method in METHODS.items() if "ZeRO-2" not in method.fails]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Demonstrations, and a policy trained on them from which every method goes on."""
    folder = tmp_path_factory.mktemp("house")
    write_demonstrations(folder / "train.jsonl", 32)
    write_config(folder, "start", "full", 8, {"name": "scratch:llama", "scratch": SCRATCH})
    alone(folder, "start")
    return folder


def write_config(folder, name, method, batch, model=None):
    config = {
        "name": name,
        "model": (model or {"name": "start"}) | {"method": method},
        "data": {"train": "train.jsonl", "eval_share": 0, "max_length": 96},
        "training": {"max_steps": 4, "per_device_train_batch_size": batch, "learning_rate": 1e-2},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (folder / f"{name}.json").write_text(json.dumps(config))


def alone(folder, *names):
    files = [f"{name}.json" for name in names]
    done = launching.run([sys.executable, str(HERE / "sft_worker.py"), *files], folder)
    assert done.code == 0, done.output[-4000:]


def weights(folder, name):
    (file,) = Registry(folder / "registry").resolve(name).path.glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def one_process(house):
    for method in ALLOWED:
        write_config(house, f"one-{method}", method, 8)
    alone(house, *(f"one-{method}" for method in ALLOWED))
    return {method: weights(house, f"one-{method}") for method in ALLOWED}


def launched(house, config, backend, methods):
    """Run the methods on two processes; the weights, and what really ran must be `backend`: engine, ZeRO stage."""
    names = {method: f"{backend[0]}{backend[1]}-{method}".lower() for method in methods}
    for method, name in names.items():
        write_config(house, name, method, 4)
    done = launching.launch(config, [str(HERE / "sft_worker.py"), *(f"{name}.json" for name in names.values())], house)
    assert done.code == 0, done.output[-4000:]
    for name in names.values():
        events = [json.loads(line) for line in (house / "runs" / name / "events.jsonl").read_text().splitlines()]
        (ran,) = [event for event in events if event["event"] == "backend"]
        assert (ran["engine"], ran["zero_stage"], ran["world_size"]) == (*backend, 2)
    return {method: weights(house, name) for method, name in names.items()}


@pytest.fixture(scope="module", params=[2, 3])
def two_processes(request, house):
    config = {2: launching.ZERO2, 3: ZERO3}[request.param]
    return launched(house, config, ("DeepSpeedEngine", request.param), ALLOWED)


def check_same(ours, theirs):
    assert theirs.keys() <= ours.keys()  # DeepSpeed saves a head beside the embeddings that it shares
    apart = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs)
    assert apart < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", ALLOWED)
def test_two_processes_learn_what_one_does(two_processes, one_process, method):
    check_same(two_processes[method], one_process[method])


@pytest.mark.slow
def test_adalora_cuts_the_same_ranks_on_two_processes_without_deepspeed(house, tmp_path):
    write_config(house, "one-adalora", "adalora", 8)
    alone(house, "one-adalora")
    (tmp_path / "ddp.yaml").write_text(launching.DDP)
    found = launched(house, tmp_path / "ddp.yaml", ("DistributedDataParallel", 0), ["adalora"])
    check_same(found["adalora"], weights(house, "one-adalora"))
    assert {len(value) for name, value in found["adalora"].items() if "lora_E" in name} != {12}


def test_a_method_that_deepspeed_cannot_run_is_refused_before_anything_is_read(tmp_path):
    write_config(tmp_path, "refused", "adalora", 4)
    done = launching.launch(launching.ZERO2, ["-m", "sft", "refused.json"], tmp_path)
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert "model.method=adalora does not work with ZeRO-2" in line
    assert "use model.method=lora" in line
