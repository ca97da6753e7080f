"""Check a launcher's settings in the environment: each is obeyed, or refused in one line before anything is loaded.

A run launched with FSDP and trained without it would show so only by running out of memory, or never.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from alignment.errors import UserError

USE_ZERO = "launch with configs/accelerate/zero2.yaml or zero3.yaml, which shard the same over the processes"
UNSUPPORTED_LAUNCHES = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM (distributed_type: MEGATRON_LM)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism (parallelism_config)",
}
REFUSED_SECTIONS = {
    "optimizer": "the optimizer is set by training.learning_rate and the keys beside it",
    "scheduler": "the schedule is set by training.lr_scheduler_type and training.warmup_steps",
    "amp": "mixed precision is set by training.bf16",
    "tensor_parallel": "only ZeRO shards the weights",
}
"""Sections of a DeepSpeed config that are refused, each with its replacement."""
SET_BY_CONFIG = {
    "train_batch_size": "the config's batch size",
    "train_micro_batch_size_per_gpu": "the config's batch size",
    "gradient_accumulation_steps": "the config's training section",
    "gradient_clipping": "training.max_grad_norm",
}
_NOT_IN_FSDP2 = "remove it: FSDP2 has no such setting"
FSDP_SETTINGS = {
    "version": (("2",), "write fsdp_version: 2"),
    "auto_wrap_policy": (("transformer_based_wrap",), "write fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"),
    "reshard_after_forward": (("true", "false"), "write true or false"),
    "cpu_ram_efficient_loading": (
        ("false",), "write fsdp_cpu_ram_efficient_loading: false (without the key accelerate's launcher says true)"
    ),
    "state_dict_type": (
        ("sharded_state_dict", "full_state_dict"), "write fsdp_state_dict_type: SHARDED_STATE_DICT"
    ),
    "offload_params": (("false",), "remove it; to offload, launch with configs/accelerate/zero3-offload.yaml"),
    "activation_checkpointing": (("false",), "remove it, and set training.gradient_checkpointing=true"),
    "transformer_cls_to_wrap": ((), "remove it: each layer of the model is sharded by itself"),
    "ignored_modules": ((), "remove it: the whole model is sharded"),
    "sharding_strategy": (("full_shard", "1"), "remove it; fsdp_reshard_after_forward: false is FSDP2's SHARD_GRAD_OP"),
    "backward_prefetch": (("backward_pre",), _NOT_IN_FSDP2),
    "forward_prefetch": (("false",), _NOT_IN_FSDP2),
    "use_orig_params": (("true",), _NOT_IN_FSDP2),
    "sync_module_states": (("true",), _NOT_IN_FSDP2),
}  # fmt: skip
"""Settings of an FSDP launch, from `FSDP_*` variables: values that are obeyed, and the fix for any other."""
FSDP_DEFAULTS = {"version": "1", "auto_wrap_policy": "NO_WRAP"}
"""What accelerate takes for a setting that is missing, where that is not obeyed."""
ZERO = "zero_optimization"
HIDDEN_SIZE_KEYS = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
"""Keys whose "auto" accelerate derives from a model's hidden size."""
AUTO_KEYS = {
    *SET_BY_CONFIG, "bf16.enabled", "fp16.enabled", f"{ZERO}.stage", *(f"{ZERO}.{key}" for key in HIDDEN_SIZE_KEYS),
    f"{ZERO}.stage3_gather_16bit_weights_on_model_save",
    *(f"{ZERO}.offload_{part}.{key}" for part in ("optimizer", "param") for key in ("device", "nvme_path")),
}  # fmt: skip
"""Keys of a DeepSpeed config that may be "auto"."""
BESIDE_JSON = (
    "gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
    "offload_param_device", "offload_param_nvme_path", "offload_optimizer_nvme_path", "zero3_save_16bit_model",
    "mixed_precision",
)  # fmt: skip
"""Settings of a launch file that accelerate refuses, with a traceback, beside a `deepspeed_config_file`."""


