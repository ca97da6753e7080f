"""`alignment plan`: what a config takes of each GPU's memory, what fits, and how to launch it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.errors import ConfigError, UserError
from alignment.memory.plan import FSDP2, PARTS, SINGLE, STRATEGIES, MemoryEstimate, Strategy, estimate, in_gb
from alignment.memory.workload import ColocatedVLLM, Workload
from alignment.terminal import one_line

STAGES = ("sft", "reward", "ppo")
RESERVED = 0.08
"""Share of a GPU's memory that is not planned with: the CUDA context, NCCL and gaps between blocks. A judgement."""
_UNITS = {"GB": 1e9, "GIB": 2**30, "MB": 1e6, "MIB": 2**20, "TB": 1e12}

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A stage's YAML, e.g. configs/ppo/8b.yaml.")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Overrides of the file.")]
GpusOption = Annotated[int, typer.Option("--gpus", min=1, help="GPUs of each node.")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Nodes.")]
MemoryOption = Annotated[str, typer.Option("--memory", help="Of each GPU: 80GB, 141GB, 40GiB.")]
HostMemoryOption = Annotated[
    str | None, typer.Option("--host-memory", help="Of each node: 200GB. Without it a node's memory is no limit.")
]
StageOption = Annotated[str | None, typer.Option("--stage", help="sft, reward or ppo, if the file does not tell.")]
ModelConfigOption = Annotated[
    str | None,
    typer.Option("--model-config", metavar="FILE", help="config.json of each model that cannot be read here."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def parse_memory(text: str, option: str = "--memory") -> float:
    """Bytes of `80GB` (10^9), `40GiB` (2^30).

    Raises:
        UserError: another form.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    size = float(match[1]) * _UNITS.get(match[2].upper() or "GB", 0.0) if match else 0.0
    if size <= 0:
        raise UserError(f"{option} {text}: expected a size such as 80GB or 40GiB")
    return size


def stage_of(config: Path, values: Mapping[str, Any], stage: str | None) -> str:
    """The stage of a config: as it was named, else by its sections, else by its folder.

    Raises:
        ConfigError: none of them tells.
    """
    if stage is not None:
        if stage not in STAGES:
            raise ConfigError(f"--stage {stage}: expected one of {', '.join(STAGES)}")
        return stage
    model = values.get("model")
    if {"ppo", "rollout", "rewards", "ptx"} & set(values) or (isinstance(model, Mapping) and "policy" in model):
        return "ppo"
    if "reward" in values:
        return "reward"
    folder = config.resolve().parent.name
    if folder not in STAGES:
        raise ConfigError(f"{config}: neither its sections nor its folder say of which stage it is; pass --stage sft")
    return folder


@dataclass(frozen=True)
class Cluster:
    """Where a run is to go; memory in bytes."""

    gpus: int
    nodes: int
    memory: float
    host: float = math.inf
    """Memory of each node's host."""

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes

    @property
    def usable(self) -> float:
        return self.memory * (1 - RESERVED)

    def node_memory(self, work: Workload, strategy: Strategy, found: MemoryEstimate) -> float:
        """Bytes of a node's own memory, while its processes load their models or afterwards."""
        return max(self.gpus * found.host, self.loading(work, strategy, found))

    def loading(self, work: Workload, strategy: Strategy, found: MemoryEstimate) -> float:
        """Bytes of a node's own memory while its processes load their models: whole ones, each read by one process that
        sends it to all GPUs; under ZeRO-3 a tensor at a time in each process; under FSDP2 all models in each."""
        whole = [model.as_read for model in work.models]
        if strategy == FSDP2 or self.processes == 1:
            return self.gpus * sum(whole)
        if strategy.sharded:
            return self.gpus * work.largest_tensor
        return self.gpus * found.host + max(whole)

    def fits(self, work: Workload, strategy: Strategy, found: MemoryEstimate) -> bool:
        """Whether a run fits, on its GPUs and in its nodes' memory."""
        room = work.vllm is None or work.vllm.fits
        return room and found.peak <= self.usable and self.node_memory(work, strategy, found) <= self.host

    @property
    def strategies(self) -> list[Strategy]:
        """In the order of what they send between processes, the least first."""
        if self.processes > 1:
            return list(STRATEGIES)
        return [SINGLE, *(each for each in STRATEGIES if each.offload)]


@dataclass(frozen=True)
class Plan:
    """A run, by what it is called and how it can be spread."""

    name: str
    work: Workload
    estimates: dict[Strategy, MemoryEstimate]
    cluster: Cluster

    @classmethod
    def of(cls, name: str, work: Workload, cluster: Cluster) -> Plan:
        found = {each: estimate(work, each, cluster.processes) for each in cluster.strategies if each.runs(work)}
        return cls(name, work, found, cluster)

    @property
    def chosen(self) -> Strategy | None:
        """The first that fits: each further one sends more between processes, or to the host."""
        return next((each for each in self.estimates if self.fits(each)), None)

    def fits(self, strategy: Strategy) -> bool:
        return self.cluster.fits(self.work, strategy, self.estimates[strategy])

    def fitting_counts(self) -> dict[Strategy, int]:
        """Of each strategy that divides, the first doubling of the GPUs at which it fits, each GPU doing as much."""
        counts = [self.cluster.processes * 2**doubled for doubled in range(1, 9)]
        found = {
            each: next((n for n in counts if self.cluster.fits(self.work, each, estimate(self.work, each, n))), None)
            for each in STRATEGIES
            if each.stage and each.runs(self.work)
        }
        return {each: count for each, count in found.items() if count is not None}


def launch_line(strategy: Strategy, cluster: Cluster, stage: str, config: Path, overrides: list[str]) -> str:
    """The command that starts the run."""
    target = " ".join(["-m", stage, str(config), *overrides])
    if strategy == SINGLE:
        return f"python {target}"
    start = f"accelerate launch --config_file configs/accelerate/{strategy.name}.yaml"
    if cluster.nodes == 1:
        return f"{start} --num_processes {cluster.processes} {target}"
    nodes = (
        f"--num_machines {cluster.nodes} --num_processes {cluster.processes} --machine_rank $RANK_OF_NODE "
        "--main_process_ip $FIRST_NODE --main_process_port 29500"
    )
    if not strategy.deepspeed:
        return f"{start} {nodes} {target}"
    return f"{start} --deepspeed_multinode_launcher standard {nodes} {target}"


@dataclass(frozen=True)
class PlanReport:
    """What the command prints; the first plan is that of the config as it stands."""

    stage: str
    config: Path
    plans: list[Plan]
    notes: list[str]
    launch: str | None


def as_json(report: PlanReport) -> dict[str, Any]:
    """The report as one object, sizes in GB (10^9 bytes)."""
    cluster = report.plans[0].cluster
    return {
        "stage": report.stage,
        "gpus": cluster.processes,
        "nodes": cluster.nodes,
        "memory_gb": round(cluster.memory / 1e9, 2),
        "usable_gb": round(cluster.usable / 1e9, 2),
        "runs": [
            {
                "run": plan.name,
                "strategies": {
                    each.name: {
                        **in_gb(found),
                        "node_memory": round(cluster.node_memory(plan.work, each, found) / 1e9, 2),
                        "fits": plan.fits(each),
                    }
                    for each, found in plan.estimates.items()
                },
                "chosen": plan.chosen.name if plan.chosen else None,
            }
            for plan in report.plans
        ],
        "launch": report.launch,
        "notes": report.notes,
    }


def text_lines(report: PlanReport) -> list[str]:
    """The report as text: the run as its config has it by part, then the other ways to hold it."""
    first, cluster = report.plans[0], report.plans[0].cluster
    where = f"{cluster.processes} GPU{'s' * (cluster.processes > 1)} of {cluster.memory / 1e9:g} GB"
    where += f" on {cluster.nodes} nodes" * (cluster.nodes > 1)
    rows = [["", *PARTS, "peak", "fits", "fullest at", "host"]]
    for strategy, found in first.estimates.items():
        sizes = [f"{found.parts[part] / 1e9:.1f}" if found.parts[part] else "-" for part in PARTS]
        fits = "yes" if first.fits(strategy) else "no"
        host = f"{found.host * cluster.gpus / 1e9:.0f} a node" if found.host else "-"
        rows.append([strategy.name, *sizes, f"{found.peak / 1e9:.1f}", fits, found.fullest, host])
    lines = [
        f"{report.stage} {report.config} ({first.name}) on {where}",
        "GB (10^9 bytes) on each GPU when it is fullest:",
        "",
        *_aligned(rows),
    ]
    if len(report.plans) > 1:
        rows = [["", *(strategy.name for strategy in cluster.strategies)]]
        for plan in report.plans:
            rows.append([plan.name, *(_peak_cell(plan, each) for each in cluster.strategies)])
        lines += ["", "peak of each way to hold the models (* fits):", "", *_aligned(rows)]
    lines += ["", f"launch: {report.launch}" if report.launch else "nothing fits"]
    return lines + [f"note: {one_line(note)}" for note in report.notes]


def _peak_cell(plan: Plan, strategy: Strategy) -> str:
    """A peak in GB, starred where it fits; a dash where the run is refused."""
    if strategy not in plan.estimates:
        return "-  "
    return f"{plan.estimates[strategy].peak / 1e9:.1f} {'*' if plan.fits(strategy) else ' '}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell: the first on the left, the others on the right."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for name, *cells in rows
    ]


def _vllm_note(vllm: ColocatedVLLM) -> str:
    """How a colocated vLLM divides its share of a GPU, or that it is too small."""
    share = f"{vllm.share / 1e9:.1f} GB of each GPU"
    if not vllm.fits:
        return (
            f"vLLM does not fit in its {share}: its weights there are {vllm.weights / 1e9:.1f} GB, and a row takes "
            f"{vllm.row / 1e9:.2g}; raise rollout.vllm.gpu_memory_utilization or rollout.vllm.tensor_parallel_size"
        )
    return (
        f"cache: vLLM holds {share} while it samples: weights {vllm.weights / 1e9:.1f}, and {vllm.rows_at_a_time} of "
        f"{vllm.rows} rows at a time at {vllm.row / 1e9:.2g} each"
    )


def report(
    make: Callable[[int], dict[str, Workload]], cluster: Cluster, stage: str, config: Path, overrides: list[str]
) -> PlanReport:
    """Plan every way to hold a config's models.

    Args:
        make: the runs for so many processes, the config's own first.
    """
    plans = [Plan.of(name, work, cluster) for name, work in make(cluster.processes).items()]
    chosen, notes = plans[0].chosen, []
    if chosen is None:
        notes += [f"{each.name} fits on {count} GPUs" for each, count in plans[0].fitting_counts().items()]
        others = [f"{plan.name} ({plan.chosen.name})" for plan in plans[1:] if plan.chosen]
        notes += [f"what fits here: {'; '.join(others)}"] if others else []
    work = plans[0].work
    if work.vllm:
        notes.append(_vllm_note(work.vllm))
    sizes = {each.name: cluster.loading(work, each, found) / 1e9 for each, found in plans[0].estimates.items()}
    notes.append(
        "loading: GB of a node's memory while its processes read their models: "
        + ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items())
    )
    notes.append(
        f"fits: at most {cluster.usable / 1e9:.1f} of {cluster.memory / 1e9:g} GB; {RESERVED:.0%} is left to the CUDA "
        "context, NCCL and gaps between blocks"
        + (f"; at most {cluster.host / 1e9:g} GB of a node's memory" if cluster.host < math.inf else "")
    )
    line = launch_line(chosen, cluster, stage, config, overrides) if chosen else None
    return PlanReport(stage, config, plans, notes, line)
