"""Importing a model into the registry: from a Hugging Face folder, a hub name or a GGUF file.

Configs, tokenizer files, licenses and weights are copied from the top of the folder. Pickled weights are converted to
safetensors. Code, and a config that loads code, is refused unless the user trusts it; the manifest records the trust.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from alignment.config.loading import front_matter
from alignment.errors import ModelError
from alignment.models import saved_adapters
from alignment.models.importing import foreign
from alignment.models.importing.foreign import import_errors, run_convert
from alignment.models.importing.trial import check_stranger
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Parent, Registry, Version
from alignment.registry.files import SUFFIXES
from alignment.registry.manifest import Role
from alignment.registry.references import check_name

CARD = "SOURCE.md"
"""Name of the source's README.md in a version, whose own README.md is the registry's card."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_WANTED = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md", "*.py", "LICENSE*"]
_SAFE = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_LICENSES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


def import_model(
    source: str,
    name: str,
    registry: Registry,
    *,
    role: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    base: str | None = None,
    template: str | None = None,
    eos_token: str | None = None,
) -> tuple[Version, list[str]]:
    """Publish a model from elsewhere as the next version of `name`.

    Args:
        template, eos_token: published with its tokenizer, like `model.template` and `model.eos_token` of a config.
        base: the base model of an adapter; None: the one that its config names.

    Returns:
        The version, and the files that were not copied.

    Raises:
        ModelError: there is no model, or it may not be stored.
        RegistryError: the name is not a legal one.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="import-") as temporary:
        staging = Path(temporary)
        if foreign.is_gguf(Path(source).expanduser()):
            taken = _take_gguf(source, revision, staging)
        else:
            taken = _take(source, revision, trust_remote_code, staging, registry, base)
        if base is not None and taken.base is None:
            raise ModelError(f"{source}: a whole model, not an adapter; leave --base out")
        published_role: Role = "policy"
        if taken.base is None:
            published_role = _role(staging, role, source)
            check_stranger(staging, source, with_template=template is None)
            _check_loads(staging, source, trust_remote_code)
        if template or eos_token:
            _set_on_tokenizer(staging, template, eos_token, trust_remote_code)
        version = registry.publish(
            name,
            staging,
            stage="import",
            role=published_role,
            base=taken.base,
            config=taken.config,
            origin=taken.origin(source),
            remote_code=taken.has_code,
        )
    return version, taken.left_out


def _set_on_tokenizer(staging: Path, template: str | None, eos_token: str | None, trusted: bool) -> None:
    from alignment.config.sections import ModelConfig

    options = ModelConfig(name=str(staging), template=template, eos_token=eos_token, trust_remote_code=trusted)
    load_tokenizer(str(staging), options).save_pretrained(staging)


@dataclass(frozen=True)
class _Taken:
    """The contents of the staging folder."""

    commit: str | None
    license: str | None
    converted: bool = False
    has_code: bool = False
    left_out: list[str] = field(default_factory=list)
    base: Parent | None = None
    """The base model of an adapter; `config` is then the `model` section that it is loaded with."""
    config: dict[str, Any] | None = None

    def origin(self, source: str) -> dict[str, Any]:
        """The manifest's `origin`."""
        return {
            "source": source,
            "revision": self.commit,
            "license": self.license,
            "converted": self.converted,
        }


def _take_gguf(source: str, revision: str | None, staging: Path) -> _Taken:
    """Unpack a GGUF file."""
    if revision is not None:
        raise ModelError(f"{source}: a local file has no revisions; leave --revision out")
    from alignment.models.importing.gguf import unpack  # imported late, since it needs the extra `gguf`

    return _Taken(None, unpack(Path(source).expanduser(), staging), converted=True)


