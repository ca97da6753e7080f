"""Each method of SFT on two real processes with real DeepSpeed: it learns what one process learns, to rounding."""

import json
import sys
from pathlib import Path

import launching
import pytest
from safetensors.torch import load_file
from test_stages import SCRATCH, write_demonstrations

from alignment.models.methods import METHODS
from alignment.registry import Registry

HERE = Path(__file__).resolve().parent
ZERO3, FSDP2 = (launching.ROOT / "configs" / "accelerate" / f"{name}.yaml" for name in ("zero3", "fsdp2"))
BACKENDS = {
    "DDP": ("DistributedDataParallel", 0),
    "ZeRO-2": ("DeepSpeedEngine", 2),
    "ZeRO-3": ("DeepSpeedEngine", 3),
    "FSDP2": ("FSDP2", 0),
}
# Going on with a published adapter, and a new one on it merged.
AGAIN = {"lora-again": ("lora", "one-lora"), "loha-again": ("loha", "one-loha"), "qlora-on-lora": ("qlora", "one-lora")}
ALLOWED = {backend: [name for name, method in METHODS.items() if backend not in method.fails] for backend in BACKENDS}


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
    runs = {method: (method, "start") for method in METHODS} | AGAIN
    for run, (method, model) in runs.items():
        write_config(house, f"one-{run}", method, 8, {"name": model})
    alone(house, *(f"one-{run}" for run in runs))
    return {run: weights(house, f"one-{run}") for run in runs}


@pytest.fixture(scope="module", params=BACKENDS)
def two_processes(request, house, one_process):
    """Every method that the matrix allows there, on two processes; that they really ran so is checked."""
    backend = request.param
    (house / "ddp.yaml").write_text(launching.DDP)
    launch_file = {"DDP": house / "ddp.yaml", "ZeRO-2": launching.ZERO2, "ZeRO-3": ZERO3, "FSDP2": FSDP2}[backend]
    again = {run: each for run, each in AGAIN.items() if each[0] in ALLOWED[backend]}
    runs = {method: (method, "start") for method in ALLOWED[backend]} | again
    names = {run: f"{backend}-{run}".lower() for run in runs}
    for run, (method, model) in runs.items():
        write_config(house, names[run], method, 4, {"name": model})
    files = [f"{name}.json" for name in names.values()]
    done = launching.launch(launch_file, [str(HERE / "sft_worker.py"), *files], house)
    assert done.code == 0, done.output[-4000:]
    for name in names.values():
        events = [json.loads(line) for line in (house / "runs" / name / "events.jsonl").read_text().splitlines()]
        (ran,) = [event for event in events if event["event"] == "backend"]
        assert (ran["engine"], ran["zero_stage"], ran["world_size"]) == (*BACKENDS[backend], 2)
    return {run: weights(house, name) for run, name in names.items()}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(two_processes, one_process, subtests):
    for run, ours in two_processes.items():
        with subtests.test(run=run):
            theirs = one_process[run]
            assert theirs.keys() <= ours.keys()  # DeepSpeed saves a head beside the embeddings that it shares
            assert all(ours[name].shape == theirs[name].shape for name in theirs)  # AdaLoRA cut the same ranks
            assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs if theirs[name].numel()) < 1e-4
            if run == "adalora":
                assert {len(value) for name, value in ours.items() if "lora_E" in name} != {12}


def test_a_method_that_deepspeed_cannot_run_is_refused_before_anything_is_read(tmp_path):
    write_config(tmp_path, "refused", "adalora", 4)
    done = launching.launch(launching.ZERO2, ["-m", "sft", "refused.json"], tmp_path)
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert "model.method=adalora does not work with ZeRO-2" in line
    assert "use model.method=lora" in line