def check_launch() -> None:
    """Refuse a launch that no stage supports. Reads the environment, the DeepSpeed config that it names, and the
    command and the launch file of accelerate's launcher.

    Raises:
        UserError: the launch is not one process, DDP, DeepSpeed or FSDP2; its mixed precision is not bfloat16; it
            compiles the model; one of its DeepSpeed or FSDP settings cannot be used; or it started one process where
            more were asked for.
    """
    _check_one_process()
    for name, kind in UNSUPPORTED_LAUNCHES.items():
        if _is_on(name):
            raise UserError(f"the launch file asks for {kind}, which this suite does not run under; {USE_ZERO}")
    precision = _precision()
    if precision not in ("no", "bf16"):
        raise UserError(
            f"the launch file says mixed_precision: {precision}; write mixed_precision: 'no' there, and set "
            "training.bf16=true for bfloat16"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(f"the launch file compiles the model (dynamo_backend: {backend}); write dynamo_backend: 'NO'")
    if _is_on("ACCELERATE_USE_FSDP"):
        _check_fsdp()
    if (path := _deepspeed_file()) is not None:
        given = os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
        if beside := [name for name in given if name in BESIDE_JSON]:
            raise UserError(
                f"the launch file has a deepspeed_config_file, beside which accelerate takes no {', '.join(beside)}; "
                "remove it from the launch file: the JSON file, or the config's training section, sets it"
            )
        _check_deepspeed(path, _read(path))
    elif _is_on("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("0", "1", "2", "3"):
            raise UserError(f"the launch file says zero_stage: {stage}; write 0, 1, 2 or 3")


def check_against_config(*, bf16: bool, accumulation: int, max_grad_norm: float) -> None:
    """Refuse a launch file that contradicts the config, before a model is loaded.

    Args:
        accumulation: gradient accumulation steps.

    Raises:
        UserError: a setting differs; the message gives both values.
    """
    deepspeed = _deepspeed_file()
    deepspeed_bf16 = deepspeed is not None and (_read(deepspeed).get("bf16") or {}).get("enabled") is True
    if (_precision() == "bf16" or deepspeed_bf16) and not bf16:
        where = f"{deepspeed}: bf16.enabled is true" if deepspeed_bf16 else "the launch file says mixed_precision: bf16"
        fix = '"auto"' if deepspeed_bf16 else "mixed_precision: 'no'"
        raise UserError(f"{where}, and training.bf16 is false; set training.bf16=true, or write {fix} there")
    if not _is_on("ACCELERATE_USE_DEEPSPEED"):
        return
    for name, key, configured in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", float(accumulation)),
        ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping", max_grad_norm),
    ):
        launched = os.environ.get(name, "auto")
        if launched not in ("auto", "none") and float(launched) != configured:
            raise UserError(
                f"the launch file says {key}: {launched}, and the config has {configured:g} ({SET_BY_CONFIG[key]}); "
                f"remove {key} from the launch file"
            )


def join_slurm_step() -> None:
    """Take the place of a launcher for the tasks that `srun` starts, where MASTER_ADDR and MASTER_PORT are set.

    Without these variables tasks side by side are runs of their own, each with its own name.
    """
    found = os.environ
    if "RANK" in found or not {"MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID"} <= found.keys():
        return
    if int(size := found.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        found.update(RANK=found["SLURM_PROCID"], LOCAL_RANK=found["SLURM_LOCALID"], WORLD_SIZE=size)


def refuse_deepspeed_launcher(arguments: str) -> None:
    """Refuse a launch by `deepspeed` that does not tell accelerate about ZeRO; it passes --local_rank.

    Args:
        arguments: the launched command, from `-m` on.

    Raises:
        UserError: no variable of accelerate's names DeepSpeed or FSDP; with the command that works.
    """
    if _is_on("ACCELERATE_USE_DEEPSPEED") or _is_on("ACCELERATE_USE_FSDP"):
        return
    processes = os.environ.get("WORLD_SIZE", "1")
    raise UserError(
        "--local_rank is what the launchers `deepspeed` and torch.distributed.launch pass, under which no ZeRO would "
        "run; launch with accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes "
        f"{processes} {arguments}"
    )


def _check_one_process() -> None:
    """Refuse one process of `accelerate launch` where more were asked for: without a word it starts one for the kinds
    `NO` and `MULTI_CPU`."""
    if "RANK" in os.environ:
        return
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:  # not Linux
        return
    if "accelerate.commands.launch" not in command and [Path(each).name for each in command[1:3]] != [
        "accelerate", "launch",
    ]:  # fmt: skip
        return
    options = dict(pairwise(command))
    options |= dict(each.split("=", 1) for each in command if each.startswith("--") and "=" in each)
    count = options.get("--num_processes", "")
    if not count and (file := options.get("--config_file")):
        with suppress(OSError):
            found = re.search(r"^num_processes:\s*(\d+)", Path(file).read_text(encoding="utf-8"), re.MULTILINE)
            count = found[1] if found else ""
    if count.isdigit() and int(count) > 1:
        raise UserError(
            f"the launch says num_processes: {count}, and accelerate has started one process; write distributed_type: "
            "MULTI_GPU in the launch file (on CPUs too), as configs/accelerate/ddp.yaml does"
        )


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def _precision() -> str:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def _deepspeed_file() -> Path | None:
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    return Path(path) if _is_on("ACCELERATE_USE_DEEPSPEED") and path.lower() != "none" else None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"deepspeed_config_file: {path} cannot be read ({error.strerror}); name a JSON file") from None
    except ValueError as error:
        raise UserError(f"deepspeed_config_file: {path} is not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get(ZERO), dict):
        raise UserError(f'{path}: there is no section "{ZERO}"; add "{ZERO}": {{"stage": 2}}, or use zero2.yaml')
    return config


def _check_fsdp() -> None:
    for name, (obeyed, fix) in FSDP_SETTINGS.items():
        value = os.environ.get(f"FSDP_{name.upper()}", FSDP_DEFAULTS.get(name))
        if value is not None and value.lower() not in obeyed:
            key = f"fsdp_{name}".replace("_cls_to", "_layer_cls_to")
            raise UserError(f"the launch file says {key}: {value}, which this suite does not run with; {fix}")


def _check_deepspeed(path: Path, config: Mapping[str, Any]) -> None:
    for name, replacement in REFUSED_SECTIONS.items():
        if name in config:
            raise UserError(f'{path}: remove the section "{name}"; {replacement}')
    for name, setter in SET_BY_CONFIG.items():
        if config.get(name, "auto") != "auto":
            raise UserError(f'{path}: {name} is {config[name]}, but {setter} sets it; write "{name}": "auto"')
        if name not in config and name != "train_batch_size":  # DeepSpeed's defaults are 1, and no clipping
            raise UserError(f'{path}: {name} is missing, but {setter} sets it; write "{name}": "auto"')
    if (config.get("fp16") or {}).get("enabled") is True:
        raise UserError(f"{path}: fp16.enabled is true; remove fp16, and set training.bf16=true for bfloat16")
    for key in _auto_keys(config):
        if key not in AUTO_KEYS:
            raise UserError(f'{path}: {key} is "auto", which nothing fills in; write a value, or remove the key')


def _auto_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _auto_keys(value, f"{prefix}{name}.")
        elif value == "auto":
            yield f"{prefix}{name}"
