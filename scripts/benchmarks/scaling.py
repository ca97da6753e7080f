"""How the time of our sampling and of a PPO update grows with the size of the work: exponents, ours alone.

One size is changed at a time, on a Llama of a few million parameters with random weights. The sizes take turns, so that
other work of the machine slows all of them. An exponent is the slope of the logarithm of the CPU seconds over that of
the size, by least squares: 1 is linear. Sizes that all together fit in a cache can look better than that.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROWS, PROMPT, RESPONSE, VOCABULARY = 16, 32, 32, 4096
SIZES: dict[str, tuple[int, ...]] = {
    "response tokens": (32, 64, 128, 256, 512),
    "rows": (8, 16, 32, 64),
    "responses to a prompt": (1, 2, 4, 8),
    "vocabulary": (4096, 16384, 65536),
}
"""The values of each size; the others stay as they are. With more responses to a prompt there are as many prompts."""


class SampledWork(NamedTuple):
    """A rollout: `prompts` of 32 tokens with `samples` responses each, of `response` tokens without an end."""

    prompts: int = ROWS
    samples: int = 1
    response: int = RESPONSE
    vocabulary: int = VOCABULARY


def works() -> dict[str, list[SampledWork]]:
    """The work at each value of each size."""
    changes: dict[str, Callable[[int], dict[str, int]]] = {
        "response tokens": lambda n: {"response": n},
        "rows": lambda n: {"prompts": n},
        "responses to a prompt": lambda n: {"prompts": 8, "samples": n},
        "vocabulary": lambda n: {"vocabulary": n},
    }
    return {size: [SampledWork(**changes[size](value)) for value in values] for size, values in SIZES.items()}


def tasks(work: SampledWork, seed: int) -> dict[str, Callable[[], None]]:
    """Sampling, and a forward and a backward pass over the whole rollout, as PPO does them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alignment.generation.engine import TransformersEngine
    from alignment.generation.sampling import Sampling
    from alignment.models.packing import attend_by_group
    from benchmarks.ppo_work import SPEED
    from ppo.roles import Role
    from ppo.rows import Row
    from ppo.sequences import lay_out, split_by_tokens

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=work.vocabulary, **SPEED)).eval()
    attend_by_group(model)
    prompts = torch.randint(3, VOCABULARY, (work.prompts, PROMPT)).tolist()
    asked = [prompt for prompt in prompts for _ in range(work.samples)]
    answers = torch.randint(3, VOCABULARY, (len(asked), work.response)).tolist()
    rows = [Row(prompt, answer) for prompt, answer in zip(asked, answers, strict=True)]
    sampling = Sampling(work.response, 1.0, (), 0, batch_size=len(asked))
    engine, role = TransformersEngine(model), Role(model)

    def update() -> None:
        for part in split_by_tokens(rows, range(len(rows)), 2048, packed=True):
            batch = lay_out([rows[index] for index in part], part, True, 0, torch.device("cpu"))
            role.logprobs(batch, 1.0).logprobs.sum().backward()

    return {"sampling": lambda: engine.generate(asked, range(len(asked)), sampling) and None, "update": update}


def measure(options: Namespace) -> dict[str, Any]:
    """Exponents of each size and task, median, least and greatest over the rounds, and the CPU seconds behind them."""
    import torch
    from bench import spread

    from alignment.models.onednn import linear_layers
    from alignment.terminal import progress

    torch.set_num_threads(options.threads)
    every = works()
    report: dict[str, Any] = {"rounds": options.rounds, "exponents": {}, "seconds": {}}
    with linear_layers(), progress("sizes", len(every)) as line:
        for size, work in every.items():
            ready = [tasks(each, options.seed) for each in work]
            for run in (each[task] for each in ready for task in each):
                run()  # the first checks the model
            for task in ready[0]:
                rounds = [[_cpu_seconds(each[task]) for each in ready] for _ in range(options.rounds)]
                key = f"{task} by {size}"
                report["exponents"][key] = spread(exponent(SIZES[size], seconds) for seconds in rounds)
                medians = map(statistics.median, zip(*rounds, strict=True))
                report["seconds"][key] = dict(zip(SIZES[size], (float(f"{m:.3g}") for m in medians), strict=True))
            line.advance(1)
    return report


def _cpu_seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The slope of log(seconds) over log(size), by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    for key, found in report["exponents"].items():
        seconds = ", ".join(f"{size:,}: {value:.3g} s" for size, value in report["seconds"][key].items())
        yield f"{key}: exponent {found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f}); {seconds}"
