"""The stages on a device that there is not (`helpers.pretend_device`): tensors of two devices never meet, results are
those of the host, and it waits for the device where a reason is given and nowhere else."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import launching
import pytest

RUN = Path(__file__).resolve().parent / "pretend_run.py"
SFT = {"sft/loss.py:next_token_sums": "once a batch: which positions have labels"}
LOOKS = {
    "alignment/generation/choosing.py:to_host": "once in 16 tokens: which responses have ended",
    "alignment/generation/engine.py:forward": "twice a batch of prompts: transformers reads whether the mask masks any",
}
PPO = {
    "ppo/rollout.py:_mask": "once a rollout: the longest response",
    "ppo/rollout.py:_scores": "once a rollout: whether the scores are finite",
    "ppo/controllers.py:observe": "once a rollout: the mean and spread of the scores",
    "ppo/controllers.py:add": "once a rollout: the mean and spread of the scores",
    "ppo/stats.py:explained_variance": "once a rollout, for the journal",
    "ppo/stats.py:_scatter": "once a rollout, for the journal",
    "alignment/tensors.py:whiten": "once a rollout: whether there is anything to whiten",
    "ppo/update.py:_gradients": "in the first step of an iteration: whether its ratios are 1",
    "ppo/metrics.py:reduced": "once a step and once a rollout, for the journal",
    "alignment/distributed/engine.py:step": "once a step: the norms to clip by",
}
PADDED = {"ppo/roles.py:states": "in each pass of padded rows: transformers reads whether the mask masks any"}


@functools.cache
def ran(name):
    paths = {"PYTHONPATH": f"{launching.ROOT}:{launching.ROOT / 'tests'}"}
    done = launching.run([sys.executable, str(RUN), name], RUN.parent, timeout=500, **paths)
    assert done.code == 0, done.output[-4000:]
    return json.loads(done.output.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("sft", SFT),
        ("reward", {}),
        ("ppo", LOOKS | PPO),
        pytest.param("ppo of padded rows", LOOKS | PPO | PADDED, marks=pytest.mark.slow),
    ],
)
def test_a_stage_computes_the_same_and_waits_where_there_is_a_reason(name, reasons):
    found = ran(name)
    assert found["device"] == pytest.approx(found["host"], rel=1e-4, abs=1e-5, nan_ok=True)
    assert len(found["host"]) > 20
    assert set(found["waits"]) == set(reasons)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo in many passes", "ppo of longer answers"])
def test_neither_passes_nor_tokens_add_a_wait(name):
    waits = ran("ppo")["waits"]
    assert ran(name)["waits"] == waits
    assert waits["alignment/generation/choosing.py:to_host"] == 2  # two rollouts
