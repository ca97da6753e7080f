"""A W&B run that is tagged `cancel` stops the training, and a server that cannot be polled does not."""

import sys
import threading
import types

import pytest

from alignment.tracking.cancel_tag import CancelTag, tags_of
from alignment.tracking.wandb_sink import WandbSink


class Server:
    """Answers with what it was told to, one answer a question; the last for ever. An exception is raised."""

    def __init__(self, *answers):
        self.answers, self.asked, self.enough = list(answers), 0, threading.Event()

    def __call__(self):
        self.asked += 1
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if self.asked >= len(self.answers) + 2:
            self.enough.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_tag_makes_the_stop_file_once_whatever_failed_before(tmp_path, capsys):
    server = Server(["good"], ConnectionError("down"), TimeoutError("slow"), ["cancelled"], ["good", "cancel"])
    watching = CancelTag(tmp_path, server, every=0.001)
    watching._thread.join(30)
    assert not watching._thread.is_alive() and server.asked == 5
    assert (tmp_path / "STOP").exists()
    said = capsys.readouterr().err
    assert said.count("cannot be polled") == 1 and said.count("is tagged 'cancel'") == 1


def test_a_server_that_never_answers_rightly_stops_nothing(tmp_path):
    server = Server(ValueError("bad key"))
    watching = CancelTag(tmp_path, server, every=0.001)
    assert server.enough.wait(30)
    watching.end()
    watching._thread.join(30)
    assert not watching._thread.is_alive() and not (tmp_path / "STOP").exists()


def test_an_answer_that_comes_after_the_end_is_late(tmp_path):
    asked, go_on = threading.Event(), threading.Event()

    def tags():
        asked.set()
        assert go_on.wait(30)
        return ["cancel"]

    watching = CancelTag(tmp_path, tags, every=0.001)
    assert asked.wait(30)
    watching.end()  # does not wait for the answer
    go_on.set()
    watching._thread.join(30)
    assert not (tmp_path / "STOP").exists()


@pytest.fixture
def fake_wandb(monkeypatch):
    """An API as wandb 0.31's: `Api(timeout).run(path)` reads once, `load(force=True)` anew."""
    module = types.SimpleNamespace(tags=["fine"], asked=[], Settings=lambda **kw: None)

    class Run:
        def __init__(self, path):
            self.path = path
            self.load(force=True)

        def load(self, force=False):
            if force:
                self.tags = list(module.tags)

    def api(timeout):
        assert timeout
        return types.SimpleNamespace(run=lambda path: (module.asked.append(path), Run(path))[1])

    module.Api = api
    nothing = lambda *args, **options: None  # noqa: E731
    module.init = lambda **kw: types.SimpleNamespace(path="team/project/id7", finish=nothing, define_metric=nothing)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_each_question_reads_the_tags_anew(fake_wandb):
    ask = tags_of("team/project/id7")
    assert ask() == ["fine"]
    fake_wandb.tags.append("cancel")
    assert ask() == ["fine", "cancel"]
    assert fake_wandb.asked == ["team/project/id7"]


@pytest.mark.parametrize(("mode", "asks"), [("online", True), ("offline", False)])
def test_only_an_online_run_asks_and_it_stops_with_the_run(tmp_path, fake_wandb, mode, asks):
    def threads():
        return [each for each in threading.enumerate() if each.name == "wandb-cancel"]

    sink = WandbSink(tmp_path, mode=mode, project="p", name="n", stage="sft", config={})
    assert sink.is_open  # by now
    mine = threads()
    assert bool(mine) == asks
    sink.finish()
    for thread in mine:
        thread.join(30)
        assert not thread.is_alive()
    assert fake_wandb.asked == []  # not before a minute is over


def test_the_real_api_has_what_is_asked_of_it():
    """Never run against a server: this holds only that wandb still has these names."""
    import inspect

    import wandb
    from wandb.apis.public import Run

    assert "timeout" in inspect.signature(wandb.Api.__init__).parameters
    assert "force" in inspect.signature(Run.load).parameters
    assert isinstance(wandb.sdk.wandb_run.Run.path, property)
