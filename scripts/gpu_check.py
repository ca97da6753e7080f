#!/usr/bin/env python3
"""Run the three stages, a comparison with TRL and the memory plan on this machine's GPU, within 8 minutes.

    scripts/gpu_check.sh
    scripts/gpu_check.sh --device cpu --small

A Llama of half a billion parameters is made from nothing, on texts that are made up: no hub and no account. SFT, the
reward model and PPO run like `python -m STAGE`, in bfloat16 with their self-checks; what they took is compared with
`alignment plan`. Then `scripts/bench.py` measures the stages against TRL, which needs a package index on first use.
What cannot be run is reported with the reason. On a GPU the results go to docs/development/bench/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "development" / "bench" / "gpu.md"
MARK, END = "<!-- gpu -->", "<!-- end -->"
BUDGET = 480
"""Seconds; a step that would begin after them is not run, and one that runs then is ended."""
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s, by NVIDIA's product pages."""
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = ("sft", "reward", "ppo")
FLASH = "Flash attention: not measured. Packed rows run torch's attention by document, and no setting selects another."


def prepare(folder: Path, small: bool, seed: int) -> dict[str, Any]:
    """Write the data and the base model; what they are."""
    import torch
    from benchmarks import reward as reward_bench
    from benchmarks import sft as sft_bench

    from alignment.config.sections import DataConfig, ScratchConfig
    from alignment.data.parsing import to_demonstrations
    from alignment.data.reading import Reading
    from alignment.models.policies import build_scratch_model
    from alignment.models.tokenizers import train_tokenizer

    file = sft_bench.write_transcripts(folder / "sft.jsonl", seed)
    reward_bench.write_pairs(folder / "reward.jsonl", seed)
    records = [record for _, record in Reading(DataConfig(train=str(file), eval_share=0.0), to_demonstrations)]
    texts = [message["content"] for record in records for message in record.messages]
    length = 256 if small else 2048
    shape = ScratchConfig(
        vocab_size=512 if small else 32768, max_position_embeddings=length, **(SMALL if small else LARGE)
    )
    tokenizer = train_tokenizer(texts, shape.vocab_size, "chatml")
    torch.manual_seed(seed)
    model = build_scratch_model("llama", shape, tokenizer)
    if not small:
        model.resize_token_embeddings(shape.vocab_size, mean_resizing=False)  # the data has fewer words
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    draw, count = random.Random(seed), 32 if small else 256
    prompts = [" ".join(draw.choice(texts).split()[: 8 if small else 100]) for _ in range(count)]
    (folder / "ppo.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8"
    )
    return {
        "parameters": model.num_parameters(),
        "prompt_tokens": sum(len(tokenizer(text)["input_ids"]) for text in prompts) / count,
    }


