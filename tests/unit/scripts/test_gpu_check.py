"""`scripts/gpu_check.py`: its configs are right, its page says what was not measured, and it needs a GPU or is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402
import torch  # noqa: E402

from alignment.config.loading import validate  # noqa: E402
from ppo.config import PPOStageConfig  # noqa: E402
from reward.config import RewardStageConfig  # noqa: E402
from sft.config import SFTStageConfig  # noqa: E402

RUN = {"tokens_per_second": 1000.0, "flops": 98.9e12, "planned": 2e9, "peak": 1e9}
REPORT = {
    "device": "NVIDIA H200",
    "small": False,
    "cuda": "13.0", "versions": {"torch": "2.13.0"}, "parameters": 470_000_000, "seconds": 300,
    "runs": {"sft": RUN, "ppo": RUN | {"sampled_per_second": 50.0}, "ppo, vllm": {"not_measured": "no vllm"}},
    "trl": {
        "sft": {
            "peer": "trl==1.16.0",
            "ratio": {"median": 2.0, "min": 1.9, "max": 2.1},
            "ratio_best": {"setting": "packed", "median": 1.5},
        },
        "ppo": {"not_measured": "no index"},
    },
}  # fmt: skip


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    ("stage", "kind"), zip(gpu_check.STAGES, (SFTStageConfig, RewardStageConfig, PPOStageConfig), strict=True)
)
def test_the_configs_are_those_of_the_stages(tmp_path, stage, kind, small):
    config = validate(kind, gpu_check.config(stage, tmp_path, small), "check")
    assert config.registry.name == stage
    changed = validate(kind, gpu_check.config(stage, tmp_path, small, training={"max_steps": 77}), "check")
    training = changed.training if isinstance(changed.training, dict) else changed.training.model_dump()
    assert training["max_steps"] == 77


def test_the_report_has_every_run_or_why_not():
    text = "\n".join(gpu_check.lines(REPORT))
    assert "| sft | 1,000 |  | 10% | 2,000 | 1,000 | 2.00 |" in text
    assert "| ppo | 1,000 | 50 | 10% |" in text
    assert "| ppo, vllm | not measured: no vllm |" in text
    assert "| sft: trl==1.16.0 | 2.00 (1.90 to 2.10) | 1.50 (packed) |" in text
    assert "| ppo | not measured: no index |" in text
    assert "say nothing about speed" not in text
    assert "say nothing about speed" in "\n".join(gpu_check.lines(REPORT | {"small": True}))
    assert "| sft | 1,000 |  | not measured |" in "\n".join(gpu_check.lines(REPORT | {"device": "another"}))


def test_the_page_keeps_what_is_around_its_marks(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(gpu_check.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    gpu_check.write(page, ["first"])
    gpu_check.write(page, ["second"])
    before, _, rest = gpu_check.PAGE.read_text(encoding="utf-8").partition(gpu_check.MARK)
    assert page.read_text(encoding="utf-8") == (
        f"{before}{gpu_check.MARK}\n\nsecond\n\n{gpu_check.END}{rest.partition(gpu_check.END)[2]}"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys):
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no GPU that torch can use; --device cpu --small")


@pytest.mark.slow
def test_the_small_mode_runs_all_stages_on_a_cpu(capfd):
    assert gpu_check.main(["--device", "cpu", "--small", "--no-trl", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    for stage in gpu_check.STAGES:
        assert report["runs"][stage]["tokens_per_second"] > 0
        assert report["runs"][stage]["peak"] > 0
    assert "not_measured" in report["runs"]["ppo, vllm"]
