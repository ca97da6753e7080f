"""Reward functions for the tests, as a user would have them in a file beside the config."""

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


def broken(prompts, responses):
    return [1 / (len(response) - len(response)) for response in responses]


def model(prompts, responses):
    return [0.0] * len(responses)


def unlike(texts):
    return texts


number = 3
