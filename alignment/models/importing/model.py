"""A model from elsewhere into the registry: a Hugging Face folder, a hub name or a GGUF file.

Copied are configs, tokenizer files, licenses and weights, from the top of the folder. Pickled weights are written anew
as safetensors. Code is refused, and so is a config that asks for code, unless the user trusts it; the manifest then
says so for everybody after them.
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
from alignment.models import adapters
from alignment.models.importing import foreign
from alignment.models.importing.foreign import one_line_errors, run_convert
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Parent, Registry, Version
from alignment.registry.files import SUFFIXES
from alignment.registry.manifest import Role
from alignment.registry.references import check_name

CARD = "SOURCE.md"
"""What the source's own README.md is called in a version, whose README.md is the registry's card."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_WANTED = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.md", "*.py", "LICENSE*"]
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
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
        template, eos_token: to be published with its tokenizer, as `model.template` and `model.eos_token` of a config.
        base: the base model of an adapter alone; None: the one that its config names.

    Returns:
        The version, and the files that were not copied.

    Raises:
        ModelError: no model there, or none that may be stored.
        RegistryError: a wrong name.
    """
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="import-") as temporary:
        staging = Path(temporary)
        if foreign.is_gguf(file := Path(source).expanduser()):
            if revision is not None:
                raise ModelError(f"{source}: a local file has no revisions; leave --revision out")
            from alignment.models.importing.gguf import unpack  # the extra `gguf` is needed here alone

            found = _Taken(None, unpack(file, staging), converted=True)
        else:
            found = _take(source, revision, trust_remote_code, staging, registry, base)
        if base is not None and found.base is None:
            raise ModelError(f"{source}: a whole model, not an adapter; leave --base out")
        has: Role = "policy"
        if found.base is None:
            has = _role(staging, role, source)
            _check_loads(staging, source, trust_remote_code)
        if template or eos_token:
            _set_on_tokenizer(staging, template, eos_token, trust_remote_code)
        version = registry.publish(
            name,
            staging,
            stage="import",
            role=has,
            base=found.base,
            config=found.config,
            origin={
                "source": source,
                "revision": found.commit,
                "license": found.license,
                "converted": found.converted,
            },
            remote_code=found.has_code,
        )
    return version, found.left_out


def _set_on_tokenizer(staging: Path, template: str | None, eos_token: str | None, trusted: bool) -> None:
    from alignment.config.sections import ModelConfig

    options = ModelConfig(name=str(staging), template=template, eos_token=eos_token, trust_remote_code=trusted)
    load_tokenizer(str(staging), options).save_pretrained(staging)


@dataclass(frozen=True)
class _Taken:
    """What came into the staging folder."""

    commit: str | None
    license: str | None
    converted: bool = False
    has_code: bool = False
    left_out: list[str] = field(default_factory=list)
    base: Parent | None = None
    """The base model of an adapter; `config` is then the `model` section that it is loaded with."""
    config: dict[str, Any] | None = None


def _take(
    source: str, revision: str | None, trusted: bool, staging: Path, registry: Registry, base: str | None
) -> _Taken:
    """The files of a folder or hub name that make a model, or an adapter."""
    folder, commit = _find(source, revision)
    taken = _files(folder, source)
    kept = [file for file in taken if _is_kept(file, taken)]
    everything = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    if adapters.is_adapter(folder):
        _check_code(source, folder, taken, trusted)
        from alignment.models.importing.adapter import take_adapter  # which imports from here

        kept = [file for file in kept if not file.endswith(".py") and file != "README.md"]
        of, config = take_adapter(folder, kept, base, registry, staging, source)
        converted = not (folder / adapters.WEIGHTS).is_file()
        left_out = sorted(everything - {*kept, "adapter_model.bin" if converted else adapters.WEIGHTS})
        return _Taken(commit, None, converted, left_out=left_out, base=of, config=config)
    _check_kind(folder, set(taken), source)
    weights = _weights(taken, source)
    _check_code(source, folder, taken, trusted)
    for file in kept:
        if not file.endswith(".py") or trusted:
            shutil.copyfile(folder / file, staging / (CARD if file == "README.md" else file))
    converted = weights[0].endswith(".bin")
    (_convert if converted else _copy)(folder, staging, weights, source)
    left_out = sorted(everything - {*kept, *weights, *(f"{w}.index.json" for w in (_SAFE, _PICKLED))})
    return _Taken(commit, _license(staging), converted, any(file.endswith(".py") for file in kept), left_out)


def _check_kind(folder: Path, names: set[str], source: str) -> None:
    """Refuse a folder of transformers' own format that no stage can start from."""
    config = _read_json(folder / "config.json", source)
    tokenizer = "holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy its files from the original"
    problem = foreign.no_policy(config, names) or foreign.quantization(folder)
    if problem := problem or (None if foreign.has_tokenizer(names) else tokenizer):
        raise ModelError(f"{source}: {problem}")


