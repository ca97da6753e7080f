"""Launch files and launchers on CPU processes: what really runs is what the file says, or one line says why not."""

import json
import sys

import launching
import pytest

ACCELERATE = launching.ROOT / "configs" / "accelerate"
FSDP2 = ACCELERATE / "fsdp2.yaml"
SCRATCH = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


@pytest.fixture
def folder(tmp_path):
    """A run of two steps, in a.yaml."""
    rows = [{"prompt": f"Number {n}?", "completion": f"It is {n}."} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "x",
        "model": {"name": "scratch:llama", "scratch": SCRATCH | {"num_attention_heads": 2}},
        "data": {"train": "rows.jsonl", "eval_share": 0, "max_length": 64},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2},
        "registry": {"name": "x", "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "a.yaml").write_text(json.dumps(config))
    return tmp_path


def check_ran(folder, done, world_size, engine, stage):
    assert done.code == 0, done.output[-4000:]
    events = [json.loads(line) for line in (folder / "runs/x/events.jsonl").read_text().splitlines()]
    (backend,) = [event for event in events if event["event"] == "backend"]
    assert (backend["world_size"], backend["engine"], backend["zero_stage"]) == (world_size, engine, stage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "world_size", "engine", "stage"),
    [
        ("cpu", 2, "DistributedDataParallel", 0),
        ("single", 1, "LlamaForCausalLM", 0),
        ("ddp", 2, "DistributedDataParallel", 0),
        ("zero1", 2, "DeepSpeedEngine", 1),
        ("zero2", 2, "DeepSpeedEngine", 2),
        ("zero3", 2, "DeepSpeedEngine", 3),
        ("zero3-offload", 2, "DeepSpeedEngine", 3),
        ("multinode", 2, "DeepSpeedEngine", 2),
        ("fsdp2", 2, "FSDP2", 0),
    ],
)
def test_a_file_starts_what_it_says(folder, name, world_size, engine, stage):
    one_node = ["--num_machines", "1", "--num_processes", "2"] if name == "multinode" else []
    done = launching.launch(ACCELERATE / f"{name}.yaml", [*one_node, "-m", "sft", "a.yaml"], folder)
    check_ran(folder, done, world_size, engine, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_deepspeed_file_of_the_user_publishes_and_logs_no_wrong_norm(folder, stage):
    """ZeRO-3 saves shards unless it is told otherwise, and without ZeRO DeepSpeed tells no norm of the gradient."""
    target = ["-m", "sft", "a.yaml", "training.logging_steps=1"]
    done = launching.launch(launching.deepspeed_file(folder, "mine", stage=stage), target, folder)
    check_ran(folder, done, 2, "DeepSpeedEngine", stage)
    rows = [json.loads(line) for line in (folder / "runs/x/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/loss" in row]
    assert len(logged) == 2
    assert ["train/grad_norm" in row for row in logged] == [stage == 3] * 2
    assert len(list((folder / "registry").rglob("model.safetensors"))) == 2  # and the base


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SHARDED |= {"FSDP_RESHARD_AFTER_FORWARD": "false"}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "engine", "stage"),
    [({}, "DistributedDataParallel", 0), (SHARDED, "FSDP2", 0), (ZERO2, "DeepSpeedEngine", 2)],
    ids=["alone", "fsdp2", "zero2"],
)
def test_torchrun_starts_what_the_variables_of_accelerate_say(folder, variables, engine, stage):
    command = [*TORCHRUN, str(launching.free_port()), "-m", "sft", "a.yaml"]
    check_ran(folder, launching.run(command, folder, **variables), 2, engine, stage)


@pytest.mark.slow
def test_the_deepspeed_launcher_runs_zero_where_the_variables_say_so(folder):
    """`deepspeed` itself asks for GPUs; its module that starts one node's processes does not."""
    world = "eyJsb2NhbGhvc3QiOiBbMCwgMV19"  # {"localhost": [0, 1]}
    options = [f"--world_info={world}", "--master_addr=127.0.0.1", f"--master_port={launching.free_port()}"]
    command = [sys.executable, "-m", "deepspeed.launcher.launch", *options, "--module", "sft", "a.yaml"]
    refused = launching.run(command, folder)
    assert refused.code != 0
    assert "accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 2 -m sft" in refused.output
    check_ran(folder, launching.run(command, folder, **ZERO2), 2, "DeepSpeedEngine", 2)


@pytest.mark.slow
def test_tasks_that_srun_starts_are_one_run(folder):
    """What srun does on one node: it starts the command once for each task, with these variables."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launching.free_port())}
    tasks = [f"SLURM_PROCID={task} SLURM_LOCALID={task} {sys.executable} -m sft a.yaml" for task in range(2)]
    done = launching.run(["bash", "-c", f"{tasks[1]} & {tasks[0]}; wait"], folder, **step)
    check_ran(folder, done, 2, "DistributedDataParallel", 0)


FSDP1 = """distributed_type: FSDP
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_state_dict_type: SHARDED_STATE_DICT
num_processes: 2
mixed_precision: 'no'
"""
OWN_JSON = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: mine.json\nnum_processes: 2\n"
OWN_ADAM = OWN_JSON.replace("mine", "adam")
"""A JSON file as other projects have it: with an optimizer and fp16."""
BESIDE = OWN_JSON.replace("\nnum_", "\n  zero_stage: 2\n  gradient_clipping: 1.0\nnum_")
ZERO4 = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 4\nnum_processes: 2\n"
ONE_OF_TWO = "distributed_type: 'NO'\nnum_processes: 2\n"
MPI = "distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
MEGATRON = "distributed_type: MEGATRON_LM\nmegatron_lm_config:\n  megatron_lm_tp_degree: 2\nnum_processes: 2\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FSDP1, "fsdp_version: 1, which this suite does not run with; write fsdp_version: 2"),
        (FSDP2.read_text().replace("efficient_loading: false", "efficient_loading: true"), "efficient_loading: false"),
        (MEGATRON, "Megatron-LM"),
        (OWN_ADAM, 'adam.json: remove the section "optimizer"; the optimizer is set by training.learning_rate'),
        (BESIDE, "beside which accelerate takes no zero_stage, gradient_clipping; remove it from the launch file"),
        (ZERO4, "zero_stage: 4; write 0, 1, 2 or 3"),
        (ONE_OF_TWO, "num_processes: 2, and accelerate has started one process; write distributed_type: MULTI_GPU"),
        (MPI, "num_processes: 2, and accelerate has started one process; write distributed_type: MULTI_GPU"),
    ],
    ids=[
        "fsdp1",
        "fsdp2 of accelerate config",
        "megatron",
        "deepspeed with adam and fp16",
        "deepspeed json and more",
        "zero 4",
        "two of the kind no",
        "two of the kind multi cpu",
    ],
)
def test_a_file_that_is_not_obeyed_is_refused_in_one_line(folder, text, said):
    (folder / "mine.yaml").write_text(text)
    zero = {"zero_optimization": {"stage": 2}} | dict.fromkeys(launching.SETTINGS, "auto")
    (folder / "mine.json").write_text(json.dumps(zero))
    (folder / "adam.json").write_text(json.dumps(zero | {"optimizer": {"type": "AdamW"}, "fp16": {"enabled": True}}))
    done = launching.launch(folder / "mine.yaml", ["-m", "sft", "a.yaml"], folder)
    assert done.code != 0
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (folder / "runs").exists()
