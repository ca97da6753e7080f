"""Recognising the model formats that people have on disk, with advice for those that are not Hugging Face folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from alignment.errors import ModelError

IMPORT = "import it first: alignment models import {} NAME"
AS_FOLDER = "get the model in Hugging Face's format (config.json, *.safetensors, tokenizer.json)"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json", "merges.txt",
)  # fmt: skip


def is_gguf(path: Path) -> bool:
    """Whether a file has the name or the magic bytes of a GGUF file."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def is_path(name: str) -> bool:
    """Whether a name can only be a path, and neither a registry reference nor a hub name."""
    return name.startswith(("/", "./", "../", "~", ".\\")) or name.endswith("/") or name.lower().endswith(".gguf")


def about_file(path: Path) -> str:
    """Advice for a file in place of a model's folder."""
    if is_gguf(path):
        return f"a GGUF file; {IMPORT.format(path)}"
    if path.suffix == ".zip" or ".tar" in path.suffixes or path.suffix in (".gz", ".tgz"):
        return "an archive; unpack it and name the folder"
    if path.suffix.lower() in _WEIGHTS and (path.parent / "config.json").is_file():
        return f"one file of a model; name its folder, {path.parent}"
    if path.suffix.lower() in _WEIGHTS:
        return f"weights alone, without config.json and a tokenizer beside them; {AS_FOLDER}"
    return "a file; name the folder of a model, or a GGUF file"


def about_folder(path: Path) -> str:
    """Advice for a folder without config.json, from the names of its files."""
    names = {entry.name for entry in path.iterdir()}
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    if len(ggufs) == 1:
        return f"holds a GGUF file alone; {IMPORT.format(path / ggufs[0])}"
    if ggufs:
        return f"holds {len(ggufs)} GGUF files; choose one and {IMPORT.format(path / ggufs[0])}"
    if "adapter_config.json" in names:
        return f"an adapter alone, without its base; {IMPORT.format(path)} --base REF"
    if "params.json" in names and any(name.endswith(".pth") for name in names):
        return f"Meta's own format (params.json, consolidated.00.pth); {AS_FOLDER} of the same model"
    if "params.json" in names and any(name.startswith("consolidated") for name in names):
        return f"Mistral's own format (params.json, consolidated.safetensors); {AS_FOLDER} of the same model"
    if inner := [entry for entry in sorted(path.iterdir()) if entry.is_dir() and (entry / "config.json").is_file()]:
        return f"holds no model (no config.json); name the folder in it that does: {inner[0]}"
    return "holds no model (no config.json)"


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def quantization(folder: Path) -> str | None:
    """Advice for a folder whose weights are stored quantized; None if they are not.

    The stages train plain weights, or quantize them themselves (`model.method=qlora`): a packed weight takes no
    gradient, and merging an adapter onto one needs the kernels that packed it.
    """
    config = read_json(folder / "config.json")
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    if not settings:
        return None
    method = str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else "unknown"
    if "bits" not in method and isinstance(settings, dict) and settings.get("load_in_4bit"):
        method = "bitsandbytes"
    tool = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}.get(method)
    more = f", or load it with transformers' {tool}(dequantize=True) and save that" if tool else ""
    return (
        f"its weights are stored quantized ({method}), which cannot be trained; get the model as it was before it was "
        f"quantized{more}; model.method=qlora quantizes it in training"
    )


def no_policy(config: Any, names: set[str]) -> str | None:
    """Advice for a config.json of neither a causal language model nor a reward model; None if it may be one."""
    if not isinstance(config, dict):
        return None
    classes = [str(name) for name in config.get("architectures") or ()]
    shown = classes[0] if classes else config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"an encoder and a decoder ({shown}); bring a causal language model"
    if "modules.json" in names or "config_sentence_transformers.json" in names:
        return f"a sentence-transformers model ({shown}), which writes no text; bring a causal language model"
    endings = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForImageClassification")
    if any(name.endswith(endings) for name in classes):
        return f"an encoder ({shown}), which writes no text; bring a causal language model"
    if classes and all(name.endswith("Model") and not name.endswith("LMHeadModel") for name in classes):
        return f"a body without an output layer ({shown}); bring a causal language model"
    return None


def has_tokenizer(names: set[str]) -> bool:
    """Whether a tokenizer's vocabulary is among a folder's files."""
    return any(name in _TOKENIZER or name.endswith(".tiktoken") for name in names)


def run_convert(source: Path, target: Path) -> list[str]:
    """Convert a pickled weights file in a child process; returns the names of its tensors."""
    # -P keeps the program's own folder off the module search path.
    program = str(Path(__file__).with_name("pickled_weights.py"))
    done = subprocess.run(
        [sys.executable, "-P", program, str(source.resolve()), str(target)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the reader ended with code {done.returncode}"]
        raise ValueError(lines[-1])
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


@contextmanager
def panics(what: str) -> Iterator[None]:
    """Turn a failure of the tokenizers library, which is no Exception, into one line that begins with `what`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what}: the tokenizers library fails on its tokenizer.json: {error!s:.300}") from None


@contextmanager
def import_errors(what: str) -> Iterator[None]:
    """Turn a library's error about a model's files into one line that begins with `what`."""
    try:
        with panics(what):
            yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what}: {reason}") from None
