"""The planner's sums: the published figures of ZeRO, numbers worked by hand, and what autograd really keeps."""

import gc
from dataclasses import replace

import pytest
import torch
import transformers
from helpers import tiny
from torch import nn

from alignment.config.sections import ModelConfig
from alignment.generation.kv_cache import make_cache
from alignment.memory.plan import DDP, PARTS, SINGLE, STRATEGIES, Buckets, Strategy, estimate, in_gb
from alignment.memory.shapes import read_shape, sized
from alignment.memory.workload import Model, Pass, RolloutWorkload, Shape, Workload
from alignment.models.packing import attend_by_group, positions, row_arguments
from alignment.models.trainable import apply_method

ZERO1, ZERO2, ZERO3, FSDP2, OFFLOAD = STRATEGIES[1:]
SHAPE = Shape(
    vocab_size=1000, hidden_size=8, intermediate_size=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2
)


def states(count, strategy, processes, bf16=True):
    """Weights, gradients and optimizer of a model that trains on one token, in bytes, when all gradients are there."""
    model = Model(SHAPE, count, count, layers=3, gathered=count)
    work = Workload((model,), (Pass(model, 1, 0, True),), bf16=bf16, checkpointed=False)
    parts = estimate(work, strategy, processes).moments["update: first layer"]
    return sum(parts[part] for part in ("weights", "gradients", "optimizer"))


# Table 1 of Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", in GB.
TABLE = {
    (7.5e9, ZERO1): {1: 120, 4: 52.5, 16: 35.6, 64: 31.4, 256: 30.4, 1024: 30.1},
    (7.5e9, ZERO2): {1: 120, 4: 41.3, 16: 21.6, 64: 16.6, 256: 15.4, 1024: 15.1},
    (7.5e9, ZERO3): {1: 120, 4: 30, 16: 7.5, 64: 1.88, 256: 0.47, 1024: 0.12},
    (128e9, ZERO1): {1: 2048, 4: 896, 16: 608, 64: 536, 256: 518, 1024: 513},
    (128e9, ZERO2): {1: 2048, 4: 704, 16: 368, 64: 284, 256: 263, 1024: 257},
    (128e9, ZERO3): {1: 2048, 4: 512, 16: 128, 64: 32, 256: 8, 1024: 2},
}


@pytest.mark.parametrize(("setting", "row"), TABLE.items())
def test_model_states_are_those_of_the_zero_paper(setting, row):
    count, strategy = setting
    for processes, published in row.items():
        assert states(int(count), strategy, processes) / 1e9 == pytest.approx(published, rel=0.005, abs=0.006)


def test_without_deepspeed_weights_are_float32_and_nothing_is_copied():
    assert states(1000, SINGLE, 1, bf16=False) == 1000 * (4 + 4 + 8)
    assert states(1000, DDP, 8, bf16=False) == 1000 * (4 + 4 + 4 + 8)  # DDP adds up in buckets of its own
    assert states(1000, DDP, 8) == 1000 * (4 + 2 + 4 + 4 + 8)  # autocast's rounded copies
    assert states(1000, ZERO1, 1, bf16=False) == 1000 * (4 + 4 + 12)  # DeepSpeed copies float32 weights too


def test_loading_onto_gpus_by_hand():
    """A trained model of 1,000 weights, a frozen one that is read in float32 and cast after it, a third in bfloat16."""
    trained = Model(SHAPE, 1000, 1000, layers=3, gathered=1000)
    reference = Model(SHAPE, 1000, in_engine=False, follows_engine=True)
    reward = Model(SHAPE, 1000, in_engine=False, frozen_bytes=2.0)
    work = Workload((trained, reference, reward), (Pass(trained, 1, 0, True),), bf16=True, checkpointed=False)

    def loading(strategy, work=work):
        return estimate(work, strategy, 8).moments["loading"]["weights"]

    assert loading(ZERO2) == 2000 + 2000 + 2000 + 2000  # one at a time is in float32
    assert loading(DDP) == 4000 + 4000 + 2000
    assert loading(ZERO2, replace(work, offload=True)) == 2000 + 4000  # the frozen ones have left for the host
    adapter = Model(SHAPE, 1000, 10, layers=3, gathered=1000)
    work = replace(work, models=(adapter, reward), passes=(Pass(adapter, 1, 0, True),))
    assert loading(ZERO2, work) == 4000 + 2000
    for strategy, processes in ((ZERO3, 8), (FSDP2, 8), (SINGLE, 1)):
        assert "loading" not in estimate(work, strategy, processes).moments