def _find(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model and its commit: of a local one none is known, unless it lies in the hub's cache."""
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
    """Names of the files at the top. A link may lead within the folder or into the hub's cache, nowhere else."""
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
    if "config.json" not in names and adapters.CONFIG not in names:
        raise ModelError(f"{source}: {foreign.about_folder(folder)}")
    return names


def _weights(files: list[str], source: str) -> list[str]:
    """The weights' files: safetensors where there are any, else pickles. Other formats beside them are left."""
    for pattern in (
        r"model(-\d+-of-\d+)?\.safetensors",
        r"(?!consolidated).+\.safetensors",
        r"pytorch_model(-\d+-of-\d+)?\.bin",
    ):
        found = [file for file in files if re.fullmatch(pattern, file)]
        if found:
            return found
    raise ModelError(f"{source}: no weights (model*.safetensors or pytorch_model*.bin)")


def _is_kept(file: str, files: list[str]) -> bool:
    if file.endswith((".safetensors", ".bin", f"{_SAFE}.index.json", f"{_PICKLED}.index.json")):
        return False  # `_copy` and `_convert` bring those of the weights
    return (file.endswith((*SUFFIXES, ".py")) and not file.startswith(".") and file != CARD) or file in _LICENSES


def _check_code(source: str, folder: Path, files: list[str], trusted: bool) -> None:
    """Refuse what would run code when it is loaded."""
    if trusted:
        return
    advice = "read the code; if you trust it, say --trust-remote-code"
    for file in files:
        if file.endswith(".py"):
            raise ModelError(f"{source}: {file} is code, which loading the model could run; {advice}")
        if file.endswith(".json") and (key := _asks_for_code(_read_json(folder / file, source))):
            raise ModelError(f"{source}: {file} has {key!r}, which loads code that is not transformers'; {advice}")


def _asks_for_code(value: Any) -> str | None:
    """A key that makes transformers import somebody's file, at any depth (a vocabulary's tokens have numbers)."""
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
    """Each pickle as a safetensors file, and the index that says which tensor is in which."""
    if weights[0] != _PICKLED:
        index = folder / f"{_PICKLED}.index.json"
        if not index.is_file():
            raise ModelError(f"{source}: {weights[0]} is a part, and {index.name} is not there; download it again")
        _check_index(index, weights, source)
    where: dict[str, str] = {}
    for file in weights:
        new = re.sub(r"^pytorch_model(.*)\.bin$", r"model\1.safetensors", file)
        with one_line_errors(f"{source}: {file} cannot be converted"):
            names = run_convert(folder / file, staging / new)
        where |= dict.fromkeys(names, new)
    if weights[0] != _PICKLED:
        total = sum((staging / file).stat().st_size for file in set(where.values()))
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2)
        (staging / f"{_SAFE}.index.json").write_text(text + "\n", encoding="utf-8")


def _check_index(index: Path, weights: list[str], source: str) -> None:
    """Refuse an index that names files that are not there; transformers would look for them anywhere."""
    content = _read_json(index, source)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{source}: {index.name} has no weight_map; download it again")
    if absent := sorted(set(named.values()) - set(weights)):
        raise ModelError(f"{source}: {index.name} names {absent[0]}, which is not in the folder; download it again")


def _role(staging: Path, wanted: str | None, source: str) -> Role:
    config = _read_json(staging / "config.json", source)
    classes = config.get("architectures") if isinstance(config, dict) else None
    scores = any("ForSequenceClassification" in str(each) for each in classes or ())
    found: Role = "reward" if scores else "policy"
    if wanted not in (None, found):
        if wanted not in ("policy", "reward"):
            raise ModelError(f"--role {wanted}: expected policy or reward")
        raise ModelError(f"{source}: config.json says {classes}, a {found}; leave --role out, or name another model")
    return found


def _check_loads(staging: Path, source: str, trusted: bool) -> None:
    """Refuse what the stages could not load: a config or tokenizer that transformers does not know, damaged weights."""
    from transformers import AutoConfig, AutoTokenizer

    with one_line_errors(f"{source}: cannot be loaded"):
        AutoConfig.from_pretrained(staging, trust_remote_code=trusted)
        AutoTokenizer.from_pretrained(staging, trust_remote_code=trusted)
        for file in staging.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                if not list(tensors.keys()):
                    raise ValueError(f"{file.name} is empty")
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if (kind := tensors.get_slice(name).get_dtype()).startswith(("F8", "F6", "F4")):
                        raise ValueError(f"{name} is in {kind}, which cannot be trained; get the model in bfloat16")


def _license(staging: Path) -> str | None:
    """The license that the source's card names in its YAML head."""
    try:
        head = front_matter((staging / CARD).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    found = head.get("license_name") if head.get("license") in (None, "other") else head.get("license")
    return str(found)[:200] if found else None
