"""A model that all processes hold in shards: two threads stand for the processes, queues for the broadcast."""

import queue
import threading

import pytest

from alignment.distributed import processes
from alignment.errors import UserError
from reward.saved_model import SavedModel


class Doubling(SavedModel):
    """Counts what this process does; scores are made up."""

    def __init__(self):
        super().__init__(sharded=True)
        self.done = []

    def _look(self, folder):
        self.done.append(("look", folder))

    def _load(self, read):
        self.done.append("load")
        self.model = read()

    def _scores(self, questions, pad_token_id, doing, member):
        self.done.append(("scores", tuple(questions)))
        if "bad" in questions:
            raise UserError("no score for a plain row")
        return [[[2.0 * question] for question in questions]]


@pytest.fixture
def two(monkeypatch):
    """Runs `run` of a model in two processes; what each did and ended with."""
    sent, main = queue.Queue(), threading.get_ident()

    def broadcast(value):
        if threading.get_ident() == main:
            sent.put(value)
            return value
        return sent.get(timeout=20)

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "is_main_process", lambda: threading.get_ident() == main)
    monkeypatch.setattr(processes, "broadcast", broadcast)
    monkeypatch.setattr(processes, "on_every_process", lambda call: call())

    def ended(model, work):
        try:
            return model.run(work)
        except UserError as error:
            return str(error)

    def run(work):
        models, results = [Doubling(), Doubling()], {}
        other = threading.Thread(target=lambda: results.update(other=ended(models[1], None)))
        other.start()
        results["main"] = ended(models[0], lambda: work(models[0]))
        other.join(20)
        assert not other.is_alive()
        return models, results

    return run


def test_the_others_do_what_the_main_process_asks_for_and_end_with_its_result(two, tmp_path):
    def work(model):
        assert model.load(tmp_path, lambda: "a model") == "a model"
        return model.scores([1, 2], 0, "scoring")

    models, results = two(work)
    assert models[0].done == models[1].done == [("look", tmp_path), "load", ("scores", (1, 2))]
    assert results == {"main": [[[2.0], [4.0]]], "other": [[[2.0], [4.0]]]}
    assert models[0].model is models[1].model is None  # a large model is not kept


@pytest.mark.parametrize("where", ["of the main process alone", "of all"])
def test_an_error_ends_all_with_the_same_line(two, where):
    def work(model):
        if where == "of all":
            model.scores(["bad"], 0, "scoring")
        model.scores([1], 0, "scoring")
        raise UserError("the saved files are not the model that was trained")

    _, results = two(work)
    assert results["main"] == results["other"]
    assert results["main"].startswith("no score" if where == "of all" else "the saved files")


def test_a_node_that_does_not_see_what_was_saved_says_so(tmp_path):
    with pytest.raises(UserError, match="put the run folder on a disk that all nodes see"):
        SavedModel(sharded=True)._look(tmp_path / "missing")
