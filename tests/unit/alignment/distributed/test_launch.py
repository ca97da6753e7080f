"""A launch is obeyed, or refused in one line before anything is loaded."""

import json
from types import SimpleNamespace

import pytest

from alignment.config.sections import RunConfig
from alignment.distributed import processes
from alignment.distributed.launch_files import check_against_config, check_launch
from alignment.errors import UserError
from alignment.training.stage import run_stage
from ppo.config import PPOStageConfig
from ppo.train import train as train_ppo

AUTO = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
)
AGREES = {"bf16": False, "accumulation": 1, "max_grad_norm": 1.0}


@pytest.fixture
def deepspeed(tmp_path, monkeypatch):
    """A launch with a DeepSpeed config of the user's own."""

    def write(config):
        path = tmp_path / "mine.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
        return path

    return write


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"FSDP .* launch with configs/accelerate/zero2\.yaml or zero3\.yaml"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"mixed_precision: fp16; write mixed_precision: 'no'"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend: INDUCTOR"),
    ],
)
def test_a_launch_that_no_stage_runs_under_is_refused(monkeypatch, name, value, said):
    check_launch()
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        check_launch()


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_each_stage_refuses_it_at_its_start(stage, tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text("name: x\ndata: {train: d.jsonl}\nregistry: {name: x}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

    def never(*given):
        raise AssertionError("was trained")

    for option in ([], ["--dry-run"]):
        assert run_stage(stage, RunConfig, never, never, ["c.yaml", *option]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: the launch file asks for FSDP") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": "AdamW"}}, r'mine\.json: remove the section "optimizer"; .* training\.learning_rate'),
        ({"scheduler": {"type": "WarmupLR"}}, r'remove the section "scheduler"; .* training\.lr_scheduler_type'),
        ({"train_batch_size": 32}, r'train_batch_size is 32, .* write "train_batch_size": "auto"'),
        ({"gradient_clipping": 0.3}, r"gradient_clipping is 0\.3, but training\.max_grad_norm sets it"),
        ({"gradient_clipping": None}, "gradient_clipping is None"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled is true; remove fp16"),
        ({"zero_optimization": {"sub_group_size": "auto"}}, r'zero_optimization\.sub_group_size is "auto"'),
        ({"zero_optimization": []}, 'there is no section "zero_optimization"'),
    ],
)
def test_what_a_deepspeed_config_must_not_say(deepspeed, config, said):
    deepspeed({"zero_optimization": {"stage": 2}} | AUTO | config)
    with pytest.raises(UserError, match=said):
        check_launch()


def test_a_deepspeed_config_that_clips_nothing_is_none(deepspeed):
    deepspeed({"zero_optimization": {"stage": 2}} | {key: "auto" for key in AUTO if key != "gradient_clipping"})
    with pytest.raises(UserError, match=r'gradient_clipping is missing, .* write "gradient_clipping": "auto"'):
        check_launch()


def test_a_deepspeed_config_that_cannot_be_read(deepspeed):
    path = deepspeed("{,}")
    with pytest.raises(UserError, match=r"mine\.json is not JSON"):
        check_launch()
    path.unlink()
    with pytest.raises(UserError, match=r"mine\.json cannot be read \(No such file"):
        check_launch()


def test_the_config_that_most_people_have_is_taken(deepspeed):
    """As transformers' documentation shows it, less the sections that the suite owns."""
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": "auto",
    }
    deepspeed(AUTO | {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}})
    check_launch()
    check_against_config(**AGREES)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps: 4, and the config has 1"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.1", r"gradient_clipping: 0\.1, and the config has 1 \(training\.max_grad"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"mixed_precision: bf16, and training\.bf16 is false"),
    ],
)
def test_a_launch_file_that_says_otherwise_than_the_config(monkeypatch, name, value, said):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check_against_config(**AGREES)
    monkeypatch.setenv(name, value)
    check_launch()
    with pytest.raises(UserError, match=said):
        check_against_config(**AGREES)


def test_half_precision_of_a_deepspeed_config_is_that_of_the_config(deepspeed):
    deepspeed(AUTO | {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}})
    check_launch()
    check_against_config(**AGREES | {"bf16": True})
    with pytest.raises(UserError, match=r"mine\.json: bf16\.enabled is true, and training\.bf16 is false"):
        check_against_config(**AGREES)


def test_ppo_compares_before_it_looks_for_a_model(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = PPOStageConfig.model_validate({
        "name": "x", "model": {"policy": "none"}, "data": {"train": "none.jsonl"}, "registry": {"name": "x"},
        "rewards": {"others": [{"function": "a:b"}]},
    })  # fmt: skip
    with pytest.raises(UserError, match=r"training\.bf16 is false"):
        train_ppo(config)


@pytest.mark.parametrize("argument", ["--local_rank=0", "--local-rank=0"])
def test_the_deepspeed_launcher_is_refused_with_the_command_that_works(argument, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert run_stage("sft", RunConfig, None, None, [argument, "a.yaml", "training.seed=3"]) == 2
    error = capsys.readouterr().err
    command = "accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 2 -m sft a.yaml training"
    assert command in error and error.count("\n") == 1


class _State:
    """What accelerate would find; `kind` is its DistributedType."""

    _shared_state: dict = {}
    kind = "NO"

    def __init__(self, **options):
        self.distributed_type = SimpleNamespace(value=self.kind)


def test_another_device_than_the_launch_file_names_is_not_taken(monkeypatch):
    monkeypatch.setattr(processes, "PartialState", _State)
    processes.start_processes()
    monkeypatch.setattr(_State, "kind", "XLA")
    with pytest.raises(UserError, match="the launch is of the kind XLA"):
        processes.start_processes()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    with pytest.raises(UserError, match=r"use_cpu: true and there is a GPU; hide it with CUDA_VISIBLE_DEVICES="):
        processes.start_processes()
