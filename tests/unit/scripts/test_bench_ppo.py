"""The PPO benchmark: its arithmetic, and our contestants' work against plain forward passes of transformers.

TRL 1.12 is not installed beside our own TRL, so its contestant is checked against ours by the benchmark itself, each
time before it measures.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from types import SimpleNamespace

import bench
import pytest
import torch
from benchmarks import ppo, ppo_learning, ppo_work, venv
from benchmarks.ppo_measures import Stopwatch, matmul_rate, rollout_stats, through_end, useful_flops
from benchmarks.ppo_ours import Contestant
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from alignment.config.sections import ScratchConfig
from alignment.errors import UserError
from alignment.models.policies import build_scratch_model
from alignment.models.scalar import load_scalar_model
from alignment.models.tokenizers import train_tokenizer
from alignment.templates.rendering import encode_prompt

TINY = LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=2,
)

# --- measures --------------------------------------------------------------------------------------------------------


def test_useful_work_is_six_operations_for_each_weight_and_token():
    """Counted from a model's own linear layers: all but the head see every token, the head the responses alone."""
    model = LlamaForCausalLM(TINY)
    layers = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    head = layers.pop("lm_head")
    expected = 6 * 4 * (sum(layers.values()) * 700 + head * 300)
    assert useful_flops(TINY, tokens=700, responses=300, epochs=4, trunks=1) == expected
    second = useful_flops(TINY, tokens=700, responses=300, epochs=4, trunks=2) - expected
    assert second == 6 * 4 * sum(layers.values()) * 700


def test_the_rate_of_matrix_products_is_work_over_time(monkeypatch):
    """A clock of one second a look: the rate is then the work of all products, forward and backward."""
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    assert matmul_rate(TINY, tokens=8, responses=8) == useful_flops(TINY, tokens=8, responses=8, epochs=1, trunks=1)


def test_a_rollout_is_counted_by_its_tokens():
    found = rollout_stats(TINY, [[1, 2], [3]], [[4, 0], [5, 6, 7]], eos=0, epochs=2, trunks=1)
    assert (found["response_tokens"], found["ended"]) == (2.5, 0.5)
    assert found["useful_flops"] == useful_flops(TINY, tokens=8, responses=5, epochs=2, trunks=1)


def test_a_stopwatch_adds_up_and_keeps_a_part(monkeypatch):
    ticks = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch(lambda result: result[0])
    timed = watch.around(lambda x, *, y: (x, y))
    assert [timed(1, y=2), timed(3, y=4)] == [(1, 2), (3, 4)]
    assert (watch.seconds, watch.kept) == (5.0, [1, 3])


@pytest.mark.parametrize(("row", "kept"), [([5, 9, 0, 1], [5, 9, 0]), ([0, 0], [0]), ([5, 9], [5, 9])])
def test_a_response_is_kept_through_its_first_eos(row, kept):
    assert through_end(row, 0) == kept


# --- summing up ------------------------------------------------------------------------------------------------------


def run(**figures):
    whole = {"generate": 1.0, "score": 1.0, "train": 2.0, "matmul_rate": 1e9, "useful_flops": 1e9, "cpu_seconds": 1.0}
    return whole | {"response_tokens": 40.0, "ended": 0.7, "train_loss": 0.0} | figures


def test_the_phases_are_compared_within_a_round():
    """Of two rounds the second is ten times as slow for all, and leaves every ratio."""
    runs = {
        "ours": [run(seconds=4.0), run(seconds=40.0, generate=10.0, score=10.0, train=20.0)],
        "trunk": [run(seconds=2.0, train=0.5), run(seconds=20.0, train=5.0)],
        "trl": [
            run(seconds=8.0, generate=2.0, score=1.5, train=4.0),
            run(seconds=80.0, generate=20.0, score=15.0, train=40.0),
        ],
    }
    found = ppo.more("speed", {}, {"runs": runs})
    expected = {"ratio_trunk": 4.0, "ratio_generation": 2.0, "ratio_score": 1.5, "ratio_train": 2.0}
    for name, ratio in expected.items():
        assert found[name] == {"median": ratio, "min": ratio, "max": ratio}
    assert found["matmul_share"]["trunk"]["max"] == 2.0  # of 1e9 in half a second at 1e9 a second
    assert found["phases"]["trl"]["train"]["median"] == 22.0
    assert any("ratio_trunk: x4.00" in note for note in found["notes"])