def test_a_layer_by_hand():
    """float32: a norm 3 x 8, queries 8, keys and values 4 each, the output 8 twice, the MLP 4 x 16 numbers."""
    assert SHAPE.layer_bytes(4) == 4 * (2 * 3 * 8 + 8 + 2 * 4 + 2 * 8 + 4 * 16)
    assert SHAPE.layer_bytes(4, norms=False) == SHAPE.layer_bytes(4) - 4 * 2 * 8
    assert SHAPE.layer_bytes(4, joined=10) == SHAPE.layer_bytes(4) + 4 * (2 * 8 + 10)
    assert SHAPE.layer_bytes(2) == 2 * (4 + 2 + 2) * 8 + 2 * (8 + 2 * 4 + 2 * 8 + 4 * 16)
    assert SHAPE.cache_bytes(2) == 3 * 2 * 2 * 2 * 2


# --- against what autograd keeps -------------------------------------------------------------------------------------

WIDE = {"hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 64}
MODELS = {
    "llama": {**WIDE, "num_key_value_heads": 6},
    "llama, grouped": {**WIDE, "num_key_value_heads": 2},
    "qwen2": {**WIDE, "num_key_value_heads": 2},
}


def kept_bytes(model: nn.Module, groups) -> int:
    """Bytes of all storages that the backward pass of a packed row needs, weights not counted."""
    tokens = sum(map(sum, groups))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (pointer := tensor.untyped_storage().data_ptr()) not in parameters:
            kept[pointer] = tensor
        return tensor

    inputs = {"input_ids": torch.arange(tokens)[None] % 64, "position_ids": positions(groups), "use_cache": False}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(**inputs, **row_arguments(groups)).last_hidden_state
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del hidden
    gc.collect()
    return size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("groups", [[[0, 128], [0, 128]], [[8, 124, 124]]], ids=["documents", "shared prefix"])
def test_activations_are_what_autograd_keeps(kind, dtype, groups):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind.partition(",")[0], **MODELS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    attend_by_group(model)
    width, joined = torch.finfo(dtype).bits // 8, 132 if groups[0][0] else 0
    shape = read_shape(config, model)
    planned = 256 * (4 * shape.layer_bytes(width, joined=joined) + shape.hidden_size * width)
    assert kept_bytes(model, groups) == pytest.approx(planned, rel=0.05)


def test_activations_under_lora_are_what_autograd_keeps():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **MODELS["llama"])
    model = transformers.AutoModelForCausalLM.from_config(config)
    attend_by_group(model)
    adapted = apply_method(model, ModelConfig(name="x", method="lora"))
    planned = 256 * 4 * read_shape(config, model).layer_bytes(4, norms=False)
    assert kept_bytes(adapted.base_model.model, [[0, 128], [0, 128]]) == pytest.approx(planned, rel=0.1)


def test_the_cache_is_what_generation_allocates():
    config = transformers.AutoConfig.for_model("llama", **MODELS["llama, grouped"])
    model = transformers.AutoModelForCausalLM.from_config(config)
    cache = make_cache(model, capacity=20)
    with torch.no_grad():
        model(input_ids=torch.zeros(5, 12, dtype=torch.long), past_key_values=cache, use_cache=True)
    allocated = sum(x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))
    assert read_shape(config, model).cache_bytes(4) * 5 * 20 == allocated


# --- moments ---------------------------------------------------------------------------------------------------------


def full(count=1000, **changes):
    return Model(SHAPE, count, count, layers=3, head_trained=True, gathered=count, **changes)


def test_the_parts_of_a_moment_are_its_total_and_the_fullest_is_the_peak():
    model = full()
    work = Workload((model,), (Pass(model, 64, 32, False),), bf16=False, checkpointed=False)
    found = estimate(work, SINGLE, 1)
    assert set(found.parts) == set(PARTS)
    assert found.peak == max(sum(parts.values()) for parts in found.moments.values())
    assert in_gb(found)["moment"] == found.fullest


