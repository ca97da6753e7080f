"""Sampling: from the model's own distribution at the temperature, whatever its files say, and the same in any batch."""

import functools
import itertools
import math

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import digits, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from alignment.generation import engine
from alignment.generation import sampling as sampling_module
from alignment.generation.engine import TransformersEngine, choose_tokens, complete
from alignment.generation.kv_cache import PreallocatedLayer, keep_rows, make_cache
from alignment.generation.sampling import GenerationError, Sampled, Sampling, set_way, way_of
from alignment.models.packing import attend_by_group
from alignment.seeds import stream_seed
from alignment.templates.rendering import encode_prompt
from alignment.tensors import pad_rows

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("When does the library open?", "Hi", "How long? " * 6, "A book?")
]
ROWS = [[2, 3, 4, 5], [6], [7, 8], [7, 8], [9, 10, 11, 2, 3, 4, 5], [6], [3, 3, 3], [11, 2]]
"""Prompts of the digits' world; two come twice."""


@pytest.fixture(scope="module")
def policy(tokenizer):
    return tiny.make_policy(tokenizer)


def how(temperature=1.0, tokens=6, eos=-1, batch_size=64, pad=0, **filters):
    ends = (eos,) if isinstance(eos, int) else eos
    return Sampling(tokens, temperature, end_token_ids=ends, pad_token_id=pad, batch_size=batch_size, **filters)


def sample(policy, rows, sampling, seeds=None, tokenizer=None):
    return TransformersEngine(policy, tokenizer).generate(rows, seeds or range(len(rows)), sampling).responses


def next_logits(policy, ids):
    with torch.no_grad():
        return policy(input_ids=torch.tensor([ids])).logits[0, -1]


def check_argmax(policy, rows, responses):
    for row, response in zip(rows, responses, strict=True):
        ids = list(row)
        for token in response:
            assert token == next_logits(policy, ids).argmax()
            ids.append(token)


def check_inverse_cdf(policy, rows, seeds, responses, temperature):
    """Each token by the definition, from the whole text anew and without a cache: the first whose cumulative
    probability exceeds the sample's next random number."""
    for row, seed, response in zip(rows, seeds, responses, strict=True):
        numbers = np.random.default_rng(seed).random(len(response))
        ids = list(row)
        for token, u in zip(response, numbers, strict=True):
            probabilities = torch.softmax(next_logits(policy, ids).double() / temperature, -1).tolist()
            assert token == [total > u for total in itertools.accumulate(probabilities)].index(True)
            ids.append(token)


SHAPE = {"vocab_size": 12, "hidden_size": 32, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1}
LLAMA_SHAPE = SHAPE | {
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
ARCHITECTURES = {  # with what the cache or the positions may trip over
    "gpt2": transformers.GPT2Config(**SHAPE, n_positions=64, n_layer=2, n_head=2),
    "bloom, no position ids": transformers.BloomConfig(**SHAPE, n_layer=2, n_head=4),
    "qwen2 with grouped queries": transformers.Qwen2Config(**LLAMA_SHAPE),
    "mistral, sliding window of 3": transformers.MistralConfig(**LLAMA_SHAPE, sliding_window=3),
    "gemma2, sliding window of 4 in each second layer": transformers.Gemma2Config(**LLAMA_SHAPE, sliding_window=4),
    "mamba, by transformers": transformers.MambaConfig(**SHAPE, num_hidden_layers=2, state_size=4),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_cache_gives_what_the_whole_text_gives(name):
    torch.manual_seed(5)
    policy = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval()
    assert (make_cache(policy, 9) is None) == ("by transformers" in name)
    seeds = range(100, 100 + len(ROWS))
    free = sample(policy, ROWS, how(temperature=0.7), seeds)
    check_inverse_cdf(policy, ROWS, seeds, free, 0.7)
    for batch_size in (1, 3, 64):  # rows leave the batch at EOS
        ended = sample(policy, ROWS, how(temperature=0.7, eos=1, batch_size=batch_size), seeds)
        assert ended == [row[: row.index(1) + 1] if 1 in row else row for row in free]
    check_argmax(policy, ROWS, sample(policy, ROWS, how(temperature=0.0)))


@pytest.mark.parametrize("name", ["gpt2", "qwen2 with grouped queries", "mistral, a wide window"])
def test_prompts_of_a_model_that_attends_by_group_are_read_in_one_packed_row(name):
    """With no padding, each distinct prompt once; a layer with a window keeps padded prompts."""
    torch.manual_seed(5)
    config = ARCHITECTURES.get(name) or transformers.MistralConfig(**LLAMA_SHAPE, sliding_window=64)
    policy, shapes = transformers.AutoModelForCausalLM.from_config(config).eval(), []
    attend_by_group(policy)
    seeds = range(100, 100 + len(ROWS))
    drawn = sample(policy, ROWS, how(temperature=0.7), seeds)
    assert way_of(policy) == "packed"
    check_inverse_cdf(policy, ROWS, seeds, drawn, 0.7)
    policy.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert sample(policy, ROWS, how(temperature=0.7), seeds) == drawn
    distinct = [list(row) for row in {tuple(row) for row in ROWS}]
    packed, padded = (1, sum(map(len, distinct))), (len(distinct), max(map(len, distinct)))
    assert shapes == [padded if "mistral" in name else packed] + [(len(ROWS), 1)] * 5


@functools.cache
def alone():
    """A policy, prompts, seeds, and each prompt's response in a batch of its own."""
    policy = digits.llama(transformers.LlamaForCausalLM, 1)
    rows, seeds = [*ROWS, *ROWS], [stream_seed("sample", number) for number in range(2 * len(ROWS))]
    each = [sample(policy, [row], how(2.0, tokens=7, eos=4), [seed])[0] for row, seed in zip(rows, seeds, strict=True)]
    return policy, rows, seeds, each


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(ROWS) * 2)), st.integers(1, 16), st.integers(1, 17))
def test_a_response_depends_on_its_prompt_and_seed_alone(order, share, batch_size):
    """Any part of the prompts, as a process has it, in any order and batch."""
    policy, rows, seeds, each = alone()
    order = order[:share]
    sampling = how(2.0, tokens=7, eos=4, batch_size=batch_size)
    mixed = sample(policy, [rows[i] for i in order], sampling, [seeds[i] for i in order])
    assert mixed == [each[i] for i in order]
    assert each[: len(ROWS)] != each[len(ROWS) :]
    assert len({len(response) for response in each}) > 3


