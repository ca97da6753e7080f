"""Training methods: full fine-tuning, the output head, or one of eight adapters, and the settings each works in.

`METHODS` is the one table: defaults, and for each method the settings in which it does not work, with the reason.
`check` reads it before anything is loaded, and `docs/guides/methods.md` is generated from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.config.arguments import trainer_arguments
from alignment.config.sections import ADAPTERS, ModelConfig
from alignment.errors import ConfigError

SETTINGS = {
    "DDP": "several processes without DeepSpeed",
    "ZeRO-2": "DeepSpeed shards optimizer state and gradients (or, as ZeRO-1, the state alone)",
    "ZeRO-3": "DeepSpeed shards the weights too",
    "FSDP2": "PyTorch shards weights, gradients and optimizer state",
    "nf4": "frozen weights in 4 bits",
    "continue": "training of a published adapter continues, instead of merging it under a new one",
    "resume": "a run that was killed resumes bit for bit (`--resume auto`)",
    "LoRA beside": "a trainable LoRA on the same frozen base, as PPO's `model.mode: shared` has it for the critic",
    "mixed batch": "rows of one batch with different adapters (PEFT's `adapter_names`)",
}


@dataclass(frozen=True)
class Method:
    """One training method. `fails` maps each of SETTINGS in which it does not work to the reason."""

    summary: str
    learning_rate: float | None = None
    """Default learning rate; None: the stage's own."""
    peft_config: str | None = None
    """Name of PEFT's config class; None: no adapter."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fails: Mapping[str, str] = field(default_factory=dict)


_NO_ADAPTER = {
    "nf4": "rounded weights cannot be trained, only an adapter on them",
    **dict.fromkeys(("continue", "LoRA beside", "mixed batch"), "there is no adapter"),
}
_LORA = {"r": 16, "lora_alpha": 32}
_ALONE = {
    "LoRA beside": "PEFT mixes no other kind with it",
    "mixed batch": "PEFT silently ignores `adapter_names`",
}
_LYCORIS = {"nf4": "PEFT cannot put it on 4-bit layers", **_ALONE}
_INSIDE_BACKWARD = "DeepSpeed steps inside backward, so the gradients that ranks are chosen by are gone"

# Learning rates: LoRA's best is about ten times that of full fine-tuning (Schulman et al. 2025, "LoRA Without
# Regret"); 2e-4 is QLoRA's for 7B and 13B (Dettmers et al. 2023), 3e-3 IA3's (Liu et al. 2022), 5e-4 at the lower end
# of AdaLoRA's (Zhang et al. 2023). rsLoRA scales by alpha / sqrt(r): 4 with alpha = r = 16; LoRA's alpha / r is 2.
METHODS: dict[str, Method] = {
    "full": Method("every weight", fails=_NO_ADAPTER),
    "head": Method("the output head, and the last `last_n_layers` layers, on a frozen body", 1e-4, fails=_NO_ADAPTER),
    "lora": Method("low-rank updates of every linear layer", 2e-4, "LoraConfig", _LORA),
    "dora": Method(
        "LoRA that learns each column's length apart from its direction",
        2e-4,
        "LoraConfig",
        {**_LORA, "use_dora": True},
        {"mixed batch": "PEFT refuses `adapter_names`"},
    ),
    "rslora": Method(
        "LoRA scaled by alpha / sqrt(r), for high ranks",
        1e-4,
        "LoraConfig",
        {"r": 16, "lora_alpha": 16, "use_rslora": True},
    ),
    "adalora": Method(
        "LoRA whose ranks shrink where they matter least",
        5e-4,
        "AdaLoraConfig",
        {"init_r": 12, "target_r": 8, "lora_alpha": 32},
        {
            **dict.fromkeys(("ZeRO-2", "ZeRO-3"), _INSIDE_BACKWARD),
            "FSDP2": "its penalty and its choice of ranks need the whole adapter",
            "continue": "its ranks have been cut and its schedule has ended",
            "LoRA beside": "PEFT allows one alone",
            "mixed batch": "PEFT refuses `adapter_names`",
        },
    ),
    "qlora": Method("LoRA on weights in 4 bits (NF4, quantized twice)", 2e-4, "LoraConfig", _LORA),
    "ia3": Method("scales of keys, values and inner activations", 3e-3, "IA3Config", fails=_ALONE),
    "loha": Method("Hadamard products of low-rank matrices", 2e-4, "LoHaConfig", {"r": 8, "alpha": 8}, _LYCORIS),
    "lokr": Method("Kronecker products", 2e-4, "LoKrConfig", {"r": 8, "alpha": 8}, _LYCORIS),
}
NEAREST = ("lora", "qlora", "full")
ADVICE = (
    "advice: model.method={} under {} sends the whole frozen base to every process for each pass, to train a small "
    "adapter; where one device holds the base, launch with configs/accelerate/zero2.yaml"
)

_REWRITES = "it rewrites the base's weights, and the adapter would not fit the base on record"
OWNED = {
    **dict.fromkeys(
        ("peft_type", "task_type", "auto_mapping", "peft_version", "revision", "base_model_name_or_path"), "PEFT's own"
    ),
    **dict.fromkeys(("inference_mode", "fan_in_fan_out"), "it follows from the model"),
    **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "lora_ga_config", "layer_replication"), _REWRITES),
    **dict.fromkeys(
        ("modules_to_save", "trainable_token_indices"),
        "an adapter version holds the adapter alone; to train whole layers, set model.method=head",
    ),
    "use_dora": "set model.method=dora",
    "use_rslora": "set model.method=rslora",
    "total_step": "it is counted from the data",
}


# --- before anything is loaded -------------------------------------------------------------------------------------


def check(config: ModelConfig, zero_stage: int = 0, *, fsdp: bool = False) -> None:
    """Refuse a method that does not work in this setting, and advise against one that works but is slow.

    Raises:
        ConfigError: one line with the setting, the reason and the nearest method that works; or an argument that PEFT
            does not have.
    """
    settings = [f"ZeRO-{max(zero_stage, 2)}"] * bool(zero_stage) + ["FSDP2"] * fsdp + ["nf4"] * config.quantized
    for setting in settings:
        if reason := METHODS[config.method].fails.get(setting):
            nearest = next(name for name in NEAREST if not set(settings) & set(METHODS[name].fails))
            raise ConfigError(
                f"model.method={config.method} does not work with {setting}: {reason}; use model.method={nearest}"
            )
    if config.method in ADAPTERS:
        adapter_arguments(config)
        if zero_stage == 3 or fsdp:
            print(ADVICE.format(config.method, "FSDP2" if fsdp else "ZeRO-3"), file=sys.stderr)


def with_learning_rate(defaults: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """A stage's default arguments with the method's learning rate, if the method has its own."""
    rate = METHODS[config.method].learning_rate
    return {**defaults, **({"learning_rate": rate} if rate else {})}


def adapter_arguments(config: ModelConfig) -> dict[str, Any]:
    """The arguments of the method's PEFT config: its defaults and the config's `model.adapter`.

    Raises:
        ConfigError: PEFT does not have an argument, or the suite sets it itself.
    """
    method = METHODS[config.method]
    assert method.peft_config
    import peft  # takes seconds, and only an adapter needs it

    cls = getattr(peft, method.peft_config)
    arguments = trainer_arguments(cls, method.defaults, config.adapter, OWNED, "model.adapter")
    if arguments.get("init_lora_weights", True) not in (True, "gaussian", "orthogonal"):
        raise ConfigError(f"model.adapter.init_lora_weights={arguments['init_lora_weights']}: {_REWRITES}")
    return arguments