def test_an_update_by_hand():
    """64 tokens, no accumulation: at the loss the head's gradient alone is there; in the first layer all of it."""
    model = full()
    work = Workload((model,), (Pass(model, 64, 32, False),), bf16=False, checkpointed=False)
    moments = estimate(work, SINGLE, 1).moments
    kept = 64 * (3 * SHAPE.layer_bytes(4) + 8 * 4)
    assert moments["update: loss"] == {
        "weights": 4000, "gradients": 4 * 1000 * 8, "optimizer": 8000, "activations": kept, "cache": 0,
        "logits": 32 * 1000 * 12, "buffers": 0,
    }  # fmt: skip
    assert moments["update: first layer"]["gradients"] == 4000
    passing = 64 * 4 * (3 * 16 + 2 * 8)
    assert moments["update: first layer"]["activations"] == 64 * SHAPE.layer_bytes(4) + passing
    accumulated = replace(work, passes=(Pass(model, 64, 32, True),))
    assert estimate(accumulated, SINGLE, 1).moments["update: loss"]["gradients"] == 4000


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    model = full()
    work = Workload((model,), (Pass(model, 64, 0, False),), bf16=False, checkpointed=True)
    moments = estimate(work, SINGLE, 1).moments
    assert moments["update: loss"]["activations"] == 64 * 4 * 8 * (3 + 1)
    passing = 64 * 4 * (3 * 16 + 2 * 8)
    assert moments["update: last layer"]["activations"] == 64 * 4 * 8 * 4 + 64 * SHAPE.layer_bytes(4) + passing


def test_ppo_by_hand():
    """Policy and critic of 1000 weights each, a reference and a reward model of 1000."""
    policy, critic = full(), replace(full(), head_trained=False)
    reference = Model(SHAPE, 1000, in_engine=False, follows_engine=True, gathered=1000)
    reward = Model(SHAPE, 1000, in_engine=False, gathered=1000)
    rollout = RolloutWorkload(rows=4, prompt=6, response=2, scored=16, logits=8)
    passes = (Pass(policy, 16, 8, True), Pass(critic, 16, 0, True))
    work = Workload((policy, critic, reference, reward), passes, True, False, rollout, own_loop=True)
    moments = estimate(work, ZERO2, 4).moments
    assert list(moments)[:2] == ["sampling", "scoring"]
    assert moments.pop("loading")["weights"] == 3 * 2000 + 4000 + 2000  # one of the others is still in float32
    assert {parts["weights"] for parts in moments.values()} == {3 * 2000 + 4000}  # this reward model is float32
    assert {parts["optimizer"] for parts in moments.values()} == {12 * 2000 / 4}
    assert moments["sampling"]["cache"] == 4 * 8 * SHAPE.cache_bytes(2)
    assert moments["sampling"]["logits"] == 4 * 1000 * (2 + 16)
    assert moments["policy update: loss"]["gradients"] == 2 * 1000 / 4
    assert moments["value update: loss"]["gradients"] == 2 * 2000 / 4
    offloaded = estimate(replace(work, offload=True), ZERO2, 4)
    assert offloaded.moments["value update: loss"]["weights"] == 2 * 2000
    assert offloaded.moments["scoring"]["weights"] == 2 * 2000 + 4000  # the largest of them
    assert offloaded.host == 2000 + 4000
    parted = estimate(work, ZERO3, 4).moments
    assert parted["sampling"]["weights"] == (3 * 2000 + 4000) / 4 + 2 * 1000  # the policy whole
    assert parted["scoring"]["weights"] == (3 * 2000 + 4000) / 4 + 2 * 1000  # it is scored before it is released
    server = replace(work, rollout=rollout._replace(rows=0))  # vLLM samples elsewhere: no model is gathered whole
    moments = estimate(server, ZERO3, 4).moments
    assert moments["sampling"]["weights"] == moments["scoring"]["weights"] == (3 * 2000 + 4000) / 4


