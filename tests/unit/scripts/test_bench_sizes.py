"""The benchmarks without a peer's trainer: sampling, loading, publishing, and how time grows."""

from __future__ import annotations

import json
from argparse import Namespace

import bench
import pytest
from benchmarks import generate_ours, load, load_weights, publish_weights, scaling
from benchmarks.ppo_work import SPEED

from alignment.generation.sampling import way_of


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "MEMORY", SPEED)
        return folder, load.prepare(folder, Namespace(model=None, seed=0, memory=False))


@pytest.mark.parametrize("module", [load_weights, publish_weights])
def test_ours_and_transformers_move_the_same_weights(stored, module):
    folder, about = stored
    contestants = {"ours": {}, "transformers": {"how": "transformers"}}
    checks = {name: module.Contestant(folder, settings).check() for name, settings in contestants.items()}
    bench.same_work(checks)
    assert checks["ours"]["parameters"] == about["parameters"]
    assert all(module.Contestant(folder, settings).run()["seconds"] > 0 for settings in contestants.values())


def test_our_sampler_reads_packed_prompts_as_in_ppo(stored):
    folder, _ = stored
    (folder / "prompts.json").write_text(json.dumps([[5, 6, 7], [8, 9]]), encoding="utf-8")
    contestant = generate_ours.Contestant(folder, {})
    assert contestant.run()["product_seconds"] > 0
    assert way_of(contestant.policy) == "packed"


def test_an_exponent_is_the_slope_in_logarithms():
    assert scaling.exponent((1, 2, 4), [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert scaling.exponent((10, 20, 40), [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_each_size_is_measured_in_every_task(monkeypatch):
    monkeypatch.setattr(scaling, "SIZES", {"response tokens": (2, 4), "vocabulary": (4096, 8192)})
    monkeypatch.setattr(scaling, "ROWS", 2)
    seconds = iter(range(1, 1000))
    monkeypatch.setattr(scaling, "_cpu_seconds", lambda run: float(next(seconds)))
    found = scaling.measure(Namespace(rounds=2, threads=1, seed=0))
    assert list(found["exponents"]) == [
        f"{task} by {size}" for size in ("response tokens", "vocabulary") for task in ("sampling", "update")
    ]
    assert found["seconds"]["sampling by response tokens"] == {2: 2.0, 4: 3.0}  # medians of 1 and 3, of 2 and 4
    assert len(list(scaling.lines(found))) == 4


@pytest.mark.parametrize("arguments", [["--data", __file__], ["--rows", "8"], ["--memory"], ["--bf16"]])
def test_options_that_nothing_would_read_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        bench.main(["scaling", *arguments])
    assert "not with scaling" in capsys.readouterr().err
