"""Prepare SFT: the initial model, the rows as token ids and labels, and TRL's arguments."""

from __future__ import annotations

from dataclasses import dataclass

from trl import SFTConfig

from alignment.config.arguments import trainer_arguments
from alignment.data.check import DataReport, Inspector
from alignment.distributed import heartbeat, processes
from alignment.errors import ConfigError
from alignment.models import methods
from alignment.models.lengths import check_length
from alignment.registry import Registry
from alignment.runs.journal import NUM_SAMPLES
from alignment.runs.run import Run
from alignment.training import opening, start_model
from alignment.training.arguments import make_arguments as make_trl_arguments
from alignment.training.data_check import check_before_training
from sft.config import DEFAULTS, SFTStageConfig
from sft.data import EncodedData, encode_data, training_texts


@dataclass(frozen=True)
class PreparedSFT:
    """The inputs of a trainer: the initial model, the rows as token ids and labels, and the arguments."""

    seed: int
    registry: Registry
    start: start_model.StartModel
    data: EncodedData
    arguments: SFTConfig
    report: DataReport
    """The report of the data check."""


def prepare(config: SFTStageConfig, run: Run | None = None) -> PreparedSFT:
    """Read the data, find the initial model (pinned by the run), and encode the rows; nothing is left on disk."""
    heartbeat.enter("reading the data", patient=True)
    seed = trainer_arguments(SFTConfig, DEFAULTS, config.training).get("seed", 42)
    stage, fsdp = processes.launched_zero_stage(), processes.under_fsdp()
    processes.on_main_process(lambda: methods.check(config.model, stage, fsdp=fsdp))
    processes.start_processes()
    registry = opening.open_registry(config, run)
    start = start_model.start_model(config, registry, training_texts(config.data))
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    folder = config.run_dir if config.run_dir.is_dir() else None
    is_main = processes.is_main_process()
    inspector = Inspector(config.data, start.tokenizer, stage="sft") if is_main else None
    data = encode_data(config.data, start.tokenizer, folder, is_main, inspector=inspector, num_samples=NUM_SAMPLES)
    report = processes.on_main_process(lambda: check_before_training(config, inspector))
    arguments = make_arguments(config, no_eval=len(data.eval) == 0)
    return PreparedSFT(seed, registry, start, data, arguments, report)


def make_arguments(config: SFTStageConfig, no_eval: bool) -> SFTConfig:
    """TRL's arguments, without its packing, which cuts rows and counts packed rows as a batch.

    Raises:
        ConfigError: an argument is wrong, or not supported on this machine.
    """
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    arguments = make_trl_arguments(SFTConfig, config, defaults, max_length=None, no_eval=no_eval)
    if arguments.activation_offloading and processes.on_cpu():
        raise ConfigError(
            "training.activation_offloading moves activations off the GPU, and there is no GPU; remove the key"
        )
    if arguments.router_aux_loss_coef is not None:  # TRL copies it to a model config that does not accept an integer
        arguments.router_aux_loss_coef = float(arguments.router_aux_loss_coef)
    return arguments