def config(stage: str, folder: Path, small: bool, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a stage's run: configs/STAGE/0.5b.yaml with few steps."""
    steps, length = (3, 128) if small else (12, 1024)
    training: dict[str, Any] = {"max_steps": steps, "save_steps": 0, "gradient_checkpointing": not small}
    if stage != "ppo":
        training |= {"logging_steps": 1, "per_device_train_batch_size": 2 if small else 16}
    values: dict[str, Any] = {
        "name": stage,
        "model": {"name": str(folder / "base") if stage == "sft" else "sft"},
        "data": {"train": str(folder / f"{stage}.jsonl"), "eval_share": 0.0, "max_length": length, "too_long": "drop"},
        "training": training,
        "registry": {"name": stage, "path": str(folder / "registry")},
        "tracking": {"runs": str(folder / "runs"), "wandb": "disabled"},
    }
    if stage == "ppo":
        values["model"] = {"policy": "sft", "reward": "reward"}
        values["training"] |= {"max_steps": 2 if small else 4}
        size, tokens = (8, 16) if small else (256, 512)
        values["rollout"] = {"batch_size": size, "generation_batch_size": size, "max_new_tokens": tokens}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


class Clock:
    """The seconds that are left."""

    def __init__(self, budget: float) -> None:
        self.ends = time.monotonic() + budget

    def left(self) -> float:
        return self.ends - time.monotonic()


def measured(folder: Path, clock: Clock, settings: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """A run by `benchmarks.stage_ours` in a process of its own, or the reason why there is none."""
    from bench import Process

    from alignment.errors import UserError

    if clock.left() <= 0:
        return {"not_measured": "no time was left"}
    try:
        with Process(sys.executable, "stage_ours", folder, settings, 4, **variables) as process:
            found = process.ask("run", timeout=clock.left())
    except UserError as error:
        return {"not_measured": str(error)}
    if found["peak"] is None:
        found["peak"] = found["bytes"]
    return found


def against_trl(name: str, base: Path, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """`scripts/bench.py NAME --json` on the base model, or the reason why there is none."""
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), name, "--json", "--seed", str(options.seed)]
    command += ["--rounds", "1", "--rows", "8"] if options.small else ["--rounds", "3", "--model", str(base)]
    command += ["--bf16"] if options.device == "cuda" else []
    if clock.left() <= 0:
        return {"not_measured": "no time was left"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=clock.left(), cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"not_measured": "no time was left"}
    if done.returncode:
        return {"not_measured": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    report = json.loads(done.stdout)
    return {key: report[key] for key in ("peer", "unit", "rates", "ratio", "ratio_best")}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in the order of what matters most."""
    import torch

    clock, on_gpu = Clock(options.budget), options.device == "cuda"
    variables = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    report: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "CPU", "small": options.small}
    report["versions"] = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate")}
    report["cuda"] = torch.version.cuda
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report |= prepare(folder, options.small, options.seed)
        runs = {}
        for stage in STAGES:
            settings = {"stage": stage, "config": config(stage, folder, options.small)}
            settings["prompt_tokens"] = report["prompt_tokens"]
            runs[stage] = measured(folder, clock, settings, variables)
            print(f"{stage}: {runs[stage]}", file=sys.stderr)
        runs["ppo, vllm"] = {"not_measured": "vllm is not installed (scripts/vllm-venv, docs/cluster/vllm.md)"}
        if find_spec("vllm") and on_gpu:
            sampled = config("ppo", folder, options.small, rollout={"vllm": {}, "batch_size": 256})
            settings = {"stage": "ppo", "config": sampled | {"name": "vllm"}, "prompt_tokens": report["prompt_tokens"]}
            runs["ppo, vllm"] = measured(folder, clock, settings, variables)
        report["runs"] = runs
        compared = () if options.no_trl else STAGES
        report["trl"] = {stage: against_trl(stage, folder / "base", clock, options) for stage in compared}
    report["seconds"] = round(options.budget - clock.left())
    return report


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as Markdown."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in report["device"]), None)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    found = [
        f"{report['device']}, CUDA {report['cuda']}, {versions}. A Llama of {report['parameters']:,} "
        f"parameters, {'float32' if report['device'] == 'CPU' else 'bfloat16'}; {report['seconds']} s in all.", "",
        "| run | trained tokens/s | sampled tokens/s | MFU | planned, MB | peak, MB | planned / peak |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, run in report["runs"].items():
        if reason := run.get("not_measured"):
            found.append(f"| {name} | not measured: {reason} | | | | | |")
            continue
        sampled = f"{run['sampled_per_second']:,.0f}" if "sampled_per_second" in run else ""
        share = f"{run['flops'] / peak:.0%}" if peak else "not measured"
        planned, taken = run["planned"] / 1e6, run["peak"] / 1e6
        found.append(
            f"| {name} | {run['tokens_per_second']:,.0f} | {sampled} | {share} | {planned:,.0f} | {taken:,.0f} "
            f"| {planned / taken:.2f} |"
        )
    found += ["", "| against | ours over its defaults | over its best setting |", "|---|---|---|"]
    for name, run in report["trl"].items():
        if reason := run.get("not_measured"):
            found.append(f"| {name} | not measured: {reason} | |")
            continue
        default, best = run["ratio"], run["ratio_best"]
        found.append(
            f"| {name}: {run['peer']} | {default['median']:.2f} ({default['min']:.2f} to {default['max']:.2f}) "
            f"| {best['median']:.2f} ({best['setting']}) |"
        )
    trial = ["", "A trial of the steps (--small): these figures say nothing about speed."] if report["small"] else []
    return [*found, "", FLASH, *trial]


def write(page: Path, text: Sequence[str]) -> None:
    """Put the text between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(f"{before}{MARK}\n\n" + "\n".join(text) + f"\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Run the stages, a comparison with TRL and the memory plan on this machine's GPU.",
        epilog="example: scripts/gpu_check.sh --device cpu --small --no-trl",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--no-trl", action="store_true", help="leave the comparison with TRL out")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all (default {BUDGET})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(argv)
    import torch

    from alignment.training.stage import quiet_libraries

    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU that torch can use; --device cpu --small runs the same steps without one", file=sys.stderr)
        return 2
    quiet_libraries()
    report = check(options)
    if options.device == "cuda":
        write(PAGE, lines(report))
    print(json.dumps(report, indent=2) if options.json else "\n".join(lines(report)))
    return 1 if any("not_measured" in report["runs"][stage] for stage in STAGES) else 0


if __name__ == "__main__":
    from project_python import use_project_python

    use_project_python()
    sys.exit(main())
