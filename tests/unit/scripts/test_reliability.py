"""The page of reliability figures: what a failed test tried is counted as tried, and not as held."""

import reliability
from helpers.figures import VARIABLE, Trials


def trial(monkeypatch, folder, held, *faults):
    monkeypatch.setenv(VARIABLE, str(folder))
    trials = Trials("Kills")
    for fault in faults:
        trials(fault, "bit for bit", 5)
    trials.end(held=held)


def test_a_failed_test_is_in_the_table(tmp_path, monkeypatch):
    trial(monkeypatch, tmp_path, True, "sft", "ppo")
    trial(monkeypatch, tmp_path, False, "ppo")
    text = reliability.page(reliability.read(tmp_path))
    assert "| sft | 5 | 5 | bit for bit |" in text
    assert "| ppo | 10 | **5** | bit for bit |" in text
    assert "| all | 15 | **10** | |" in text


def test_what_has_ended_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    trials = Trials("Races")
    trials("start", "one wins")
    trials.end(held=True)
    trials.end(held=False)
    assert [(row["tried"], row["held"]) for row in reliability.read(tmp_path)] == [(1, 1)]
