"""Reward functions for the tests, as a user would have them in a file beside the config."""

import sys
from fractions import Fraction

import numpy as np
import torch

calls = []


def length(prompts, responses):
    calls.append((prompts, responses))
    return [len(response) for response in responses]


def matches(prompts, responses, answer):
    return [response == right for response, right in zip(responses, answer, strict=True)]


def everything(prompts, responses, **columns):
    calls.append(columns)
    return [0.5] * len(responses)


def short(prompts, responses):
    return [1.0]


def nan(prompts, responses):
    return [float("nan")] * len(responses)


def nothing(prompts, responses):
    return None


def words(prompts, responses):
    return ["good"] * len(responses)


def by_response(prompts, responses):
    return {number + 1: 0.5 for number in range(len(responses))}


def digits(prompts, responses):
    return "12"


def one_by_one(prompts, responses):
    return (0.5 for _ in responses)


def columns(prompts, responses):
    return torch.ones(len(responses), 1)


def texts_of_numbers(prompts, responses):
    return ["1" for _ in responses]


def too_large(prompts, responses):
    return [10**400] * len(responses)


def leaves(prompts, responses):
    sys.exit(0)


def in_a_tuple(prompts, responses):
    return 1, 0.5


def in_a_tensor(prompts, responses):
    return torch.tensor([1.0, 0.5], dtype=torch.bfloat16)


def in_an_array(prompts, responses):
    return np.array([1.0, 0.5], dtype=np.float16)


def of_any_kind(prompts, responses):
    return [np.bool_(True) if responses[0] == "never" else torch.tensor(1), Fraction(1, 2)]


def broken(prompts, responses):
    return [1 / (len(response) - len(response)) for response in responses]


def model(prompts, responses):
    return [0.0] * len(responses)


def unlike(texts):
    return texts


number = 3


def beyond_float32(prompts, responses):
    return [1e39] * len(responses)


def beyond_its_square(prompts, responses):
    return [1e38, -1e38]


def tells_a_secret(prompts, responses):
    raise RuntimeError("the service said: 401, key sk-abcdefghijklmnopqrst is unknown")


class Panic(BaseException):
    """As the tokenizers library raises it."""


def panics(prompts, responses):
    raise Panic("called `Option::unwrap()`")
