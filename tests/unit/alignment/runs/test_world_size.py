"""Going on with another number of processes: what is asked of the config, and what each process is given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.config.sections import RunConfig, TrainerConfig
from alignment.distributed import zero3
from alignment.errors import CheckpointError
from alignment.runs import world_size
from alignment.runs.resume import FREE_KEYS, changed_keys
from alignment.runs.world_size import redistributed, same_batches
from alignment.seeds import random_state, seeded_state


def training(per_device, accumulated):
    return {"training": {world_size.PER_DEVICE: per_device, world_size.ACCUMULATED: accumulated}}


def test_batches_are_the_same_where_the_product_is():
    assert same_batches(training(2, 4), training(4, 1), 2, 4)
    assert same_batches(training(2, 4), training(4, 2), 2, 2)
    assert same_batches({"training": {}}, training(4, 2), 1, 1)  # 8 x 1, transformers' own
    assert not same_batches(training(2, 4), training(2, 2), 2, 2)  # the config alone is another; said elsewhere


@pytest.mark.parametrize(
    ("before", "now", "processes", "advice"),
    [
        (training(2, 2), training(2, 2), 1, "set training.gradient_accumulation_steps=4"),
        (training(2, 2), training(2, 2), 4, "set training.gradient_accumulation_steps=1"),
        (training(2, 1), training(2, 1), 4, "set training.per_device_train_batch_size=1 "),
        (training(2, 2), training(2, 2), 3, "launch a number of processes that divides 8"),
    ],
)
def test_other_batches_are_refused_with_what_to_set(before, now, processes, advice):
    with pytest.raises(CheckpointError, match=advice) as error:
        same_batches(before, now, 2, processes)
    assert "\n" not in str(error.value)


@given(size=st.integers(1, 40), before=st.integers(1, 6), now=st.integers(1, 6))
def test_parts_of_a_weight_are_parted_anew(size, before, now):
    whole = torch.arange(1.0, size + 1)

    def parts(processes):
        each = -(-size // processes)
        return list(torch.nn.functional.pad(whole, (0, each * processes - size)).split(each))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero3, "world_size", lambda: now)
        for index, expected in enumerate(parts(now)):
            patch.setattr(zero3, "process_index", lambda index=index: index)
            assert torch.equal(zero3.reshard(parts(before), size), expected)


def test_the_batch_keys_are_those_of_the_config():
    config = {"name": "n", "data": {"train": "x"}, "registry": {"name": "m"}, "model": {"name": "b"}}
    one, two = (TrainerConfig.model_validate(config | each).model_dump() for each in (training(1, 2), training(2, 1)))
    assert changed_keys(one, two, FREE_KEYS) == list(world_size.BATCH_KEYS)
    assert changed_keys(one, two, [*FREE_KEYS, *world_size.BATCH_KEYS]) == []
    assert not issubclass(RunConfig, TrainerConfig)


def states(count):
    """What `count` processes have saved."""
    found = []
    for rank in range(count):
        running = {
            "loss": torch.tensor(float(rank)),
            "sums": [torch.tensor(rank + 1.0), torch.tensor(10)],
            "tokens_seen": torch.tensor(100 * (rank + 1)),
            "last_logged": 7,
        }
        found.append({"random": f"of {rank}", "epoch_random": f"epoch of {rank}", "running": running, "best": "b"})
    return found


@pytest.mark.parametrize(("saved", "now"), [(2, 1), (2, 4), (4, 2)])
def test_sums_and_means_over_the_processes_are_as_before(saved, now):
    given = [redistributed(states(saved), index, seed=index) for index in range(now)]
    loss = torch.stack([each["running"]["loss"] for each in given]).mean()
    assert loss == torch.arange(saved).float().mean()
    ones, tens = (sum(each["running"]["sums"][place] for each in given) for place in range(2))
    assert (ones, tens) == (sum(range(1, saved + 1)), 10 * saved)
    assert sum(each["running"]["tokens_seen"] for each in given) == 100 * sum(range(1, saved + 1))
    assert all(each["running"]["last_logged"] == 7 and each["best"] == "b" for each in given)
    assert {each["epoch_random"] for each in given} == {"epoch of 0"}  # one order for all
    assert [each["random"] for each in given[:saved]] == [f"of {rank}" for rank in range(min(saved, now))]


def test_a_new_process_draws_from_a_stream_of_its_own_and_the_same_each_time():
    before = random_state()
    one, again, other = seeded_state(2**40 + 1), seeded_state(2**40 + 1), seeded_state(2)
    assert torch.equal(one["torch"], again["torch"]) and one["python"] == again["python"]
    assert not torch.equal(one["torch"], other["torch"])
    assert torch.equal(random_state()["torch"], before["torch"])
