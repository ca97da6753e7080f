"""Trying what comes with a stranger's model before it is used: its template and tokenizer, and its config's sizes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignment.errors import ModelError
from alignment.files import read_file
from alignment.registry.hashes import cache_folder

SECONDS = 20.0
"""Processor time for rendering a few short conversations and tokenizing a few texts: real models take less than one."""
MEMORY = 2 << 30
_PATIENCE = 15
"""The clock's time by the processor's, since a busy machine gives a process only part of it."""
_LARGEST_CONFIG = 10_000_000
_MOST_LAYERS = 100_000
_MOST_POSITIONS = 1_000_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_WIDTHS = (
    "hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "ffn_dim", "n_inner", "n_positions", "n_ctx",
    "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim", "moe_intermediate_size",
    "state_size", "num_labels",
)  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")


def check_stranger(folder: Path, source: str, *, with_template: bool = True, seconds: float | None = None) -> None:
    """Refuse a model folder that would take all time or memory; what passed once on this machine is not tried again.

    Args:
        source: its name in errors.
        with_template: whether its own chat template is used.
        seconds: processor time for the trial; None: SECONDS.

    Raises:
        ModelError: which part it is, and what it did.
    """
    check_sizes(folder, source)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return
    known = _known(folder, with_template, source)
    if known is not None and known.is_file():
        return
    _try(folder, source, with_template, seconds or SECONDS)
    if known is not None:
        try:
            known.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            known.touch()
        except OSError:
            pass  # a read-only home only costs time


def _try(folder: Path, source: str, with_template: bool, seconds: float) -> None:
    program = str(Path(__file__).with_name("trial_program.py"))
    # -P keeps the program's own folder off the module search path.
    command = [sys.executable, "-P", program, str(folder), str(seconds), str(MEMORY)]
    command.append("template" if with_template else "no template")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RUST_BACKTRACE": "0"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        output, _ = process.communicate(timeout=seconds * _PATIENCE + 120)
    except subprocess.TimeoutExpired:
        output = b""
    finally:
        process.kill()
        rest, _ = process.communicate()
    lines = [json.loads(line) for line in (output or rest).splitlines() if line.startswith(b"{")]
    part = next((line["part"] for line in reversed(lines) if "part" in line), "its tokenizer")
    result = next((line for line in lines if "result" in line), {"result": "killed"})
    if result["result"] != "fine":
        raise ModelError(f"{source}: {part} {_failure(result, process.returncode, seconds)}; it is not safe to use")


def _failure(result: dict[str, Any], code: int, seconds: float) -> str:
    """What a part did, in words."""
    reason = f" ({result['reason']})" if result.get("reason") else ""
    if result["result"] == "memory":
        return f"takes more than {MEMORY >> 30} GiB of memory or writes without end, on short texts{reason}"
    if result["result"] != "killed":
        return f"fails on ordinary texts: {result['result']}{reason}"
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes more than {seconds:g} seconds on a few short texts"
    return f"ends the process that tries it (code {code})"


def _known(folder: Path, with_template: bool, source: str) -> Path | None:
    """The place of the note that these very files passed."""
    home = cache_folder()
    if home is None:
        return None
    digest = hashlib.sha256(Path(__file__).with_name("trial_program.py").read_bytes() + bytes([with_template]))
    names = ("tokenizer.json", "tokenizer_config.json", *sorted(path.name for path in folder.glob("*.jinja")))
    for name in names:
        try:
            digest.update(f"\n{name}\n".encode() + hashlib.sha256(read_file(folder / name)).digest())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ModelError(f"{source}: {name} cannot be read ({error.strerror})") from None
    return home.parent / "tried" / digest.hexdigest()


def check_sizes(folder: Path, source: str) -> None:
    """Refuse a config.json whose sizes the weights do not have, before transformers builds a model of that size.

    Raises:
        ModelError: the key, what it says, and what the weights have.
    """
    try:
        config = json.loads(read_file(folder / "config.json", _LARGEST_CONFIG))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(f"{source}: config.json cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{source}: config.json is not JSON; download it again") from None
    layers, widest = _weights_sizes(folder)
    for key, value in _numbers(config):
        name = key.rpartition(".")[2]
        most = None
        if name in _LAYERS and layers:
            most, what = layers, f"the weights have {layers}"
        elif name in (*_LAYERS, *_WIDTHS) and widest:
            most, what = widest, f"the largest dimension of the weights is {widest:,}"
        elif name in _EXPERTS and widest:  # product keys find n * n experts by two tables of n (Doge)
            most, what = widest**2, f"the largest dimension of the weights is {widest:,}"
        elif name in _LAYERS:
            most, what = _MOST_LAYERS, f"at most {_MOST_LAYERS:,} makes sense"
        elif name in (*_WIDTHS, *_EXPERTS, "max_position_embeddings"):
            most, what = _MOST_POSITIONS, f"at most {_MOST_POSITIONS:,} makes sense"
        if most is not None and value > most:
            raise ModelError(f"{source}: config.json says {key} {value:,}, and {what}; get the model's own config.json")


def _numbers(config: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a config, those of its sections (`text_config`) among them, by dotted key."""
    waiting = [("", config)]
    while waiting:
        before, section = waiting.pop()
        for key, value in section.items() if isinstance(section, dict) else ():
            if isinstance(value, dict):
                waiting.append((f"{before}{key}.", value))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{before}{key}", value


def _weights_sizes(folder: Path) -> tuple[int, int]:
    """The number of layers that the weights' names tell, and the largest dimension; 0 where nothing is told."""
    layers, widest, tensors_in_all = 0, 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    tensors_in_all += 1
                    numbers = [int(number) for number in _LAYER.findall(name)]
                    layers = max([layers, *(number + 1 for number in numbers[:1])])
                    widest = max([widest, *tensors.get_slice(name).get_shape()])
        except (OSError, SafetensorError):
            continue  # loading names it
    return layers, max(widest, tensors_in_all) if widest else 0