def test_memory_says_what_one_base_saves():
    found = ppo.more("memory", {}, {"mib": {"ours": 1000, "shared": 380, "trl": 1500}})
    assert found["shared_ratio"] == 0.38


def test_the_difference_is_paired_by_seed_in_standard_deviations():
    """Differences 1, 2 and 3 standard deviations: mean 2, and 4.303 / sqrt(3) to each side (Student's t, 2 degrees)."""
    rewards = {"ours": [1.0, 2.0, 3.0], "trl": [0.5, 1.0, 1.5]}
    runs = {name: [{"rewards": [0.0] * 8 + [r, r], "seconds": 1.0} for r in found] for name, found in rewards.items()}
    found = ppo.more("learning", {"reward_sd": 0.5}, {"runs": runs})
    assert found["difference"] == 2.0
    assert found["ci"] == pytest.approx([2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)], abs=1e-4)
    assert found["tail_rewards"] == rewards


def test_students_quantiles_cover():
    """Of intervals of five normal values 95% hold the mean; by a normal quantile it would be 88%."""
    values = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = [ppo_learning.interval(row)[1] for row in values.tolist()]
    assert statistics.fmean(low < 0 < high for low, high in bounds) == pytest.approx(0.95, abs=0.01)


def test_one_seed_tells_nothing():
    assert ppo_learning.interval([0.3]) == (0.3, (-math.inf, math.inf))


@pytest.mark.parametrize(("count", "tail"), [(10, 8.5), (40, 35.5), (3, 2.0)])
def test_the_tail_is_the_last_fifth(count, tail):
    assert ppo_learning.tail_mean(list(range(count))) == tail


# --- the contestants -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Eight prompts for a policy that has learned nothing."""
    folder = tmp_path_factory.mktemp("work")
    lines = ppo_work.write_transcripts(folder / "all.jsonl", 0).read_text().splitlines()[:60]
    chats = [json.loads(line)["messages"] for line in lines]
    tokenizer = train_tokenizer((message["content"] for chat in chats for message in chat), 400, "chatml")
    shape = ScratchConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    build_scratch_model("llama", shape, tokenizer).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    load_scalar_model(str(folder / "policy")).model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    found = ppo_work.short_prompts([SimpleNamespace(messages=chat) for chat in chats], tokenizer, 8)
    ppo_work.save_prompts(folder, [messages for messages, _ in found])
    ppo_work.save_reward_adapter(folder)
    prompts = [ids for _, ids in found]
    made = ppo_work.Work(
        prompts, ppo_work.sample(folder, prompts, 6), episodes=4, iterations=2, max_new_tokens=6, num_epochs=2,
        order={"3": [7, 6, 5, 4, 0, 1, 2, 3]},
    )  # fmt: skip
    made.write(folder)
    assert ppo_work.Work.read(folder) == made
    assert [encode_prompt(tokenizer, messages) for messages, _ in found] == prompts
    return folder, made


def test_our_check_says_what_transformers_models_say(work):
    """Row by row, without packing: the loss of a token, the score at the last, the values before each."""
    folder, made = work
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
    scalar = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    losses, values, scores = [], [], []
    with torch.no_grad():
        for prompt, response in zip(made.prompts, made.responses, strict=True):
            ids = torch.tensor([prompt + response])
            logprobs = policy(input_ids=ids).logits[0].log_softmax(-1)
            read = scalar.score(scalar.model(input_ids=ids).last_hidden_state)[0, :, 0]
            before = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            losses += [-float(logprobs[place, token]) for place, token in zip(before, response, strict=True)]
            values += read[list(before)].tolist()
            scores.append(float(read[-1]))
    found = Contestant(folder, {}).check()
    assert found["loss"] == pytest.approx(statistics.fmean(losses), abs=1e-5)
    assert found["value"] == pytest.approx(statistics.fmean(values), abs=1e-5)
    assert found["score"] == pytest.approx(statistics.fmean(scores), abs=1e-5)
    assert (found["samples"], found["tokens"]) == (8, sum(map(len, made.prompts + made.responses)))


