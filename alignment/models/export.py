"""Exporting a published model to a plain transformers or PEFT folder, which needs nothing of this suite."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment.errors import ModelError
from alignment.files import list_files
from alignment.models import adapters, saved_adapters
from alignment.models.classifiers import LOADING, AnyClassifier, needs_own
from alignment.models.ensembles import load_member
from alignment.models.policies import load_base, load_base_as_trained, load_policy
from alignment.models.reward_files import (
    SCORE,
    Bias,
    adapter_heads,
    biases,
    head_names,
    is_ensemble,
    member_name,
    num_members,
)
from alignment.models.scalar import load_body, load_plain_classifier, load_scalar_model
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.registry.card import escape, evaluated
from alignment.registry.files import MANIFEST
from alignment.registry.reviews import rejection

TOLERANCE = 1e-5
README = "README.md"


def export(ref: str, folder: Path, registry: Registry, *, adapter_only: bool = False) -> dict[str, Any]:
    """Write a version to a new folder, with its tokenizer and template.

    Each member of an ensemble gets a folder of its own. An adapter is merged, or with `adapter_only` written as a PEFT
    folder that names its base. The result is loaded again by the plain library, and its logits on random tokens are
    evaluated, in float32, with those of the adapter on the weights that it was trained on.

    Returns:
        A report on the export; for an adapter with `logits_difference`, relative to the largest logit above 1.

    Raises:
        ModelError: the folder is not empty; or the logits differ by more than 1e-5 although they should not
            (`model.merge: original` may). Nothing is left behind.
    """
    if folder.suffix.lower() == ".gguf":
        raise ModelError(
            f"{folder}: GGUF is not written here; name a folder, and run llama.cpp's convert_hf_to_gguf.py on it"
        )
    role = registry.resolve(ref).manifest.role
    source = find_model(ref, registry, role=role)
    report: dict[str, Any] = {"model": source.label, "folder": str(folder)}
    if adapter_only and is_ensemble(source):
        raise ModelError(f"{source.label}: an ensemble, whose members are exported merged; leave --adapter out")
    if adapter_only and source.base is None:
        raise ModelError(f"{source.label}: a whole model, not an adapter; leave --adapter out")
    with _new_folder(folder) as staging:
        report |= _write(source, staging, role != "policy", adapter_only)
        version = registry.resolve(source.label)
        if rejected := rejection(registry, version):
            report["rejected"] = rejected
        _write_readme(source, staging, role != "policy", report, evaluated(registry, version))
        return report


def _write(source: ModelSource, staging: Path, is_reward: bool, adapter_only: bool) -> dict[str, Any]:
    if is_ensemble(source):
        return _export_members(source, staging)
    if source.base is None:
        _copy(source, staging)
        return {"written": "the whole model, file by file"}
    return (_export_adapter if adapter_only else _export_merged)(source, staging, is_reward)


def _write_readme(
    source: ModelSource, staging: Path, is_reward: bool, report: dict[str, Any], results: Sequence[str]
) -> None:
    """Write the version's card, with the results of comparisons and a section on this folder."""
    card = Path(source.path) / README
    lines = [card.read_text(encoding="utf-8", errors="replace").rstrip()] if card.is_file() else []
    if rejected := report.get("rejected"):
        lines[:0] = [f"> **This model was {escape(rejected)}**", ""]
    lines += results
    lines += ["", "## This folder", "", f"Exported from {source.label} (`{source.digest}`): {report['written']}.", ""]
    if is_reward and needs_own(AutoConfig.from_pretrained(source.config_path)):
        lines += [LOADING]
    if is_reward:
        offsets = [(folder, _score_bias(folder)) for folder in (staging, *sorted(staging.glob("member-*")))]
        for folder, bias in ((folder, bias) for folder, bias in offsets if bias is not None):
            which = "Its scores" if folder == staging else f"The scores of {folder.name}"
            constants = "this constant" if len(biases(bias)) == 1 else "these constants"
            lines += [
                f"{which} in plain transformers are higher by {', '.join(map(repr, biases(bias)))} than in the suite, "
                f"which takes {constants} off so that they average 0 over demonstrations. Differences of scores are "
                "the same.",
                "",
            ]
        if heads := _heads(staging):
            lines += [
                f"Each answer has {len(heads)} scores, of {', '.join(heads)}: `num_labels={len(heads)}` in plain "
                "transformers, in this order.",
                "",
            ]
    (staging / README).write_text("\n".join(lines), encoding="utf-8")