@pytest.mark.parametrize("looked_at_every", [2, 3, 16])
def test_tokens_that_are_looked_at_late_are_the_same_ones(monkeypatch, looked_at_every):
    """As on a GPU, where finished responses take part until the next look; what they say meanwhile is dropped."""
    policy, rows, seeds, each = alone()
    monkeypatch.setattr(engine.TransformersEngine, "_looked_at_every", looked_at_every)
    looks, to_host = [], engine.to_host
    monkeypatch.setattr(engine, "to_host", lambda tokens: looks.append(tokens.shape) or to_host(tokens))
    late = sample(policy, rows, how(2.0, tokens=7, eos=4, batch_size=16), seeds)
    assert late == each
    assert len(looks) <= -(-7 // looked_at_every)
    assert looks[0] == (len(rows), min(7, looked_at_every))


def test_responses_follow_the_enumerated_distribution():
    """All responses of up to two tokens of a policy and their probabilities, chi-square at 5 deviations."""
    policy = digits.llama(transformers.LlamaForCausalLM, 3)
    first = torch.softmax(next_logits(policy, [4, 7]).double() / 1.3, -1)
    expected = {}
    for a in range(12):
        second = torch.softmax(next_logits(policy, [4, 7, a]).double() / 1.3, -1)
        expected |= {(a, b): float(first[a] * second[b]) for b in range(12)} if a != 1 else {(1,): float(first[1])}
    assert math.isclose(sum(expected.values()), 1, rel_tol=1e-6)
    number = 20_000
    seeds = [stream_seed("test", i) for i in range(number)]
    drawn = sample(policy, [[4, 7]] * number, how(temperature=1.3, tokens=2, eos=1, batch_size=5000), seeds)
    counts = dict.fromkeys(expected, 0)
    for response in drawn:
        counts[tuple(response)] += 1
    common = [key for key, share in expected.items() if share * number >= 5]
    assert len(common) > 30
    rest = [(sum(counts[k] for k in counts if k not in common), sum(expected[k] for k in expected if k not in common))]
    cells = [(counts[key], expected[key]) for key in common] + [cell for cell in rest if cell[1] > 0]
    statistic = sum((found - number * share) ** 2 / (number * share) for found, share in cells)
    freedom = len(cells) - 1
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_nothing_of_the_models_own_generation_config_counts(tokenizer):
    plain, odd = (digits.llama(transformers.LlamaForCausalLM, 1) for _ in range(2))
    odd.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=5.0, min_p=0.5, eos_token_id=4)
    own = odd.generation_config
    assert sample(odd, ROWS, how()) == sample(plain, ROWS, how())
    assert odd.generation_config is own