@pytest.mark.parametrize("settings", [{}, {"value": "trunk"}, {"mode": "shared"}])
def test_each_of_ours_does_the_work(work, settings):
    folder, made = work
    contestant = Contestant(folder, settings)
    bench.same_work({"ours": Contestant(folder, {}).check(), "other": contestant.check()})
    found = contestant.run()
    assert 0 < found["generate"] + found["score"] + found["train"] <= found["seconds"]
    trunks = 1 if settings == {"value": "trunk"} else 2
    tokens = 8 * found["response_tokens"]
    prompts = [made.prompts[number] for number in range(8)]
    config = AutoModelForCausalLM.from_pretrained(folder / "policy").config
    assert found["useful_flops"] == pytest.approx(
        useful_flops(config, sum(map(len, prompts)) + tokens, tokens, epochs=2, trunks=trunks)
    )


def test_learning_takes_the_prompts_of_its_seed(work, monkeypatch):
    folder, _ = work
    contestant = Contestant(folder, {})
    taken = []
    loop_of = contestant._loop

    def watched(seed):
        loop = loop_of(seed)
        iterate = loop.iterate
        loop.iterate = lambda numbers: (taken.append(list(numbers)), iterate(numbers))[1]
        return loop

    monkeypatch.setattr(contestant, "_loop", watched)
    found = contestant.learn(3)
    assert taken == [[7, 6, 5, 4], [0, 1, 2, 3]]
    assert len(found["rewards"]) == 2
    assert found["rewards"] == contestant.learn(3)["rewards"]


def test_too_few_short_prompts_are_refused(tokenizer):
    chat = [{"role": "user", "content": "w " * 100}, {"role": "assistant", "content": "x"}]
    with pytest.raises(UserError, match="found 0 prompts of at most 48 tokens, 2 needed"):
        ppo_work.short_prompts([SimpleNamespace(messages=chat)] * 2, tokenizer, 2)


def test_generated_answers_end_within_the_limit_in_two_thirds(tmp_path):
    """A word is about 1.05 tokens of the vocabulary of 4,096."""
    lines = ppo_work.write_transcripts(tmp_path / "a.jsonl", 0).read_text().splitlines()
    lengths = [len(json.loads(line)["messages"][1]["content"].split()) for line in lines]
    assert 0.6 < statistics.fmean(length <= 61 for length in lengths) < 0.72
    assert ppo_work.write_transcripts(tmp_path / "b.jsonl", 0).read_text().splitlines() == lines


# --- the command -----------------------------------------------------------------------------------------------------


class Learner:
    """A contestant whose rewards are its seed plus what it is given."""

    def __init__(self, more, score=0.1):
        self.more, self.score = more, score

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, what):
        name, *seed = what.split()
        work = {"samples": 8, "loss": 5.0, "score": self.score}
        return work if name == "check" else {"rewards": [int(seed[0]) + self.more], "seconds": 1.0}


def test_each_seed_is_learned_by_all():
    found = bench.measure_learning(lambda name: Learner({"ours": 0.5, "trl": 0.0}[name]), ["ours", "trl"], seeds=3)
    assert [one["rewards"] for one in found["ours"]] == [[0.5], [1.5], [2.5]]
    assert [one["rewards"] for one in found["trl"]] == [[0.0], [1.0], [2.0]]


def test_another_reward_is_not_compared():
    with pytest.raises(UserError, match=r"score 0\.2"):
        bench.measure_learning(lambda name: Learner(0, {"ours": 0.1, "trl": 0.2}[name]), ["ours", "trl"], seeds=1)


@pytest.mark.parametrize("arguments", [["sft", "--learning"], ["ppo", "--learning", "--memory"]])
def test_what_does_not_go_together_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments)
    assert ended.value.code == 2
    assert "--learning" in capsys.readouterr().err


def test_a_peer_may_need_another_version_than_our_pins(tmp_path, monkeypatch):
    """Our pin on the peer itself is left out of what pip is held to; all others stay."""
    commands = []

    def record(command, **_):
        commands.append(command)
        (tmp_path / ".bench" / "trl-1.12.0").mkdir(parents=True, exist_ok=True)

    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\ntorch==2.13.0\ntrl==1.16.0\n", encoding="utf-8")
    monkeypatch.setattr(venv, "ROOT", tmp_path)
    monkeypatch.setattr(venv.subprocess, "run", record)
    venv.peer_python(("trl==1.12.0",))
    pins = tmp_path / ".bench" / "trl-1.12.0" / "constraints.txt"
    assert pins.read_text().splitlines() == ["numpy==2.4.6", "torch==2.13.0"]
    assert commands[-1][-3:] == ["-c", str(pins), "trl==1.12.0"]
