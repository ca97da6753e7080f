"""Rows dealt out to processes by their tokens."""

from __future__ import annotations

import random

from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from alignment.training.balance import BalancedBatches


def shards(tokens, size, processes, drop_last=False):
    """What each process trains on, pass by pass, as accelerate shares it out: as drawn, and balanced."""
    found = []
    for balanced in (False, True):
        batches = BatchSampler(SequentialSampler(tokens), size, drop_last)
        batches = BalancedBatches(batches, tokens, processes) if balanced else batches
        found.append([list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)])
    return found


@given(st.integers(1, 60), st.integers(1, 4), st.integers(2, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_each_pass_has_the_same_rows_and_as_many_on_each_process(rows, size, processes, drop_last, seed):
    draw = random.Random(seed)
    drawn, balanced = shards([draw.randint(1, 500) for _ in range(rows)], size, processes, drop_last)
    assert [list(map(len, rank)) for rank in balanced] == [list(map(len, rank)) for rank in drawn]
    whole = rows // (size * processes)
    for number in range(whole):
        before, after = ([row for rank in ranks for row in rank[number]] for ranks in (drawn, balanced))
        assert sorted(after) == sorted(before)
    assert {row for rank in balanced for batch in rank for row in batch} == {
        row for rank in drawn for batch in rank for row in batch
    }


def test_on_lengths_like_those_of_hh_no_process_waits_long_for_another():
    """Transcripts as `scripts/bench.py sft` draws them; eight processes with eight rows each."""
    draw = random.Random(0)
    tokens = [min(512, max(12, int(draw.lognormvariate(4.68, 0.85)))) for _ in range(64 * 20)]
    waited = []
    for ranks in shards(tokens, 8, 8):
        loads = [[sum(tokens[row] for row in batch) for batch in passes] for passes in zip(*ranks, strict=True)]
        waited.append(sum(map(max, loads)) / (sum(map(sum, loads)) / 8))
    assert waited[0] > 1.3
    assert waited[1] < 1.01