def test_the_fallback_puts_the_models_generation_config_aside(monkeypatch):
    policy = digits.llama(transformers.LlamaForCausalLM, 1)
    expected = sample(policy, ROWS, how(eos=1))
    monkeypatch.setattr(engine, "make_cache", lambda *_: None)
    policy.generation_config = GenerationConfig(do_sample=True, top_k=1, repetition_penalty=5.0, max_length=3)
    own = policy.generation_config
    assert sample(policy, ROWS, how(eos=1)) == expected
    assert policy.generation_config is own


def peft_model(config):
    torch.manual_seed(0)
    model = peft.get_peft_model(digits.llama(transformers.LlamaForCausalLM, 1), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("fallback", [False, True])
def test_the_active_adapter_decides(fallback, monkeypatch):
    if fallback:
        monkeypatch.setattr(engine, "make_cache", lambda *_: None)
    bare = sample(digits.llama(transformers.LlamaForCausalLM, 1), ROWS, how())
    policy = peft_model(peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    own = policy.generation_config, policy.get_base_model().generation_config
    with policy.disable_adapter():
        assert sample(policy, ROWS, how()) == bare
    adapted = sample(policy, ROWS, how())
    assert adapted != bare
    assert policy.generation_config is own[0]
    assert policy.get_base_model().generation_config is own[1]
    policy.eval()
    check_inverse_cdf(policy, ROWS, range(len(ROWS)), adapted, 1.0)


def test_learned_prompts_are_refused():
    policy = peft_model(peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(GenerationError, match=r"a PROMPT_TUNING adapter .* use an adapter of the weights"):
        sample(policy, ROWS, how())


def test_greedy_is_the_argmax_step_by_step_and_padding_does_not_change_it(policy, tokenizer):
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    check_argmax(policy, rows, sample(policy, rows, how(temperature=0.0)))


def test_a_response_goes_through_eos_or_to_the_limit(policy, tokenizer):
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    free = sample(policy, rows, how(temperature=0.0))
    assert [len(row) for row in free] == [6] * 4
    eos = free[0][2]  # declare a token that greedy decoding meets to be EOS
    ended = sample(policy, rows, how(temperature=0.0, eos=eos))
    assert ended == [row[: row.index(eos) + 1] if eos in row else row for row in free]
    assert len(ended[0]) < 6


def test_no_prompts_no_responses(policy):
    assert TransformersEngine(policy, None).generate([], [], how()) == Sampled([], None)
    with pytest.raises(ValueError, match="zip"):
        sample(policy, [[5]], how(), [1, 2])


def test_finished_rows_and_repeated_prompts_cost_nothing(monkeypatch):
    """The batch of each forward pass: one row per distinct prompt, then one per response that goes on; and no pass
    after the last has ended."""
    policy, sizes = digits.llama(transformers.LlamaForCausalLM, 1), []
    set_way(policy, "padded")
    policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rows = [[4, 5, 6]] * 20 + [[7]] * 20
    responses = sample(policy, rows, how(tokens=12, eos=1))
    lengths = [len(row) for row in responses]
    assert len(set(lengths)) > 4
    going = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert sizes == [(2, 3)] + [(number, 1) for number in going]


def test_logits_of_the_prompt_are_computed_at_its_end_only():
    policy, shapes = digits.llama(transformers.LlamaForCausalLM, 1), []
    set_way(policy, "padded")
    policy.lm_head.register_forward_hook(lambda *args: shapes.append(args[-1].shape[1]))
    sample(policy, ROWS, how())
    assert set(shapes) == {1}


# Choosing a token


@pytest.mark.parametrize("u", [0.0, 0.05, 0.15, 0.29, 0.31, 0.5, 0.99, 1 - 2**-53])
def test_the_token_is_where_the_cumulative_probability_passes_u(u):
    shares = torch.tensor([[0.0, 0.1, 0.0, 0.2, 0.7, 0.0]])
    (token,) = choose_tokens(shares.log(), torch.tensor([u], dtype=torch.float64), how()).tolist()
    assert token == (1 if u < 0.1 else 3 if u < 0.3 else 4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, -200.0, -90.0, -3.0, 0.0, 2.5, 80.0]), min_size=2, max_size=9),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_a_token_without_probability_is_never_chosen(logits, u, temperature):
    logits = torch.tensor([logits])
    (token,) = choose_tokens(logits, torch.tensor([u], dtype=torch.float64), how(temperature)).tolist()
    if logits.max() == -math.inf:
        assert token == -1
    else:
        assert torch.softmax(logits / (temperature or 1.0), -1)[0, token] > 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True),
    st.integers(0, 9),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_filters_are_those_of_transformers(logits, top_k, top_p, temperature):
    logits = torch.tensor([[x / 8 for x in logits]])
    expected = logits / temperature
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    sampling = how(temperature, top_k=top_k, top_p=top_p)
    drawn = choose_tokens(logits.expand(500, -1), grid, sampling)
    shares = torch.bincount(drawn, minlength=logits.shape[1]) / 500
    assert (shares - torch.softmax(expected, -1)[0]).abs().max() <= 1.01 / 500


