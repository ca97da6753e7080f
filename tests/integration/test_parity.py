"""Twenty optimizer steps of each stage on two processes against those of one process with the same global batch.

Every cell of stage x method x backend is a real run from its config to what it publishes, in the environment that
`accelerate launch` makes. `scripts/test -m "slow or not slow" tests/integration/test_parity.py --write-table` runs all
of them and writes what it found to docs/development/bench/parity.md; with `-k` it writes the cells that it ran.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import launching
import pytest
from safetensors.torch import load_file
from test_two_processes import SCRATCH, TOPICS, turn

from alignment.registry import Registry

BACKENDS = {
    "ddp": ("DistributedDataParallel", 0),
    "zero1": ("DeepSpeedEngine", 1),
    "zero2": ("DeepSpeedEngine", 2),
    "zero3": ("DeepSpeedEngine", 3),
    "zero3 as shipped": ("DeepSpeedEngine", 3),
    "zero2 offload": ("DeepSpeedEngine", 2),
    "zero3 offload": ("DeepSpeedEngine", 3),
    "fsdp2": ("FSDP2", 0),
}
STEPS = 20
BLOCKS = str(8 * SCRATCH["vocab_size"])
"""Logits at a time on two processes: of eight tokens, so that they have unlike numbers of blocks."""
PAGE = launching.ROOT / "docs" / "development" / "bench" / "parity.md"
MARK, END = "<!-- parity -->", "<!-- end -->"
TRAINER = {
    "max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 3e-3,
    "adam_epsilon": 1e-4,  # the default turns rounding of a gradient near zero into a whole step
    "max_grad_norm": 0.5, "save_steps": 0, "seed": 3,
}  # fmt: skip
PPO = {
    "model": {"policy": "base", "reward": "judge"},
    "rollout": {"batch_size": 8, "max_new_tokens": 6, "num_generations": 2},
    "ppo": {"num_epochs": 2, "num_minibatches": 2, "kl_coef": 0.1, "vf_coef": 0.5},
    "training": {
        "max_steps": STEPS // 4, "learning_rate": 1e-3, "adam_epsilon": 1e-4, "max_grad_norm": 0.5, "save_steps": 0,
        "microbatch_tokens": 60,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One way to run a stage; `more` is put into its config section by section.

    Args:
        replayed: PPO's responses after the first iteration are those of the one process.
        loss, tensor: how far these may be apart.
    """

    stage: str
    method: str
    more: dict[str, Any] = field(default_factory=dict)
    replayed: bool = True
    loss: float = 1e-5
    tensor: float = 1e-4


