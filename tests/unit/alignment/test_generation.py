"""Sampling: from the model's own distribution at the temperature, whatever its files say, and the same in any batch."""

import pytest
import tiny
import torch

from alignment.generation import GenerationError, complete, generate, stream_seed
from alignment.templates import encode_prompt
from alignment.tensors import pad_rows

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("When does the library open?", "Hi", "How long? " * 6, "A book?")
]


@pytest.fixture(scope="module")
def policy(tokenizer):
    return tiny.make_policy(tokenizer)


def sample(policy, rows, tokenizer, temperature, tokens=6, eos=None):
    ids, mask = pad_rows(rows, tokenizer.pad_token_id, "left")
    return generate(
        policy,
        ids,
        mask,
        max_new_tokens=tokens,
        temperature=temperature,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
    )


def test_samples_follow_softmax_at_the_temperature_and_nothing_else(policy, tokenizer):
    """The model's own generation config asks for top-1, as some hub models ask for top-20; it must not count."""
    policy.generation_config.top_k, policy.generation_config.repetition_penalty = 1, 5.0
    policy.generation_config.do_sample, policy.generation_config.min_p = True, 0.5
    own = policy.generation_config
    torch.manual_seed(0)
    drawn = sample(policy, [[5, 9, 30]] * 6000, tokenizer, temperature=1.5, tokens=1, eos=-1).flatten()
    with torch.no_grad():
        expected = torch.softmax(policy(input_ids=torch.tensor([[5, 9, 30]])).logits[0, -1].double() / 1.5, dim=-1)
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert policy.generation_config is own
    spread = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((found - expected).abs() <= 5 * spread + 2 / len(drawn)).all()
    assert 0.02 < expected.max() < 0.9  # else this would have shown little


def test_greedy_is_the_argmax_step_by_step_and_padding_does_not_change_it(policy, tokenizer):
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    together = sample(policy, rows, tokenizer, temperature=0.0, eos=-1)
    for row, response in zip(rows, together.tolist(), strict=True):
        ids = list(row)
        for token in response:
            with torch.no_grad():
                assert token == policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
            ids.append(token)


def test_everything_after_eos_is_padding_and_the_width_is_fixed(policy, tokenizer):
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    free = sample(policy, rows, tokenizer, temperature=0.0, eos=-1)
    eos = free[0, 2].item()  # declare a token that greedy decoding meets to be EOS
    ended = sample(policy, rows, tokenizer, temperature=0.0, eos=eos)
    assert ended.shape == free.shape == (4, 6)
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        cut = whole.index(eos) + 1 if eos in whole else len(whole)
        assert row == whole[:cut] + [tokenizer.pad_token_id] * (6 - cut)


def test_the_models_mode_is_left_as_it_was(tokenizer):
    policy = tiny.make_policy(tokenizer).train()
    sample(policy, [[5, 6]], tokenizer, 1.0)
    assert policy.training
    policy.eval()
    sample(policy, [[5, 6]], tokenizer, 1.0)
    assert not policy.training


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_completions_come_in_the_order_of_the_prompts_whatever_the_batch(policy, tokenizer, batch_size):
    alone = [complete(policy, tokenizer, [prompt], max_new_tokens=5, temperature=0.0)[0] for prompt in PROMPTS]
    assert complete(policy, tokenizer, PROMPTS, max_new_tokens=5, temperature=0.0, batch_size=batch_size) == alone
    assert len({tuple(answer.ids) for answer in alone}) > 1


def test_ended_means_that_the_model_stopped_by_itself(policy):
    tokenizer = tiny.make_tokenizer()
    free = complete(policy, tokenizer, PROMPTS[:1], max_new_tokens=5, temperature=0.0)[0]
    assert not free.ended
    assert len(free.ids) == 5
    third = tokenizer.convert_ids_to_tokens(free.ids[2])
    tokenizer.add_special_tokens({"eos_token": third})  # what the third step says is the end
    stopped = complete(policy, tokenizer, PROMPTS[:1], max_new_tokens=5, temperature=0.0)[0]
    assert stopped.ended
    assert stopped.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    at_the_limit = complete(policy, tokenizer, PROMPTS[:1], max_new_tokens=len(stopped.ids), temperature=0.0)[0]
    assert at_the_limit.ended
    assert stopped.text == tokenizer.decode(stopped.ids[:-1]).strip()


def test_a_long_prompt_is_cut_to_its_newest_tokens(policy, tokenizer):
    rows = encode_prompt(tokenizer, PROMPTS[2])
    whole = complete(policy, tokenizer, [PROMPTS[2]], max_new_tokens=4, temperature=0.0, max_prompt_length=12)[0]
    assert sample(policy, [rows[-12:]], tokenizer, 0.0, tokens=4)[0].tolist()[: len(whole.ids)] == whole.ids


def test_random_streams_of_unlike_seeds_never_meet():
    keys = [(seed, step, rank) for seed in range(20) for step in range(50) for rank in range(4)]
    seeds = {stream_seed("sampling", *key) for key in keys}
    assert len(seeds) == len(keys)
    assert not seeds & {stream_seed("minibatches", *key) for key in keys}
    assert all(0 <= seed < 2**64 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_one_line_and_no_traceback(tokenizer, temperature, value):
    policy = tiny.make_policy(tokenizer)
    with torch.no_grad():
        policy.model.norm.weight[3] = value
    with pytest.raises(GenerationError, match=r"not finite.*diverged; lower training.learning_rate"):
        sample(policy, [[5, 9, 30]], tokenizer, temperature)