def test_rare_tokens_of_a_large_vocabulary_keep_their_probability():
    """Float32 numbers just below 1 are 6e-8 apart: of 100,000 tokens of 2e-9 each, only every 30th would be drawn."""
    logits = torch.full((1, 100_000), -20.0)
    logits[0, 0] = 0.0
    cumulative = np.cumsum(torch.softmax(logits, -1)[0].numpy(), dtype=np.float64)
    u = torch.linspace(float(cumulative[0]) + 1e-10, float(cumulative[-1]) - 1e-8, 997, dtype=torch.float64)
    found = choose_tokens(logits.expand(997, -1), u / cumulative[-1], how())
    expected = np.searchsorted(cumulative, u.numpy(), side="right")
    assert np.abs(found.numpy() - expected).max() <= 1
    assert len(set(found.tolist())) == 997


def test_all_64_bits_of_a_seed_count():
    numbers = engine._uniforms([5, 5 + 2**32, 5], 3)
    assert numbers.dtype == torch.float64
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])


# The cache


def test_padding_beside_packed_prompts_is_no_nan(monkeypatch):
    """Memory that was used before may hold NaN, which no mask takes out of attention's sum."""

    def dirty(layer, *like):
        layer._storage = [torch.full((*x.shape[:2], layer._capacity, x.shape[3]), torch.nan) for x in like]

    policy = digits.llama(transformers.LlamaForCausalLM, 1)
    attend_by_group(policy)
    clean = sample(policy, ROWS, how())
    assert way_of(policy) == "packed"
    monkeypatch.setattr(PreallocatedLayer, "_allocate", dirty)
    assert sample(policy, ROWS, how()) == clean


def test_the_cache_holds_what_transformers_holds_through_repeats_and_drops():
    policy = digits.llama(transformers.LlamaForCausalLM, 1)
    ours, theirs = make_cache(policy, 12), transformers.DynamicCache(config=policy.config)
    assert all(isinstance(layer, PreallocatedLayer) for layer in ours.layers)
    caches = (ours, theirs)
    width = 0

    def feed(ids):
        nonlocal width
        width += ids.shape[1]
        positions = torch.arange(width - ids.shape[1], width).expand_as(ids)
        with torch.no_grad():
            a, b = (policy(input_ids=ids, position_ids=positions, past_key_values=cache).logits for cache in caches)
        assert torch.equal(a, b)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(one.keys, other.keys)
            assert torch.equal(one.values, other.values)
        assert ours.get_seq_length() == width

    feed(torch.randint(2, 12, (3, 5)))
    repeated = torch.tensor([0, 0, 1, 2, 2, 2])
    for cache in caches:
        cache.batch_select_indices(repeated)
    feed(torch.randint(2, 12, (6, 1)))
    for rows in ([0, 5, 2, 4], [0, 1, 2, 3], [3]):
        keep_rows(ours, rows)
        theirs.batch_select_indices(torch.tensor(rows))
        feed(torch.randint(2, 12, (len(rows), 1)))
    storage = ours.layers[0]._storage[0]
    assert storage.shape == (6, 4, 12, 8)  # room for all from the start, and still the same
    assert ours.layers[0].keys.data_ptr() == storage.data_ptr()


@given(st.sets(st.integers(0, 20), min_size=1))
def test_closing_up_keeps_the_rows_and_moves_only_what_fills_a_gap(going):
    going = sorted(going)
    kept = engine._compacted(going)
    assert sorted(kept) == going
    assert all(kept[row] == row for row in going if row < len(going))


# The model


