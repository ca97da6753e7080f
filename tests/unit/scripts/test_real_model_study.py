"""The study of a real model: its statistics against worked and simulated cases, its split, its order and its page."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from studies import real_model as study
from studies.human_votes import analysis, data, page, runs, statistics
from studies.human_votes.sizes import SIZES

from alignment.config.loading import load_config
from alignment.data.records import Comparison, Vote
from alignment.errors import UserError
from alignment.generation.sampling import SampledCompletion
from alignment.templates.rendering import encode_prompt
from ppo.config import PPOStageConfig
from reward.config import RewardStageConfig
from sft.config import SFTStageConfig

# --- best-of-n -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_kl_of_best_of_n_is_that_of_a_uniform_choice_among_many_answers(n):
    number = 20_000  # answers of unlike scores, each as likely: the i-th of them is the best of n with these odds
    odds = (np.arange(1, number + 1) / number) ** n - (np.arange(number) / number) ** n
    exact = float(np.sum(odds * np.log(np.maximum(odds * number, 1e-300))))
    assert statistics.best_of_n_kl(n) == pytest.approx(exact, abs=2e-3)


def test_the_best_of_the_first_n_is_picked_and_of_equal_ones_the_first():
    scores = [1.0, 3.0, 3.0, 9.0]
    assert [statistics.pick_best(scores, n) for n in (1, 2, 3, 4)] == [0, 1, 1, 3]


def test_a_cut_answer_loses_three_standard_deviations_of_all_scores():
    # Scores 0, 2, 2, 4: standard deviation sqrt(2).
    rewards = statistics.selection_rewards([[0.0, 2.0], [2.0, 4.0]], [[True, True], [True, False]])
    assert rewards == [[0.0, 2.0], [2.0, pytest.approx(4 - 3 * math.sqrt(2))]]
    assert statistics.pick_best(rewards[1], 2) == 0


# --- length held equal ---------------------------------------------------------------------------------------------


def simulated(rng, number, lead, slope, longer):
    """Preferences of a judge with a logistic taste for us (`lead`) and for length, where our answers are longer."""
    ratio = rng.normal(longer, 0.5, number)
    return (rng.random(number) < 1 / (1 + np.exp(-lead - slope * ratio))).astype(float), ratio


def test_a_judge_that_goes_by_length_alone_gives_one_half_at_equal_lengths():
    won, ratio = simulated(np.random.default_rng(0), 1500, lead=0.0, slope=2.0, longer=0.6)
    assert won.mean() > 0.7
    found = statistics.length_controlled(won, ratio)
    assert found["value"] == pytest.approx(0.5, abs=0.05)
    assert found["ci"][0] < 0.5 < found["ci"][1]


def test_a_lead_that_length_hides_is_found():
    won, ratio = simulated(np.random.default_rng(1), 1500, lead=0.8, slope=2.0, longer=-0.6)
    assert won.mean() < 0.5
    assert statistics.length_controlled(won, ratio)["value"] == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.05)


def test_turning_the_sides_round_gives_one_less_the_rate():
    won, ratio = simulated(np.random.default_rng(2), 120, lead=0.5, slope=1.0, longer=0.3)
    ours, theirs = statistics.length_controlled(won, ratio), statistics.length_controlled(1 - won, -ratio)
    assert ours["value"] == pytest.approx(1 - theirs["value"], abs=1e-6)
    assert ours["ci"] == pytest.approx((1 - theirs["ci"][1], 1 - theirs["ci"][0]), abs=1e-6)


def test_without_a_taste_for_length_it_is_about_the_plain_rate_and_always_winning_is_finite():
    won = np.array([1.0, 1.0, 1.0, 0.0] * 25)
    found = statistics.length_controlled(won, np.zeros(100))
    assert found["value"] == pytest.approx(0.75, abs=0.01)
    always = statistics.length_controlled(np.ones(50), np.linspace(-1, 1, 50))
    assert 0.9 < always["value"] < 1


def test_the_interval_at_equal_lengths_holds_the_truth_about_as_often_as_it_says():
    rng, held = np.random.default_rng(3), 0
    for number in range(100):
        won, ratio = simulated(rng, 150, lead=0.4, slope=1.0, longer=0.4)
        low, high = statistics.length_controlled(won, ratio, num_resamples=200, seed=number)["ci"]
        held += low < 1 / (1 + math.exp(-0.4)) < high
    assert 88 <= held <= 99


def test_a_prompt_seen_by_several_seeds_counts_once_in_the_interval():
    won, ratio = simulated(np.random.default_rng(4), 60, lead=0.3, slope=0.0, longer=0.0)
    once = statistics.length_controlled(won, ratio)["ci"]
    copies = statistics.length_controlled(np.tile(won, 3), np.tile(ratio, 3), list(range(60)) * 3)["ci"]
    assert copies == pytest.approx(once, abs=0.01)


def test_matched_pairs_are_those_of_like_length():
    won = np.array([1.0] * 9 + [0.0] * 3 + [1.0] * 8)
    ratio = np.array([0.1] * 12 + [1.0] * 8)
    found = statistics.matched(won, ratio, list(range(20)))
    assert (found["value"], found["n"]) == (0.75, 12)
    assert statistics.matched(won[:9], ratio[:9], list(range(9))) is None


# --- seeds and votes -----------------------------------------------------------------------------------------------


def test_three_seeds_have_students_interval():
    found = statistics.over_seeds([1.0, 2.0, 3.0])  # standard error 1/sqrt(3), t 4.3027
    assert found["value"] == 2.0
    assert found["ci"] == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert statistics.over_seeds([1.0]) is None


def test_expected_votes_are_the_mean_of_the_judges_probabilities():
    shares = statistics.vote_shares([np.array([0.0, math.log(3)]), np.array([0.0, -math.log(3)])])
    assert shares == pytest.approx([0.5, 0.5])


def reward_row(seed, margins):
    pairs = [{"pair": str(i), "group": str(i), "margin": margin} for i, margin in enumerate(margins)]
    return {"seed": seed, "pairs": pairs}


def test_models_are_alike_in_the_share_of_pairs_that_they_order_alike():
    a = [reward_row(0, [1, 1, -1, 1]), reward_row(1, [2, -1, -1, 1])]
    b = [reward_row(0, [-1, 1, -1, -1])]
    assert analysis.alike(a)["value"] == 0.75
    assert analysis.alike(a, b)["value"] == (0.5 + 0.25) / 2
    assert analysis.alike(b) is None
    assert analysis.mean_vote(a)["value"] == 0.75 - 0.25 * (1 / np.std([1, 1, -1, 1]) < 1 / np.std([2, -1, -1, 1]))


# --- the data ------------------------------------------------------------------------------------------------------


class Tokenizer:
    def __call__(self, text):
        return {"input_ids": text.split()}


def test_no_prompt_is_in_two_parts_and_ppo_sees_prompts_of_half_a_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("alignment.templates.rendering.encode_prompt", lambda _, prompt: prompt[-1]["content"].split())
    rows = [{"prompt": f"question {i // 2}", "chosen": f"good {i}", "rejected": f"bad answer {i}"} for i in range(400)]
    rows.append({"prompt": "long " * 500, "chosen": "a", "rejected": "b"})
    source = tmp_path / "votes.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = data.write(source, SIZES["small"], Tokenizer(), tmp_path)

    def prompts(name):
        return {json.loads(line)["prompt"][0]["content"] for line in (tmp_path / name).read_text().splitlines()}

    parts = [prompts(name) for name in ("test.jsonl", "a.jsonl", "b.jsonl")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 200
    assert prompts("prompts.jsonl") | prompts("dev.jsonl") <= parts[1]
    assert not prompts("prompts.jsonl") & prompts("dev.jsonl")
    assert prompts("held_out.jsonl") <= parts[0]
    assert (told["read"], told["fitting"]) == (401, 400)
    assert told["longer"]["a"]["value"] == 0.0  # every rejected answer is the longer one


def test_the_length_rule_counts_equal_lengths_as_one_half():
    def pair(first, second, choice):
        return Comparison(({"role": "user", "content": first},), first, second, (Vote(choice),))

    rows = [pair("long", "s", "first"), pair("long", "s", "second"), pair("x", "y", "first"), pair("q", "qq", "second")]
    assert data.length_rule(rows)["value"] == (1 + 0 + 0.5 + 1) / 4


# --- steps and page ------------------------------------------------------------------------------------------------


def test_the_first_seed_is_whole_before_the_second_and_every_judge_scores_every_seed():
    steps = study.names(3)
    assert len(set(steps)) == len(steps)
    assert steps.index("score-0-by-b-0") < steps.index("reward-a-1")
    assert {f"score-{s}-by-{half}-{k}" for s in range(3) for half in "ab" for k in range(3)} <= set(steps)


def test_what_has_a_row_is_not_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(study, "step", lambda name, *_: lambda: ran.append(name) or {"made": name})
    study.run(SIZES["quick"], None, None, ["data", "sft", "several"])
    study.run(SIZES["quick"], None, None, ["data", "sft", "several", "ppo-0"])
    assert ran == ["data", "sft", "ppo-0"]
    assert list(study.read_rows(study.ROWS)) == ["data", "sft", "ppo-0"]


def test_the_chooser_picks_among_the_first_n_and_other_judges_score_its_picks_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = dataclasses.replace(SIZES["quick"], n=4)
    worth = [[[0.0], [1.0], [5.0, 7.0, 6.0, 9.0]], [[2.0], [3.0], [4.0, 1.0, 8.0, 0.0]]]
    rows = [
        {
            name: [{"worth": w, "ended": w != 9.0} for w in some]
            for name, some in zip(("start", "ppo", "pool"), each, strict=True)
        }
        for each in worth
    ]
    (tmp_path / "answers-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []

    def score(judge, found, texts, batch_size):
        asked.append(texts)
        return [found[number][name][index]["worth"] for number, name, index in texts]

    monkeypatch.setattr(runs, "_score", score)
    chooser = runs.scored(size, 0, "reward-a-0", None)
    assert chooser["picks"] == {"2": [1, 0], "4": [1, 2]}  # the answer worth 9 is cut
    assert chooser["scores"] == {"start": [0.0, 2.0], "ppo": [1.0, 3.0], "2": [7.0, 4.0], "4": [7.0, 8.0]}
    judge = runs.scored(size, 0, "reward-b-0", chooser)
    assert judge["picks"] == chooser["picks"]
    assert judge["scores"] == chooser["scores"]
    assert [text for text in asked[1] if text[1] == "pool"] == [(0, "pool", 1), (1, "pool", 0), (1, "pool", 2)]


def test_the_divergence_is_that_of_plain_forward_passes():
    tokenizer = tiny.make_tokenizer()
    policy, start = tiny.make_policy(tokenizer, 0), tiny.make_policy(tokenizer, 1)
    prompts = [[{"role": "user", "content": text}] for text in ("When?", "How long can I keep a book?", "A line.")]
    answers = [SampledCompletion("", ids, True) for ids in ([7, 8, 9, 10], [11], [12, 13])]

    def plain(model, prompt, ids):
        head = encode_prompt(tokenizer, prompt)
        logits = model(torch.tensor([head + ids])).logits[0, len(head) - 1 : -1] / 0.8
        return float(logits.log_softmax(-1)[range(len(ids)), ids].sum())

    with torch.no_grad():
        expected = [plain(policy, p, a.ids) - plain(start, p, a.ids) for p, a in zip(prompts, answers, strict=True)]
    found = runs.divergence(policy, start, tokenizer, prompts, answers, temperature=0.8, batch_size=2)
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_stages_get_configs_that_they_take_and_the_judges_votes_reach_no_policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}

    def ran(command, **_):
        stage, recipe = command[2:4]
        kind = {"sft": SFTStageConfig, "reward": RewardStageConfig, "ppo": PPOStageConfig}[stage]
        config = load_config(kind, recipe, command[4:-2])
        found[config.name] = config
        Path("runs", config.name).mkdir(parents=True)
        Path("runs", config.name, "metrics.jsonl").write_text('{"eval/loss": 2.0}\n{"eval/loss": 1.5}\n')
        Path("runs", config.name, "evaluation.json").write_text('{"length": {}}')
        Path("runs", config.name, "eval_pairs.jsonl").write_text("")
        return subprocess.CompletedProcess(command, returncode)

    monkeypatch.setattr(runs.subprocess, "run", ran)
    size, returncode = SIZES["night"], 0
    assert runs.sft(size) == {"loss_before": 2.0, "loss_after": 1.5}
    for half in "ab":
        runs.reward(size, half, 1)
    runs.several_votes(size, Path("several.json"))
    runs.ppo(size, 1)
    assert {name: config.data.train for name, config in found.items()} == {
        "start": "a.jsonl", "reward-a-1": "a.jsonl", "reward-b-1": "b.jsonl", "reward-several": "several.json",
        "ppo-1": "prompts.jsonl",
    }  # fmt: skip
    model = found["ppo-1"].model
    assert (model.policy, model.reward, model.held_out_reward) == ("start", "reward-a-1", None)
    assert found["ppo-1"].ppo.kl_target == pytest.approx(math.log(16) - 15 / 16, abs=1e-4)
    assert found["ppo-1"].data.eval == "dev.jsonl"  # the study's own prompts choose nothing
    returncode = 2
    with pytest.raises(UserError, match="the ppo stage failed with exit code 2"):
        runs.ppo(size, 2)


def made_up_rows(judged):
    """Rows of one seed with 12 held-out and 2 own prompts: PPO is 1 above the start, best-of-n 2; all end."""
    size = SIZES["quick"]
    count, own = 14, size.own_prompts
    rng = np.random.default_rng(0)
    start = rng.normal(size=count)
    told = {name: {"lengths": [[10] * k] * count, "ended": [[True] * k] * count}
            for name, k in (("start", 1), ("ppo", 1), ("pool", size.n))}  # fmt: skip
    shown = [{"start": ["So so."], "ppo": ["Better_."], "pool": ["<b>", "Best."]}] * own
    scores = {"start": start.tolist(), "ppo": (start + 1).tolist(), "2": (start + 2).tolist()}
    score = {"seed": 0, "scores": scores, "picks": {"2": [1] * count}, "seconds": 1}
    rows = {
        "answers-0": {"answers": told, "kl": [3.0] * count, "own": own, "shown": shown, "seconds": 3600},
        "score-0-by-a-0": score,
    }
    return {**rows, "score-0-by-b-0": score, "reward-b-0": full_reward_row()} if judged else rows


def full_reward_row():
    share = {"value": 0.6, "ci": (0.55, 0.65), "n": 100}
    return reward_row(0, [1.0] * 80 + [-1.0] * 20) | {
        "half": "b", "accuracy": share, "log_loss": share, "seconds": 1,
        "length": {"baseline": {**share, "value": 0.42, "ci": (0.4, 0.46)}, "rule": "shorter", "ahead": share,
                   "correlation": None},
    }  # fmt: skip


def test_seeds_without_a_judge_of_the_other_half_are_not_read():
    assert analysis.read_seed(made_up_rows(judged=False), 0, (2,)) is None
    seed = analysis.read_seed(made_up_rows(judged=True), 0, (2,))
    assert (seed.prompts, seed.judges) == (12, ["b-0"])
    assert analysis.contest([seed], "2", "ppo").won["value"] == 1.0
    gain = analysis.gain_by([seed], "ppo", "other")["value"]
    assert gain == pytest.approx(1 / np.std(np.array(made_up_rows(True)["score-0-by-b-0"]["scores"]["start"][:12])))


def test_the_page_names_what_is_missing_and_takes_its_figures_from_the_rows():
    steps = ["data", "sft", "reward-b-0", "ppo-0", "answers-0", "score-0-by-a-0", "score-0-by-b-0"]
    text = page.page(made_up_rows(judged=True), steps, "quick", SIZES["quick"])
    assert "**Missing:** `data`, `sft`, `ppo-0`." in text
    assert "| B | 0 | 60.0% (55% to 65%) | shorter, 58.0% (54% to 60%) |" in text
    assert "| PPO | 3.00 (3.00 to 3.00) | 10.0 | 100% | 100.0% (100% to 100%) |" in text
    assert "| best of 2 | 0.19 |" in text
    assert "To the judges PPO is behind **best of 2**" in text
    assert "one seed says nothing of others" in text
    assert "agree with 80.0% (" in text
    assert r"Better\_." in text
    assert "- best of 2: Best." in text
    empty = page.page({}, steps, "quick", SIZES["quick"])
    assert "Not measured yet" in empty
    assert "`score-0-by-b-0`" in empty