def test_offload_leaves_activations_and_buffers_on_the_gpu():
    model = full(count=4_000_000_000)
    found = estimate(Workload((model,), (Pass(model, 64, 0, True),), True, True), OFFLOAD, 8)
    assert {part for part, size in found.parts.items() if size} == {"activations", "buffers"}
    assert found.parts["buffers"] == 2 * (500_000_000 + 1_000_000_000 + 50_000_000)
    assert found.host == 18 * 4_000_000_000 / 8


def test_fsdp2_by_hand():
    """Float32 shards of weights, gradients and moments; gathered in bfloat16: two of three layers, and the rest."""
    assert states(1000, FSDP2, 8) == 1000 * (4 + 4 + 8) / 8
    layer = 8 * (2 * 8 + 2 * 4) + 3 * 8 * 16
    assert SHAPE.layer_weights == layer
    policy, reward = full(count=3 * layer + 100), Model(SHAPE, 4000, in_engine=False, gathered=4000)
    rollout = RolloutWorkload(rows=4, prompt=6, response=2, scored=16, logits=8)
    work = Workload((policy, reward), (Pass(policy, 16, 8, True),), True, False, rollout, own_loop=True)
    moments = estimate(work, FSDP2, 4).moments
    shards = (4 * policy.parameters + 4 * 4000) / 4
    assert moments["sampling"]["weights"] == shards + 2 * policy.gathered
    assert moments["scoring"]["weights"] == shards + 2 * 4000  # the largest model, whole
    assert moments["update: loss"]["weights"] == shards
    ours, other = 2 * (2 * layer + 100) + (2 + 4) * layer, 2 * (2 * layer + 4000 - 3 * layer)
    assert moments["update: loss"]["buffers"] == max(ours, other)
    assert FSDP2.runs(work) and not FSDP2.runs(replace(work, offload=True)) and ZERO3.runs(replace(work, offload=True))


def test_buffers_are_as_the_launch_file_sets_them_and_on_a_cpu_what_the_model_fills():
    model = full(count=1_000_000)
    work = Workload((model,), (Pass(model, 64, 0, True),), False, True)
    small = ZERO3._replace(buckets=Buckets(reduce=1000, live=2000, prefetch=300, group=5000))
    on_gpu, on_cpu = (estimate(work, small, 4, on_gpu=place).moments["optimizer step"] for place in (True, False))
    assert on_gpu["buffers"] == on_cpu["buffers"] == 4 * (1000 + 2000 + 300)
    assert on_gpu["gradients"] == 4 * (1_000_000 / 4 + 5000)
    assert on_cpu["gradients"] == 4 * (1_000_000 / 4 + 3 * 5000)
    filled = estimate(work, ZERO3, 4, on_gpu=False).moments["optimizer step"]["buffers"]
    assert filled == 4 * 3 * 1_000_000  # the defaults are larger than the model


def test_more_sharding_never_takes_more_of_the_states():
    sizes = [states(10**9, strategy, 8) for strategy in (DDP, ZERO1, ZERO2, ZERO3, OFFLOAD)]
    assert sizes == sorted(sizes, reverse=True)
    assert Strategy("zero2", 2) == ZERO2


# --- sizes of models -------------------------------------------------------------------------------------------------


def test_a_frozen_base_in_four_bits_by_hand():
    """Embeddings and head stay in float32; of 64 weights elsewhere, 32 bytes and a scale."""
    config = transformers.AutoConfig.for_model("llama", **MODELS["llama"], tie_word_embeddings=False)
    model = sized(config, ModelConfig(name="x", method="qlora"))
    frozen, tables = model.parameters - model.trained, 2 * 64 * 96
    assert model.frozen_bytes * frozen == pytest.approx(4 * tables + (frozen - tables) * 33 / 64)


def test_the_last_layers_alone_keep_activations_where_they_alone_are_trained():
    config = transformers.AutoConfig.for_model("llama", **MODELS["llama"])
    assert sized(config, ModelConfig(name="x", method="head")).layers == 0
    assert sized(config, ModelConfig(name="x", method="head", last_n_layers=2)).layers == 2
    assert sized(config, ModelConfig(name="x")).layers == 4


def test_a_tiny_policy_is_counted_to_the_last_weight():
    policy = tiny.make_policy(tiny.make_tokenizer())
    assert sized(policy.config, ModelConfig(name="x")).parameters == sum(p.numel() for p in policy.parameters())