def _take(
    source: str, revision: str | None, trusted: bool, staging: Path, registry: Registry, base: str | None
) -> _Taken:
    """Copy the files of a folder or hub name that make a model or an adapter."""
    folder, commit = _find(source, revision)
    files = _files(folder, source)
    kept = [file for file in files if _is_kept(file)]
    everything = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if saved_adapters.is_adapter(folder):
        _check_code(source, folder, files, trusted)
        check_stranger(folder, source)
        from alignment.models.importing.adapter import take_adapter  # imported late: it loads transformers and PEFT

        kept = [file for file in kept if not file.endswith(".py") and file != "README.md"]
        adapter_base, config = take_adapter(folder, kept, base, registry, staging, source)
        converted = not (folder / saved_adapters.WEIGHTS).is_file()
        left_out = sorted(everything - {*kept, "adapter_model.bin" if converted else saved_adapters.WEIGHTS})
        return _Taken(commit, None, converted, left_out=left_out, base=adapter_base, config=config)
    _check_kind(folder, set(files), source)
    weights = _weights(files, source)
    _check_code(source, folder, files, trusted)
    for file in kept:
        if not file.endswith(".py") or trusted:
            shutil.copyfile(folder / file, staging / (CARD if file == "README.md" else file))
    converted = weights[0].endswith(".bin")
    (_convert if converted else _copy)(folder, staging, weights, source)
    left_out = sorted(everything - {*kept, *weights, *(f"{w}.index.json" for w in (_SAFE, _PICKLED))})
    return _Taken(commit, license_in(staging, CARD), converted, any(file.endswith(".py") for file in kept), left_out)


def _check_kind(folder: Path, names: set[str], source: str) -> None:
    """Refuse a folder in transformers' format that no stage can start from."""
    config = _read_json(folder / "config.json", source)
    tokenizer = "holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy its files from the original"
    problem = foreign.no_policy(config, names) or foreign.quantization(folder)
    if problem := problem or (None if foreign.has_tokenizer(names) else tokenizer):
        raise ModelError(f"{source}: {problem}")


def _find(source: str, revision: str | None) -> tuple[Path, str | None]:
    """A model's folder and its commit, which is unknown for a local folder outside the hub's cache."""
    local = Path(source).expanduser()
    if local.is_file():
        raise ModelError(f"{source}: {foreign.about_file(local)}")
    if local.is_dir():
        if revision is not None:
            raise ModelError(f"{source}: a local folder has no revisions; leave --revision out")
        folder = local.resolve()
        return folder, folder.name if folder.parent.name == "snapshots" else None
    if not _HUB_NAME.fullmatch(source):
        raise ModelError(f"{source}: no such folder, and no hub name (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # noqa: BLE001 - a dozen kinds, from the network, the hub and the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source}: no such folder, and the hub does not give it: {reason}") from None
    return folder, folder.name


def _files(folder: Path, source: str) -> list[str]:
    """Names of the files at the top of the folder; links may lead within it or into the hub's cache only."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / "blobs")
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            continue
        target = path.resolve()
        if not any(target.is_relative_to(home) for home in homes):
            raise ModelError(f"{source}: {path.name} is a link to somewhere else; put a plain copy in its place")
        if not target.is_file():
            raise ModelError(f"{source}: {path.name} is not a regular file; take it out of the folder")
        names.append(path.name)
    if "config.json" not in names and saved_adapters.CONFIG not in names:
        raise ModelError(f"{source}: {foreign.about_folder(folder)}")
    return names


def _weights(files: list[str], source: str) -> list[str]:
    """The weight files: safetensors if there are any, else pickles; other formats are ignored."""
    for pattern in (
        r"model(-\d+-of-\d+)?\.safetensors",
        r"(?!consolidated).+\.safetensors",
        r"pytorch_model(-\d+-of-\d+)?\.bin",
    ):
        weights = [file for file in files if re.fullmatch(pattern, file)]
        if weights:
            return weights
    raise ModelError(f"{source}: no weights (model*.safetensors or pytorch_model*.bin)")


def _is_kept(file: str) -> bool:
    if file.endswith((".safetensors", ".bin", f"{_SAFE}.index.json", f"{_PICKLED}.index.json")):
        return False  # `_copy` and `_convert` handle the weights
    return (file.endswith((*SUFFIXES, ".py")) and not file.startswith(".") and file != CARD) or file in _LICENSES


def _check_code(source: str, folder: Path, files: list[str], trusted: bool) -> None:
    """Refuse files that would run code when the model is loaded."""
    if trusted:
        return
    advice = "read the code; if you trust it, say --trust-remote-code"
    for file in files:
        if file.endswith(".py"):
            raise ModelError(f"{source}: {file} is code, which loading the model could run; {advice}")
        if file.endswith(".json") and (key := _code_key(_read_json(folder / file, source))):
            raise ModelError(f"{source}: {file} has {key!r}, which loads code that is not transformers'; {advice}")


def _code_key(value: Any) -> str | None:
    """A key at any depth that makes transformers import the model's own code (integers are tokens of a vocabulary)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key in ("auto_map", "custom_pipelines"):
                if item.get(key) and not isinstance(item[key], int):
                    return key
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return None


