"""A launch is obeyed, or refused in one line before anything is loaded."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.training_args import OptimizerNames

from alignment.config.sections import RunConfig
from alignment.distributed import processes
from alignment.distributed.launch_files import check_against_config, check_launch, join_slurm_step
from alignment.errors import UserError
from alignment.training.arguments import check_under_fsdp
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
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")

    def never(*given):
        raise AssertionError("was trained")

    for option in ([], ["--dry-run"]):
        assert run_stage(stage, RunConfig, never, never, ["c.yaml", *option]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: the launch file asks for Megatron-LM") and error.count("\n") == 1


@pytest.fixture
def fsdp2(monkeypatch):
    """What `accelerate launch` makes of fsdp2.yaml."""
    path = Path(__file__).resolve().parents[4] / "configs" / "accelerate" / "fsdp2.yaml"
    arguments = ["--config_file", str(path), "--main_process_port", "0", "-m", "sft", "a.yaml"]
    found, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    for name, value in prepare_multi_gpu_env(found).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VERSION", "1", r"fsdp_version: 1, .* write fsdp_version: 2"),
        ("VERSION", None, r"fsdp_version: 1, "),
        ("AUTO_WRAP_POLICY", None, r"fsdp_auto_wrap_policy: NO_WRAP, .* write .*: TRANSFORMER_BASED_WRAP"),
        ("AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "fsdp_auto_wrap_policy: SIZE_BASED_WRAP"),
        ("TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer", r"fsdp_transformer_layer_cls_to_wrap: Llama.*; remove it"),
        ("CPU_RAM_EFFICIENT_LOADING", "true", "write fsdp_cpu_ram_efficient_loading: false"),
        ("OFFLOAD_PARAMS", "true", r"fsdp_offload_params: true, .*/zero3-offload\.yaml"),
        ("ACTIVATION_CHECKPOINTING", "true", r"training\.gradient_checkpointing=true"),
        ("SHARDING_STRATEGY", "HYBRID_SHARD", "fsdp_sharding_strategy: HYBRID_SHARD"),
        ("STATE_DICT_TYPE", "LOCAL_STATE_DICT", "fsdp_state_dict_type: LOCAL_STATE_DICT"),
        ("IGNORED_MODULES", ".*head", "fsdp_ignored_modules"),
        ("RESHARD_AFTER_FORWARD", "FULL_SHARD", "fsdp_reshard_after_forward: FULL_SHARD, .* write true or false"),
        ("BACKWARD_PREFETCH", "BACKWARD_POST", "FSDP2 has no such setting"),
        ("FORWARD_PREFETCH", "true", "FSDP2 has no such setting"),
        ("USE_ORIG_PARAMS", "false", "FSDP2 has no such setting"),
        ("SYNC_MODULE_STATES", "false", "FSDP2 has no such setting"),
    ],
)
def test_what_an_fsdp_launch_must_not_say(fsdp2, monkeypatch, name, value, said):
    check_launch()
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    check_launch()
    monkeypatch.delenv(f"FSDP_{name}") if value is None else monkeypatch.setenv(f"FSDP_{name}", value)
    with pytest.raises(UserError, match=said):
        check_launch()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optim": "adafactor"}, r"training\.optim=adafactor is not supported under FSDP2; choose one of adamw_torch"),
        ({"fp16": True}, r"training\.fp16 is not supported under FSDP2"),
    ],
)
def test_what_does_not_work_on_shards_is_refused(training, said):
    arguments = SimpleNamespace(optim=OptimizerNames.ADAMW_TORCH, fp16=False, torch_compile=False)
    check_under_fsdp(arguments)
    given = training | ({"optim": OptimizerNames(training["optim"])} if "optim" in training else {})
    with pytest.raises(UserError, match=said):
        check_under_fsdp(SimpleNamespace(**vars(arguments) | given))


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


def test_settings_beside_a_deepspeed_config_are_refused_before_accelerate_ends_in_a_traceback(deepspeed, monkeypatch):
    deepspeed({"zero_optimization": {"stage": 2}} | AUTO)
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero3_init_flag")
    check_launch()
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "deepspeed_config_file,zero_stage,offload_param_device")
    with pytest.raises(UserError, match="accelerate takes no zero_stage, offload_param_device; remove it"):
        check_launch()


@pytest.mark.parametrize("stage", ["4", "two", "-1"])
def test_a_stage_that_zero_does_not_have_is_refused(monkeypatch, stage):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    check_launch()
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(UserError, match=f"zero_stage: {stage}; write 0, 1, 2 or 3"):
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


def test_tasks_of_srun_are_one_launch_where_they_know_where_to_meet(monkeypatch):
    step = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    for name in (*names, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    join_slurm_step()
    assert "RANK" not in os.environ  # runs of their own
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    join_slurm_step()
    assert [os.environ[name] for name in names] == ["3", "1", "4"]
    monkeypatch.setenv("RANK", "0")  # torchrun's, started by srun
    join_slurm_step()
    assert os.environ["RANK"] == "0"


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
