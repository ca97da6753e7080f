"""Two processes load models that one of them reads: the same tensors as each would read, and one error for both."""

import json
import shutil

import launching
import pytest
import torch
import transformers
from helpers.architectures import build
from resuming import configure

DECODERS = ("llama", "gpt2", "gemma2", "mixtral", "gpt_oss", "opt")
BERT = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
BRIEF = {"before alignment.distributed.one_reader:from_reader": "limit 8"}
CASES = [(kind, "policy", "float32") for kind in (*DECODERS, "damaged", "missing")]
CASES += [("tied", "policy", "bfloat16"), ("llama", "lora", "float32"), ("bert", "new", "float32")]
CASES += [(kind, "new", "bfloat16") for kind in DECODERS]
CASES += [("judge", "reward", dtype) for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found of each model; the second has no weights to read from."""
    folder = tmp_path_factory.mktemp("models")
    whole = folder / "whole"
    for kind in DECODERS:
        build(kind).save_pretrained(whole / kind)
    build("llama", tie_word_embeddings=True).save_pretrained(whole / "tied")
    torch.manual_seed(0)
    transformers.BertForMaskedLM(BERT).save_pretrained(whole / "bert")
    judge = build("llama").config
    judge.num_labels = 1
    transformers.LlamaForSequenceClassification(judge).save_pretrained(whole / "judge")
    shutil.copytree(whole / "llama", whole / "damaged")
    (whole / "damaged" / "model.safetensors").write_bytes(b"\0" * 100)
    shutil.copytree(whole / "llama", whole / "missing")
    (whole / "missing" / "model.safetensors").unlink()
    (folder / "cases.json").write_text(json.dumps(CASES))
    shutil.copytree(whole, folder / "bare", ignore=shutil.ignore_patterns("*.safetensors*"))
    (folder / "ddp.yaml").write_text(launching.DDP)
    worker = launching.ROOT / "tests" / "integration" / "loading_worker.py"
    done = launching.launch(folder / "ddp.yaml", [str(worker), str(folder)], folder)
    assert done.code == 0, done.output[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_the_process_that_does_not_read_has_what_a_plain_load_gives(found):
    """Weights, ties, buffers that are in no file, types, configs, and what is drawn next, such as an adapter."""
    for results in found:
        assert len(results) == len(CASES)
        assert {case for case, differs in results.items() if differs} == {
            "damaged policy float32", "missing policy float32",
        }  # fmt: skip


@pytest.mark.parametrize("name", ["damaged", "missing"])
def test_what_the_reader_cannot_read_is_one_error_on_both(found, name):
    one, other = (results[f"{name} policy float32"] for results in found)
    assert one == other
    assert f"whole/{name}: cannot be loaded as a model" in one


def test_a_reader_that_dies_is_not_waited_for(resumed_house, plain_forks):
    config = configure(resumed_house, "dies", "sft", {"model": {"name": "base"}, "training": {"max_steps": 2}})
    killed = {**BRIEF, "before alignment.models.weights:_read": "SIGKILL"}
    codes = plain_forks(resumed_house, "sft", [config], killed, BRIEF)
    text = (resumed_house / "log.txt").read_text()
    assert codes == [-9, 1], text[-4000:]
    assert "ALIGNMENT_TIMEOUT" in text.rpartition("error: ")[2]