def _score_bias(folder: Path) -> Bias | None:
    """The constant that the suite subtracts from the scores of a folder's model; None if it holds no model."""
    for name in (SCORE, "config.json"):
        if (folder / name).is_file():
            bias: Bias = json.loads((folder / name).read_bytes()).get("score_bias", 0.0)
            return bias if isinstance(bias, list) else float(bias)
    return None


def _heads(folder: Path) -> tuple[str, ...]:
    """The heads of a folder's reward model; empty for a single score."""
    if (folder / SCORE).is_file():
        return adapter_heads(str(folder))
    return head_names(AutoConfig.from_pretrained(folder)) if (folder / "config.json").is_file() else ()


def logits_difference(ours: PreTrainedModel | PeftModel, theirs: PreTrainedModel | PeftModel, vocab: int) -> float:
    """Largest difference of two models' logits on random tokens below `vocab`, over the largest logit if above 1."""
    probe = torch.randint(vocab, (4, 24), generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.no_grad():
        for model in (ours, theirs):
            logits.append(model.eval()(input_ids=probe.to(model.device)).logits.float().cpu())
    return float((logits[0] - logits[1]).abs().max() / logits[1].abs().max().clamp(min=1.0))


def _as_trained(source: ModelSource, is_reward: bool) -> PeftModel:
    """The adapter, unmerged, on the weights that it was trained on, in float32 to keep rounding out of the comparison.

    A reward model's scores are not shifted, since plain transformers does not shift them either.
    """
    return adapters.put_on(load_body(source).model if is_reward else load_base_as_trained(source), source.path)


def _export_merged(source: ModelSource, staging: Path, is_reward: bool) -> dict[str, Any]:
    assert source.base and source.trained
    tokenizer = load_tokenizer(source)
    (load_member(source, 0).model if is_reward else load_policy(source)).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    kind = AnyClassifier if is_reward else AutoModelForCausalLM
    difference = logits_difference(
        kind.from_pretrained(staging, dtype=torch.float32), _as_trained(source, is_reward), len(tokenizer)
    )
    other_weights = source.trained.quantized and source.trained.merge == "original"
    if difference > TOLERANCE and not other_weights:
        raise ModelError(
            f"{source.label}: merged, its logits differ by {difference:.1e}, more than {TOLERANCE:.0e}, so nothing was "
            "exported; use --adapter"
        )
    kind = f"{source.trained.merge} weights" if source.trained.quantized else "weights"
    return {"written": f"merged onto the {kind} of {source.base.label}", "logits_difference": difference}


def _export_members(source: ModelSource, staging: Path) -> dict[str, Any]:
    """Export each member of an ensemble as a full model in a folder of its own."""
    tokenizer, size = load_tokenizer(source), num_members(source)
    for number in range(size):
        load_member(source, number).model.save_pretrained(staging / member_name(number))
        tokenizer.save_pretrained(staging / member_name(number))
    return {"written": f"its {size} members, a whole model each: {member_name(0)} to {member_name(size - 1)}"}


def _export_adapter(source: ModelSource, staging: Path, is_reward: bool) -> dict[str, Any]:
    assert source.base and source.trained
    if source.base.base:
        raise ModelError(f"{source.label}: PEFT cannot load it, since its base is an adapter too; leave --adapter out")
    if is_reward and needs_own(AutoConfig.from_pretrained(source.config_path)):
        raise ModelError(
            f"{source.label}: PEFT cannot load it: transformers has no classifier for its base; leave --adapter out"
        )
    heads = adapter_heads(source.path) if is_reward else ()
    base: PreTrainedModel = load_plain_classifier(source.base, heads) if is_reward else load_policy(source.base)
    size = len(load_tokenizer(source))
    if size > base.get_input_embeddings().num_embeddings:
        raise ModelError(f"{source.label}: PEFT cannot load it: it has more tokens than its base; leave --adapter out")
    _copy(source, staging)
    where = source.base.path if source.base.ref is None else str(Path(source.base.path).resolve())
    saved_adapters.name_base(staging, where)
    ours = load_scalar_model(source.base, heads=heads).model if is_reward else load_base(source)
    theirs = PeftModel.from_pretrained(base, str(staging))
    difference = logits_difference(theirs, adapters.put_on(ours, source.path), size)
    assert difference <= TOLERANCE, difference
    return {"written": f"the adapter; its base is {where}", "logits_difference": difference}


def _copy(source: ModelSource, staging: Path) -> None:
    for name in set(list_files(Path(source.path))) - {MANIFEST}:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(source.path) / name, staging / name)  # modes are not copied: the registry's are read-only


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A staging folder that gets the new folder's name on success."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists already; name a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as parent:
            staging = Path(parent) / folder.name
            staging.mkdir()
            yield staging
            staging.rename(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}") from error