def _read_json(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelError(f"{source}: {path.name} is not JSON; download it again") from None


def _copy(folder: Path, staging: Path, weights: list[str], source: str) -> None:
    for file in weights:
        shutil.copyfile(folder / file, staging / file)
    if (folder / f"{_SAFE}.index.json").is_file() and weights[0] != _SAFE:
        _check_index(folder / f"{_SAFE}.index.json", weights, source)
        shutil.copyfile(folder / f"{_SAFE}.index.json", staging / f"{_SAFE}.index.json")


def _convert(folder: Path, staging: Path, weights: list[str], source: str) -> None:
    """Convert each pickle to a safetensors file, and write the index of tensors by file."""
    if weights[0] != _PICKLED:
        index = folder / f"{_PICKLED}.index.json"
        if not index.is_file():
            raise ModelError(f"{source}: {weights[0]} is a part, and {index.name} is not there; download it again")
        _check_index(index, weights, source)
    weight_map: dict[str, str] = {}
    for file in weights:
        target = re.sub(r"^pytorch_model(.*)\.bin$", r"model\1.safetensors", file)
        with import_errors(f"{source}: {file} cannot be converted"):
            names = run_convert(folder / file, staging / target)
        weight_map |= dict.fromkeys(names, target)
    if weights[0] != _PICKLED:
        total = sum((staging / file).stat().st_size for file in set(weight_map.values()))
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
        (staging / f"{_SAFE}.index.json").write_text(text + "\n", encoding="utf-8")


def _check_index(index: Path, weights: list[str], source: str) -> None:
    """Refuse an index that names missing files; transformers would look for them elsewhere."""
    content = _read_json(index, source)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelError(f"{source}: {index.name} has no weight_map; download it again")
    if absent := sorted(set(weight_map.values()) - set(weights)):
        raise ModelError(f"{source}: {index.name} names {absent[0]}, which is not in the folder; download it again")


def _role(staging: Path, wanted: str | None, source: str) -> Role:
    config = _read_json(staging / "config.json", source)
    classes = config.get("architectures") if isinstance(config, dict) else None
    is_classifier = any("ForSequenceClassification" in str(name) for name in classes or ())
    role: Role = "reward" if is_classifier else "policy"
    if wanted not in (None, role):
        if wanted not in ("policy", "reward"):
            raise ModelError(f"--role {wanted}: expected policy or reward")
        raise ModelError(f"{source}: config.json says {classes}, a {role}; leave --role out, or name another model")
    return role


def _check_loads(staging: Path, source: str, trusted: bool) -> None:
    """Refuse a config or tokenizer that transformers does not know, and damaged weights."""
    from transformers import AutoConfig, AutoTokenizer

    with import_errors(f"{source}: cannot be loaded"):
        AutoConfig.from_pretrained(staging, trust_remote_code=trusted)
        AutoTokenizer.from_pretrained(staging, trust_remote_code=trusted)
        for file in staging.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                if not list(tensors.keys()):
                    raise ValueError(f"{file.name} is empty")
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if (kind := tensors.get_slice(name).get_dtype()).startswith(("F8", "F6", "F4")):
                        raise ValueError(f"{name} is in {kind}, which cannot be trained; get the model in bfloat16")


def license_in(folder: Path, card: str = "README.md") -> str | None:
    """The license in the YAML front matter of a model's card."""
    try:
        head = front_matter((folder / card).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    license = head.get("license_name") if head.get("license") in (None, "other") else head.get("license")
    return str(license)[:200] if license else None