LORA = {"model": {"method": "lora"}}
SHARED = {"model": {"mode": "shared", "reward": "judge-lora"}}
MERGED = {"model": {"policy": "base-lora", "reward": "judge-lora"}}
"""Policy, critic, reference and reward model are merged while they are loaded, under ZeRO-3 in shards."""
ACCUMULATED = {"training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}
CHECKPOINTED = {"training": {"gradient_checkpointing": True}}
BF16 = {"training": {"bf16": True}}
HEADS = ("on_floor", "brief")
TWO_HEADS = {"data": {"train": "heads.jsonl"}, "reward": {"attributes": HEADS, "demonstrations": "sft.jsonl"}}
BOUND = {
    "model": {"reward": "judge-heads", "reward_weights": {"on_floor": 1.0, "brief": 0.0}},
    "rewards": {"constraints": {"brief": ">= 0.1"}},
}
BEST = {"data": {"eval_share": 0.2}, "training": {"eval_steps": 2, "ema_decay": 0.8}}
ROUNDED = {"loss": 0.02, "tensor": 0.3}
"""DeepSpeed rounds the weights to bfloat16, autocast on one process the arithmetic alone."""
BF16_PPO = {**BF16, "rewards": {"normalize": None}}
"""These tiny models' scores are hardly further apart than bfloat16 rounds them: divided by their spread, rounding alone
would be compared."""
ROUNDED_PPO = {"loss": 0.04, "tensor": 0.3}

MATRIX = {
    "sft full": Case("sft", "full"),
    "sft lora": Case("sft", "lora"),
    "sft head": Case("sft", "head"),
    "reward full": Case("reward", "full"),
    "reward lora": Case("reward", "lora"),
    "reward head": Case("reward", "head"),
    "reward heads": Case("reward", "full", TWO_HEADS),
    "ppo full": Case("ppo", "full"),
    "ppo lora": Case("ppo", "lora", LORA),
    "ppo shared": Case("ppo", "lora", SHARED),
    "ppo heads, bound": Case("ppo", "full", BOUND),
}
MORE = {
    "sft full, accumulated": Case("sft", "full", ACCUMULATED),
    "sft full, checkpointed": Case("sft", "full", CHECKPOINTED),
    "sft full, bf16": Case("sft", "full", BF16, **ROUNDED),
    "reward full, accumulated": Case("reward", "full", ACCUMULATED),
    "reward full, checkpointed": Case("reward", "full", CHECKPOINTED),
    "reward full, bf16": Case("reward", "full", BF16, **ROUNDED),
    "ppo full, checkpointed": Case("ppo", "full", CHECKPOINTED),
    "ppo full, bf16": Case("ppo", "full", BF16_PPO, **ROUNDED_PPO),
    "sft lora, bf16": Case("sft", "lora", BF16, **ROUNDED),
    "reward lora, bf16": Case("reward", "lora", BF16, **ROUNDED),
    "ppo shared, bf16": Case("ppo", "lora", {**SHARED, **BF16_PPO}, **ROUNDED_PPO),
    "ppo qlora": Case("ppo", "qlora", {"model": {"method": "qlora"}}),
    "ppo full, demonstrations": Case("ppo", "full", {"ptx": {"train": "sft.jsonl"}}),
    "ppo full, moving average, best": Case("ppo", "full", BEST, replayed=False),
    "ppo trunk": Case("ppo", "full", {"model": {"value": "trunk"}}),
    "ppo adapter beside": Case("ppo", "full", {"model": {"value": "adapter"}}),
    "ppo full, offload": Case("ppo", "full", {"model": {"offload": True}}),
    "ppo shared, checkpointed": Case("ppo", "lora", SHARED | CHECKPOINTED),
    "ppo full, from adapters": Case("ppo", "full", MERGED),
}
CASES = MATRIX | MORE
COLUMNS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
CELLS = [(case, backend) for case in MATRIX for backend in COLUMNS]
CELLS += [(case, backend) for case in MORE for backend in ("zero2", "zero3")]
CELLS += [(case, "fsdp2") for case in MORE if case != "ppo full, offload"]
CELLS += [("ppo full, moving average, best", "zero3 as shipped")]
CELLS += [("ppo full, demonstrations", f"{backend} offload") for backend in ("zero2", "zero3")]
CORE = {
    ("sft full", "zero3"), ("reward full", "zero3"), ("ppo full", "zero3"), ("ppo shared", "zero2"),
    ("ppo full", "zero1"), ("sft full", "fsdp2"), ("ppo full", "fsdp2"),
}  # fmt: skip
"""Cells that are run every time; the others are slow."""


def config_of(name: str, case: Case, processes: int) -> dict[str, Any]:
    sections = PPO if case.stage == "ppo" else {"model": {"name": "base", "method": case.method}, "training": TRAINER}
    found = {
        "name": name,
        "data": {"train": f"{case.stage}.jsonl", "eval_share": 0, "max_length": 96},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    for part in (sections, case.more):
        found |= {section: {**found.get(section, {}), **values} for section, values in part.items()}
    if case.stage != "ppo":
        found["training"]["per_device_train_batch_size"] //= processes
    return found


@pytest.fixture(scope="module")
def house(tmp_path_factory, forks):
    """Rows of unlike lengths, a base, an adapter on it, and two reward models."""
    folder = tmp_path_factory.mktemp("house")
    questions = [f"What about {TOPICS[n % 8]}, number {n}{' please' * (n % 5)}?" for n in range(40)]
    answers = [f"The {TOPICS[n % 8]} are on floor {n}{' or so' * (n * 7 % 12)}." for n in range(40)]
    asked = list(zip(questions, answers, strict=True))
    rows = {
        "sft": [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in asked],
        "reward": [{"prompt": q, "chosen": a, "rejected": answers[n - 7]} for n, (q, a) in enumerate(asked)],
        "ppo": [{"prompt": q} for q in questions],
        "heads": [
            {"prompt": q, "response_1": a, "response_2": answers[n - 7], "attributes": judged}
            for n, (q, a) in enumerate(asked)
            for judged in [{"on_floor": 2, "brief": (len(a) < len(answers[n - 7])) - (n % 3)}]
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    short = {"training": {"max_steps": 4}}
    start(folder, "base", Case("sft", "full", short | {"model": {"name": "scratch:llama", "scratch": SCRATCH}}), forks)
    start(folder, "judge", Case("reward", "full", short), forks)
    start(folder, "judge-lora", Case("reward", "lora", short), forks)
    start(folder, "base-lora", Case("sft", "lora", short), forks)
    start(folder, "judge-heads", Case("reward", "full", {**short, **TWO_HEADS}), forks)
    return folder


def folder_name(backend: str, case: str) -> str:
    return re.sub(r"\W+", "-", f"{backend} {case}")


def start(folder: Path, name: str, case: Case, call: Any, processes: int = 1, **variables: str) -> None:
    (folder / f"{name}.yaml").write_text(json.dumps(config_of(name, case, processes)))  # JSON is YAML
    (folder / f"rows-{name}").mkdir()
    if processes == 1:
        variables["RANK"] = "0"
    code = call(
        folder, case.stage, [f"{name}.yaml"], RECORDER="record_run", ROWS=str(folder / f"rows-{name}"), **variables
    )
    assert code == 0, (folder / "log.txt").read_text()[-6000:]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class Ran:
    """A run: its losses step by step, its weights, and each process's rows."""

    steps: list[dict[str, float]]
    weights: dict[str, Any]
    rows: list[list[dict[str, Any]]]
    backend: dict[str, Any]


def read(folder: Path, name: str, case: Case, processes: int) -> Ran:
    run, rows = folder / "runs" / name, folder / f"rows-{name}"
    version = Registry(folder / "registry").resolve(name)
    weights = {key: value for file in version.path.glob("*.safetensors") for key, value in load_file(file).items()}
    steps = [row for row in lines_of(run / "metrics.jsonl") if "train/loss" in row]
    if case.stage == "ppo":
        steps = lines_of(rows / "steps.jsonl")
        weights |= load_file(rows / "weights.safetensors")
    (backend,) = [row for row in lines_of(run / "events.jsonl") if row["event"] == "backend"]
    return Ran(steps, weights, [lines_of(rows / f"{rank}.jsonl") for rank in range(processes)], backend)


@pytest.fixture(scope="module")
def one_process(house, forks):
    @functools.cache
    def run(case: str) -> Ran:
        name = folder_name("one", case)
        start(house, name, CASES[case], forks)
        return read(house, name, CASES[case], 1)

    return run


@pytest.fixture(scope="module")
def launch_files(tmp_path_factory):
    folder, zero = tmp_path_factory.mktemp("launch"), launching.ZERO2.read_text()
    texts = {"ddp": launching.DDP, "zero2": zero, "zero1": zero.replace("zero_stage: 2", "zero_stage: 1")}
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    adam, weights = {"offload_optimizer": {"device": "cpu"}}, {"offload_param": {"device": "cpu"}}
    made = {
        "zero3": launching.PARTED,
        "zero2 offload": {"stage": 2, **adam},
        "zero3 offload": {**launching.PARTED, **adam, **weights},
    }
    files = {name: folder / f"{name}.yaml" for name in texts}
    files |= {name: launching.deepspeed_file(folder, name, **zero) for name, zero in made.items()}
    shipped = {"zero3 as shipped": "zero3", "fsdp2": "fsdp2"}
    return files | {name: launching.ROOT / "configs" / "accelerate" / f"{file}.yaml" for name, file in shipped.items()}


LOSSES = {"sft": ("train/loss",), "reward": ("train/loss",), "ppo": ("policy/loss", "policy/ratio", "value/loss")}
NORM = {"sft": "train/grad_norm", "reward": "train/grad_norm", "ppo": "norm"}


def norms(ran: Ran, stage: str) -> list[float]:
    found = [step[NORM[stage]] for step in ran.steps]
    return [norm for of_step in found for norm in of_step] if stage == "ppo" else found  # one a role


def differences(ran: Ran, one: Ran, stage: str) -> tuple[float, float]:
    """The largest of a loss, absolute where it is below 1, and of a tensor in relation to its length (L2)."""
    assert len(ran.steps) == len(one.steps) == STEPS
    losses = [
        abs(ours[figure] - theirs[figure]) / max(1.0, abs(theirs[figure]))
        for ours, theirs in zip(ran.steps, one.steps, strict=True)
        for figure in LOSSES[stage]
        if not math.isnan(theirs[figure])  # the policy's while the critic alone learns
    ]
    assert one.weights.keys() <= ran.weights.keys()  # DeepSpeed saves a head beside the embeddings that it shares
    tensors = [
        float((ran.weights[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12))
        for name, tensor in one.weights.items()
    ]
    return max(losses), max(tensors)


def check_rows(ran: Ran, one: Ran) -> None:
    """In each step the processes had other rows, as many each, and together those of the one process."""
    for step in {row["step"] for row in one.rows[0]}:
        shares = [[tuple(row["ids"]) for row in rows if row["step"] == step] for rows in ran.rows]
        whole = [tuple(row["ids"]) for row in one.rows[0] if row["step"] == step]
        assert sorted(shares[0] + shares[1]) == sorted(whole)
        assert len(shares[0]) == len(shares[1])
        assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize(
    ("name", "backend"),
    [pytest.param(*cell, marks=() if cell in CORE else pytest.mark.slow, id="-".join(cell)) for cell in CELLS],
)
def test_two_processes_make_the_steps_of_one(house, forks_of, one_process, launch_files, found, name, backend):
    case, one, alone = CASES[name], one_process(name), folder_name("one", name)
    ours, variables = folder_name(backend, name), {"LOGITS_AT_ONCE": BLOCKS}
    if case.stage == "ppo" and case.replayed:
        variables["REPLAY"] = str(house / f"rows-{alone}")
    start(house, ours, case, forks_of(launch_files[backend]), 2, **variables)
    ran = read(house, ours, case, 2)
    engine, zero_stage = BACKENDS[backend]
    if backend == "ddp" and case.stage == "ppo":
        engine = "PolicyAndValue"  # adds its gradients up itself
    assert (ran.backend["engine"], ran.backend["zero_stage"], ran.backend["world_size"]) == (engine, zero_stage, 2)
    check_rows(ran, one)
    found[name, backend] = loss, tensor = differences(ran, one, case.stage)
    if case.stage == "ppo":
        check_ppo(house, ours, alone, case)
        held = [json.loads((house / f"rows-{ours}" / f"parted-{rank}.json").read_text()) for rank in range(2)]
        assert (held == [0, 0]) == (backend in ("zero3", "zero3 offload"))
        if backend == "fsdp2" and case.method != "qlora":  # 4-bit weights stay whole
            assert sum(held) == json.loads((house / f"rows-{alone}" / "parted-0.json").read_text())
    assert loss < case.loss
    assert tensor < case.tensor
    assert norms(ran, case.stage) == pytest.approx(norms(one, case.stage), rel=max(1e-3, 10 * case.loss), abs=1e-4)


def check_ppo(house: Path, name: str, one: str, case: Case) -> None:
    """The first responses have the same tokens, each process having sampled its own. They are the first rollout's, also
    where held-out prompts are answered before the first step: it gives the unit of the scores."""
    first = [lines_of(house / f"rows-{name}" / f"responses-{rank}.jsonl")[0] for rank in range(2)]
    assert len(first[0]) == len(first[1])
    assert not first[0].keys() & first[1].keys()
    assert first[0] | first[1] == lines_of(house / f"rows-{one}" / "responses-0.jsonl")[0]


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(request):
    """What each cell has found; written to the page at the end, if that is asked for. Cells that were not run stay."""
    results: dict[tuple[str, str], tuple[float, float]] = {}
    yield results
    if request.config.getoption("--write-table"):
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replaced(page, table(on_page(page) | results)), encoding="utf-8")


def table(results: dict[tuple[str, str], tuple[float, float]]) -> str:
    """Markdown: of each cell the largest difference of a loss and of a tensor."""

    def cell(case: str, backend: str) -> str:
        return "{:.0e} / {:.0e}".format(*results[case, backend]) if (case, backend) in results else ""

    head = lambda columns: [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]  # noqa: E731
    lines = head(COLUMNS) + [f"| {case} | {' | '.join(cell(case, each) for each in COLUMNS)} |" for case in MATRIX]
    columns = [backend for backend in BACKENDS if backend != "ddp"]
    lines += ["", *head(columns)]
    lines += [f"| {case} | {' | '.join(cell(case, each) for each in columns)} |" for case in MORE]
    return "\n".join(lines)


def replaced(page: str, text: str) -> str:
    before, _, rest = page.partition(MARK)
    return f"{before}{MARK}\n\n{text}\n\n{END}{rest.partition(END)[2]}"


def on_page(page: str) -> dict[tuple[str, str], tuple[float, float]]:
    """The results on the page, by case and backend."""
    results, columns = {}, list[str]()
    for line in page.partition(MARK)[2].partition(END)[0].splitlines():
        case, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| |"):
            columns = cells
        for backend, cell in zip(columns, cells, strict=False):
            if pair := re.fullmatch(r"(\d\S+) / (\d\S+)", cell):
                results[case, backend] = float(pair[1]), float(pair[2])
    return results


def test_the_page_has_every_cell_within_its_bounds():
    page = PAGE.read_text(encoding="utf-8")
    results = on_page(page)
    assert results.keys() == set(CELLS)
    assert replaced(page, table(results)) == page, "run scripts/test --write-table, see above"
    for (case, _), (loss, tensor) in results.items():
        assert loss <= CASES[case].loss
        assert tensor <= CASES[case].tensor
