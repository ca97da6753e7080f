"""configs/accelerate: each file is read by accelerate's own launcher and gives what its name says."""

from pathlib import Path

import pytest
from accelerate import DeepSpeedPlugin, PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from alignment.distributed import processes
from alignment.errors import UserError
from alignment.memory.plan import SINGLE, STRATEGIES

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
# By name: ZeRO's stage, and where optimizer and weights are.
DEEPSPEED = {
    "zero1": (1, "none"),
    "zero2": (2, "none"),
    "zero3": (3, "none"),
    "zero3-offload": (3, "cpu"),
    "zero3-nvme": (3, "nvme"),
    "multinode": (2, "none"),
}
PLAIN = {"cpu": "MULTI_GPU", "single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}


def parsed(path, *options):
    """What `accelerate launch` makes of a file and more options."""
    arguments = ["--config_file", str(path), *options, "-m", "sft", "a.yaml"]
    found, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return found


def plugin(path, monkeypatch, *options):
    """The DeepSpeed plugin that a process of this launch makes."""
    found = parsed(path, "--main_process_port", "0", *options)
    found.deepspeed_fields_from_accelerate_config = ""
    command, environment = prepare_deepspeed_cmd_env(found)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return DeepSpeedPlugin(), command, found


def test_there_is_a_file_for_each_strategy_of_the_plan():
    assert {path.stem for path in FILES} == {*DEEPSPEED, *PLAIN}
    assert {strategy.name for strategy in (SINGLE, *STRATEGIES)} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_header_says_when_to_choose_it_and_how_to_launch(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 2
    assert f"--config_file configs/accelerate/{path.name}" in "\n".join(header)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_launches_what_it_says(name):
    path = FOLDER / f"{name}.yaml"
    assert load_config_from_file(str(path)).distributed_type.value == PLAIN[name]
    found = parsed(path)
    assert not found.use_deepspeed
    assert found.multi_gpu == (PLAIN[name] == "MULTI_GPU")
    assert found.use_fsdp == (name == "fsdp2")
    assert found.use_cpu == (name == "cpu")
    if found.multi_gpu:
        assert "ACCELERATE_USE_DEEPSPEED" not in prepare_multi_gpu_env(found)


@pytest.mark.parametrize("name", DEEPSPEED)
def test_a_deepspeed_file_gives_the_stage_it_says(name, monkeypatch):
    path = FOLDER / f"{name}.yaml"
    stage, device = DEEPSPEED[name]
    options = ["--main_process_ip", "127.0.0.1", "--machine_rank", "1"] if name == "multinode" else []
    made, command, found = plugin(path, monkeypatch, *options)
    assert command is None  # torchrun's launcher, not DeepSpeed's pdsh
    assert not found.use_cpu
    assert made.zero_stage == stage
    assert (made.offload_optimizer_device, made.offload_param_device) == (device, device)
    assert made.zero3_init_flag == made.zero3_save_16bit_model == (stage == 3)
    zero = made.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage


def test_the_folder_for_nvme_comes_from_the_environment_and_is_asked_for(monkeypatch):
    """accelerate's launcher passes over `offload_param_nvme_path` in its file; the folder would be called `none`."""
    names = [f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_NVME_PATH" for part in ("OPTIMIZER", "PARAM")]
    header = (FOLDER / "zero3-nvme.yaml").read_text()
    assert all(f"{name}=" in header for name in names)
    plugin(FOLDER / "zero3-nvme.yaml", monkeypatch)
    monkeypatch.setenv(names[0], "/disk")
    monkeypatch.setattr(PartialState, "_shared_state", {})  # of an earlier test, with which no launch is looked at
    with pytest.raises(UserError, match=names[1]):
        processes.start_processes()
    monkeypatch.setenv(names[1], "/disk")
    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    assert zero["offload_param"]["nvme_path"] == zero["offload_optimizer"]["nvme_path"] == "/disk"


def test_several_nodes_are_started_by_torchrun_and_can_be_zero3(monkeypatch):
    nodes = ["--main_process_ip", "10.0.0.1", "--machine_rank", "1", "--num_machines", "4", "--num_processes", "32"]
    zero3 = ["--zero_stage", "3", "--zero3_init_flag", "true", "--zero3_save_16bit_model", "true"]
    made, command, found = plugin(FOLDER / "multinode.yaml", monkeypatch, *nodes, *zero3)
    assert command is None
    assert (found.nnodes, found.nproc_per_node, found.node_rank) == ("4", "8", 1)
    assert made.zero_stage == 3 and made.zero3_save_16bit_model