def test_every_module_is_left_in_its_mode(tokenizer):
    policy = tiny.make_policy(tokenizer).train()
    policy.model.layers[0].eval()
    before = {name: module.training for name, module in policy.named_modules()}
    seen = []
    policy.model.layers[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    sample(policy, [[5, 6]], how())
    assert {name: module.training for name, module in policy.named_modules()} == before
    assert not any(seen)
    with torch.no_grad():
        policy.model.norm.weight[3] = float("nan")
    with pytest.raises(GenerationError):
        sample(policy, [[5, 6]], how())
    assert {name: module.training for name, module in policy.named_modules()} == before


def test_under_autocast():
    policy = digits.llama(transformers.LlamaForCausalLM, 1)
    with torch.autocast("cpu", torch.bfloat16):
        responses = sample(policy, ROWS, how(temperature=0.0))
        ids, mask = pad_rows([row + answer for row, answer in zip(ROWS, responses, strict=True)], 0, "right")
        with torch.no_grad():
            logits = policy(input_ids=ids, attention_mask=mask.long()).logits.float()
    for row, answer, scores in zip(ROWS, responses, logits, strict=True):
        for step, token in enumerate(answer, len(row) - 1):
            assert scores[step, token] > scores[step].max() - 0.1


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_one_line_and_no_traceback(tokenizer, temperature, value, fallback, monkeypatch):
    if fallback:
        monkeypatch.setattr(engine, "make_cache", lambda *_: None)
    policy = tiny.make_policy(tokenizer)
    with torch.no_grad():
        policy.model.norm.weight[3] = value
    with pytest.raises(GenerationError, match=r"not finite.*diverged \(then lower training.learning_rate\)"):
        sample(policy, [[5, 9, 30]], how(temperature))


# Completions


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_come_in_the_order_of_the_prompts_whatever_the_batch(policy, tokenizer, batch_size, temperature):
    options = {"max_new_tokens": 5, "temperature": temperature, "seed": 3}
    alone = [complete(policy, tokenizer, [prompt], indices=[n], **options)[0] for n, prompt in enumerate(PROMPTS)]
    assert complete(policy, tokenizer, PROMPTS, batch_size=batch_size, **options) == alone
    assert len({tuple(answer.ids) for answer in alone}) > 1


def test_completions_differ_by_seed_and_number(policy, tokenizer):
    drawn = [complete(policy, tokenizer, PROMPTS[:1] * 3, max_new_tokens=8, seed=seed) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2]
    assert len({tuple(answer.ids) for answers in drawn[:2] for answer in answers}) == 6


def test_ended_means_that_the_model_stopped_by_itself(policy):
    tokenizer = tiny.make_tokenizer()
    free = complete(policy, tokenizer, PROMPTS[3:], max_new_tokens=5, temperature=0.0)[0]
    assert not free.ended
    assert len(free.ids) == 5
    third = tokenizer.convert_ids_to_tokens(free.ids[2])
    assert third not in PROMPTS[3][0]["content"]
    tokenizer.add_special_tokens({"eos_token": third})  # what the third step says is the end
    stopped = complete(policy, tokenizer, PROMPTS[3:], max_new_tokens=5, temperature=0.0)[0]
    assert stopped.ended
    assert stopped.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    at_the_limit = complete(policy, tokenizer, PROMPTS[3:], max_new_tokens=len(stopped.ids), temperature=0.0)[0]
    assert at_the_limit.ended
    assert stopped.text == tokenizer.decode(stopped.ids[:-1]).strip()


def test_random_streams_of_unlike_seeds_never_meet():
    keys = [(seed, step, rank) for seed in range(20) for step in range(50) for rank in range(4)]
    seeds = {stream_seed("sampling", *key) for key in keys}
    assert len(seeds) == len(keys)
    assert not seeds & {stream_seed("minibatches", *key) for key in keys}
    assert all(0 <= seed < 2**64 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_that_ends_responses_stops_at_the_token_that_completes_it(policy, tokenizer, monkeypatch, cached):
    if not cached:
        monkeypatch.setattr(engine, "make_cache", lambda *_: None)
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    free = sample(policy, rows, how(temperature=0.0, tokens=8), tokenizer=tokenizer)
    stop = tokenizer.decode(free[0][2:4])  # what the third and fourth step say
    sampling = how(temperature=0.0, tokens=8, stop=(stop,))
    found = sample(policy, rows, sampling, tokenizer=tokenizer)
    for row, whole in zip(found, free, strict=True):
        completed = [n for n in range(1, 9) if stop in tokenizer.decode(whole[:n])]
        assert row == whole[: completed[0] if completed else 8]
        assert sampling_module.has_ended(row, sampling, tokenizer) == bool(completed)
        assert (
            sampling_module.response_text(row, sampling, tokenizer)
            == tokenizer.decode(row, skip_special_tokens=True).partition(stop)[0]
        )
    assert len(found[0]) == 4
