"""What a training method needs while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import peft
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.distributed import zero3
from alignment.errors import ConfigError


def attach(trainer: Trainer, config: ModelConfig) -> None:
    """Set up a trainer for the method of its model."""
    zero3.cast_to_shard_dtype(trainer.model)
    if config.method not in ADAPTERS:
        return
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and config.quantized:
            # TRL rounds the adapter on a quantized model to bfloat16, in which small updates are lost.
            parameter.data = parameter.data.float()
    if config.method == "adalora":
        # PEFT takes a layer that keeps no rank for a ZeRO-3 shard, but AdaLoRA never runs under ZeRO-3.
        warnings.filterwarnings("ignore", message="Adapter 'default': .* invalid shape")
        trainer.add_callback(AdaLoraCallback(trainer.model, config.adapter))


class AdaLoraCallback(TrainerCallback):
    """Prunes AdaLoRA's ranks, which no trainer does by itself.

    By default no rank is cut in the first tenth of the steps, nor in the last three.
    """

    def __init__(self, model: PeftModel, chosen: Mapping[str, Any]) -> None:
        self._tuner, self._chosen = model.base_model, chosen

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        schedule, steps = self._tuner.peft_config["default"], state.max_steps
        schedule.total_step = steps
        schedule.tinit = self._chosen.get("tinit", steps // 10)
        schedule.tfinal = self._chosen.get("tfinal", 3 * steps // 10)
        if schedule.tinit >= steps - schedule.tfinal:
            raise ConfigError(
                f"model.adapter: tinit={schedule.tinit} and tfinal={schedule.tfinal} leave none of the {steps} steps "
                "to cut ranks in; make them smaller or train longer"
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # This runs before zero_grad: ranks are chosen by the gradients, which are gone at on_step_end.
        self._tuner.update_and_allocate(state.global_step + 1)


def regularisation(model: nn.Module) -> Tensor | float:
    """The method's extra loss term: AdaLoRA's orthogonality penalty (Zhang et al. 2023, equation 4), else 0.

    PEFT adds it to the model's own loss, which TRL's trainers do not use.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, peft.AdaLoraModel):
        return 0.0
    penalties = []
    for name, weight in tuner.model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:  # (r, in), (out, r)
            gram = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            penalties.append(torch.linalg.matrix_norm(gram - identity))
    return tuner.peft_config["default"].orth_reg_weight * torch.stack(penalties).mean()
