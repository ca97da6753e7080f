"""`alignment compare` on a tiny registry: what it keeps, shows and records, and mistakes in one line."""

import json
import time
from pathlib import Path

import pytest
from helpers import tiny
from helpers.chat_server import ChatServer, completion
from helpers.two_policies import publish_two_policies

from alignment.cli.compare import main
from alignment.evaluation import drawing
from alignment.evaluation.result_text import sentences
from alignment.models.scalar import load_scalar_model
from alignment.ratings import RatingsStore
from alignment.registry import Parent, Registry, RegistryError
from alignment.registry.evaluations import evaluations_of
from alignment.registry.promotion import promote
from alignment.templates.rendering import encode_conversation
from alignment.tensors import pad_rows

FOLDER = Path("compares/one-v1-against-two-v1")
LENGTH = "def longer(prompts, responses):\n    return [float(len(r)) for r in responses]\n"


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    """A working folder with a registry that holds two policies, a judge, and eight prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    publish_two_policies(tmp_path, tokenizer)
    rows = [{"prompt": f"Question {n}?", "topic": "ab"[n % 2], "completion": f"Answer {n}."} for n in range(8)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("judges.py").write_text(LENGTH)
    return tmp_path


@pytest.fixture
def reward_model(house, tokenizer):
    model = tiny.make_scalar(house / "body", tiny.make_policy(tokenizer), tokenizer, seed=3)
    model.model.save_pretrained("rm")
    tokenizer.save_pretrained("rm")
    return Registry().publish("rm", "rm", stage="reward", role="reward")


def run(*arguments, prompts="prompts.jsonl"):
    return main([*arguments, "--prompts", prompts, "--max-new-tokens", "6"])


def result_of(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    return error[0].removeprefix("error: ")


def test_answers_judgments_result_and_evaluations_are_kept(house, capsys):
    result = result_of(capsys, "one", "two", "--by", "python=judges.py:longer", "--slice", "topic")
    rows = [json.loads(line) for line in (FOLDER / "answers.jsonl").read_text().splitlines()]
    answers = {(row["side"], row["messages"][0]["content"]): row["text"] for row in rows if row["row"] == "answer"}
    assert len(answers) == 16
    wins = sum(len(answers["one@v1", f"Question {n}?"]) > len(answers["two@v1", f"Question {n}?"]) for n in range(8))
    (pair,) = result["pairs"]
    (judged,) = pair["judges"]
    assert (judged["wins"], judged["prompts"]) == (wins, 8)
    assert set(judged["slices"]["topic"]) == {"a", "b"}
    assert json.loads((FOLDER / "result.json").read_text())["pairs"] == result["pairs"]
    assert len((FOLDER / "judgments.jsonl").read_text().splitlines()) == 8
    assert result["page"] == str(FOLDER / "compare.html")
    assert sentences(result)[0] in (FOLDER / "compare.html").read_text()
    registry = Registry()
    (ours, score), (theirs, _) = (evaluations_of(registry, registry.resolve(name)) for name in ("one", "two"))
    assert (ours.wins, ours.losses, ours.against, ours.n) == (theirs.losses, theirs.wins, "two@v1", 8)
    assert ours.win_rate == pytest.approx(1 - theirs.win_rate) and ours.low == pytest.approx(1 - theirs.high)
    assert result["recorded"] == ["one@v1", "two@v1"]
    lengths = [len(text) for (side, _), text in answers.items() if side == "one@v1"]
    assert (score.figure, score.judge, score.data, score.n) == ("score", "python=judges.py:longer", "prompts.jsonl", 8)
    assert score.value == pytest.approx(sum(lengths) / 8) and score.low < score.value < score.high
    assert score.data_sha256 == ours.prompts_sha256


def test_the_same_command_again_draws_nothing_and_records_nothing_new(house, capsys, monkeypatch):
    first = result_of(capsys, "one", "two", "--by", "python=judges.py:longer")
    monkeypatch.setattr(drawing, "complete", None)  # would be a traceback
    again = result_of(capsys, "one", "two", "--by", "python=judges.py:longer")
    assert again["pairs"] == first["pairs"] and again["recorded"] == []


def test_answers_do_not_depend_on_the_batch_the_order_or_the_other_prompts(house, capsys):
    def answers(out):
        rows = [json.loads(line) for line in Path(out, "answers.jsonl").read_text().splitlines()]
        return {(row["side"], row["prompt"]): row["text"] for row in rows if row["row"] == "answer"}

    assert run("one", "two", "--out", "whole") == 0
    lines = Path("prompts.jsonl").read_text().splitlines()
    Path("some.jsonl").write_text("\n".join(reversed(lines[2:])) + "\n")
    assert run("one", "two", "--out", "some", "--batch-size", "3", prompts="some.jsonl") == 0
    whole, some = answers("whole"), answers("some")
    assert len(some) == 12 and some.items() <= whole.items()
    assert len(set(whole.values())) > 8  # and prompts have seeds of their own


def test_a_reward_model_judges_each_answer_as_it_is_scored_in_training(house, tokenizer, reward_model, capsys):
    result = result_of(capsys, "one", "two", "--by", "reward=rm")
    scores = {}
    model = load_scalar_model(str(reward_model.path), trained=True).eval()
    for line in (FOLDER / "answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["row"] == "answer":
            ids = encode_conversation(
                tokenizer, [*row["messages"], {"role": "assistant", "content": row["text"]}]
            ).input_ids
            ids, mask = pad_rows([ids if row["ended"] else ids[:-1]], tokenizer.pad_token_id, "right")
            scores[row["side"], row["prompt"]] = float(model.score(ids, mask).detach()[0])
    rows = [json.loads(line) for line in (FOLDER / "judgments.jsonl").read_text().splitlines()]
    for row in rows:
        expected = [scores[side, row["prompt"]] for side in ("one@v1", "two@v1")]
        assert row["scores"] == pytest.approx(expected, abs=1e-5)
        assert row["outcome"] == float(expected[0] > expected[1])
    assert result["judges"][0]["digest"] == reward_model.digest


def test_the_judge_that_a_side_was_trained_on_is_marked(house, tokenizer, reward_model, capsys):
    trained = tiny.write(house / "model", tiny.make_policy(tokenizer, seed=2), tokenizer)
    parents = [Parent("init", "one@v1"), Parent("reward", reward_model.ref, reward_model.digest)]
    config = {"rewards": {"others": [{"function": "judges:longer"}]}}
    Registry().publish("ppo", trained, stage="ppo", role="policy", parents=parents, config=config)
    capsys.readouterr()
    assert run("one", "ppo", "--by", "reward=rm", "--by", "python=judges:longer", "--by", "references=f1") == 0
    shown = capsys.readouterr().out
    assert "reward=rm@v1 (trained on)" in shown and "python=judges:longer (trained on)" in shown
    assert "judged by words shared with the reference" in shown.splitlines()[0]  # the one that it was not trained on
    registry = Registry()
    marks = {each.judge: each.trained_on for each in evaluations_of(registry, registry.resolve("ppo"))}
    assert marks == {"reward=rm@v1": True, "python=judges:longer": True, "references=f1": False}
    assert not any(each.trained_on for each in evaluations_of(registry, registry.resolve("one")))


def test_a_check_is_a_figure_of_each_version_that_promote_reads(house, capsys):
    Path("wordings.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{how} {n}?", "same": n}) + "\n" for n in range(3) for how in ("When", "At"))
    )
    arguments = ["one", "prompted=two?system=Be brief.", "--by", "json", "--by", "consistency=same"]
    assert run(*arguments, prompts="wordings.jsonl") == 0
    assert "an evaluation of one@v1 is in the registry" in capsys.readouterr().err
    registry = Registry()
    told = [each for each in evaluations_of(registry, registry.resolve("one")) if each.label == "measured"]
    assert [(each.figure, each.n, each.unit) for each in told] == [
        ("valid JSON", 6, "prompts"), ("and not fenced", 6, "prompts"), ("alike (F1)", 3, "questions"),
        ("the same", 3, "questions"), ("other questions", 3, "questions"),
    ]  # fmt: skip
    assert told[0].value == 0.0 and 0.0 == told[0].low < told[0].high  # Wilson's interval of none of six
    promote(registry, "one@v1", "prod", require=["compare.valid_json.high<0.6", "compare.alike_f1.n>=3"])
    with pytest.raises(RegistryError, match=r"compare.valid_json is 0, required compare.valid_json>0.9"):
        promote(registry, "one@v1", "prod", require=["compare.valid_json>0.9"])
    assert evaluations_of(registry, registry.resolve("two")) == []  # with a system prompt it is more than its version


def test_prompting_against_fine_tuning_is_one_line(house, capsys):
    Path("few.jsonl").write_text(json.dumps({"prompt": "Open?", "completion": "At nine."}) + "\n")
    result = result_of(
        capsys, "one", "prompted=one?system=Be very brief.&examples=few.jsonl", "--by", "references=chrf"
    )
    assert set(result["sides"]) == {"one@v1", "prompted"}
    assert result["sides"]["prompted"]["system"] == "Be very brief."
    assert result["sides"]["prompted"]["digest"] == result["sides"]["one@v1"]["digest"]
    assert result["recorded"] == ["one@v1"]  # the prompt is no part of the version
    told, *_ = evaluations_of(Registry(), Registry().resolve("one"))
    assert (told.against, told.against_digest) == ("prompted", None)


def test_an_endpoint_and_a_file_are_sides(house, capsys):
    rows = [{"prompt": f"Question {number}?", "completion": "word " * (number + 1)} for number in range(8)]
    Path("old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ChatServer(lambda prompt, seen: completion("three words here", usage=(9, 3))) as server:
        side = f"gpt={server.url}?system=Be very kind.#m"
        result = result_of(capsys, side, "old=old.jsonl", "--by", "python=judges.py:longer")
        again = result_of(capsys, side, "old=old.jsonl", "--by", "python=judges.py:longer")
    assert len(server.requests) == 8 and again["pairs"] == result["pairs"]
    assert {request["messages"][0]["content"] for request in server.requests} == {"Be very kind."}
    assert result["pairs"][0]["judges"][0]["wins"] == 3  # 16 letters against 4, 9, 14
    assert result["sides"]["gpt"]["mean_tokens"] == 3.0 and result["recorded"] == []


def test_checks_show_each_sides_scores_gaps_and_costs(house, capsys):
    rows = [
        {"prompt": f"Q{n}?", "topic": "ab"[n % 2], "same": n // 2, "refuse": n < 2, "page": "Open at nine."}
        for n in range(8)
    ]
    Path("checks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("s.json").write_text('{"type": "object"}')
    good = ["I can't help with that."] * 2 + ["Open at nine."] * 6
    Path("good.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Q{n}?", "completion": text}) + "\n" for n, text in enumerate(good))
    )
    by = ["json=s.json", "refusals", "consistency=same", "support=page"]
    command = ["good=good.jsonl", "one", *(part for each in by for part in ("--by", each)), "--slice", "topic"]
    command += ["--price-per-hour", "one@v1=3.6"]
    assert run(*command, "--json", prompts="checks.jsonl") == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["scores"]) == by
    first = {judge: measures[0] for judge, measures in result["scores"].items()}
    assert {judge: row["sides"]["good"]["value"] for judge, row in first.items()} == {
        "json=s.json": 0.0, "refusals": 1.0, "consistency=same": 1.0, "support=page": 1.0
    }  # fmt: skip
    assert set(first["refusals"]["gaps"]["topic"]["good"]) == {"a", "b"}
    costs = result["sides"]["one@v1"]["costs"]
    answers = [json.loads(line) for line in Path("compares/good-against-one-v1/answers.jsonl").read_text().splitlines()]
    drawn = [row for row in answers if row.get("side") == "one@v1" and row["row"] == "answer"]
    assert costs["price_per_1000"] == pytest.approx(sum(row["seconds"] for row in drawn) / 8)  # 0.001 a second
    (latency,) = {row["latency"] for row in drawn}  # of the one batch
    assert latency == pytest.approx(sum(row["seconds"] for row in drawn), abs=1e-3)
    assert result["sides"]["good"]["costs"]["price_per_1000"] is None
    assert run(*command, prompts="checks.jsonl") == 0
    said = capsys.readouterr()
    for text in ("valid JSON", "refused what it must", "alike (F1)", "with a foreign number", "per 1,000"):
        assert text in said.out
    assert "support=page: words and numbers of the text are counted" in said.err


def test_the_time_of_an_endpoints_answers_adds_up_to_its_wall_time(house, capsys):
    Path("old.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Question {n}?", "completion": "x"}) + "\n" for n in range(8))
    )
    with ChatServer(lambda prompt, seen: completion("three words here", usage=(9, 3))) as server:
        started = time.perf_counter()
        assert run(f"gpt={server.url}#m", "old=old.jsonl", "--out", "c", "--concurrency", "4") == 0
        wall = time.perf_counter() - started
    rows = [json.loads(line) for line in Path("c/answers.jsonl").read_text().splitlines()]
    drawn = [row for row in rows if row.get("side") == "gpt" and row["row"] == "answer"]
    assert len(drawn) == 8 and 0 < sum(row["seconds"] for row in drawn) <= wall
    assert all(row["latency"] > 0 for row in drawn)


def test_people_rate_what_was_drawn_and_the_same_command_reads_it(house, capsys):
    command = ["one", "two", "--by", "people", "--db", "votes.db", "--by", "python=judges.py:longer"]
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "0 of 8 pairs are rated (0 votes)" in said.err
    assert "rate: alignment rate --db votes.db --labeler NAME; then give this command again" in said.err
    assert "judged by the function judges.py:longer" in said.out
    with RatingsStore("votes.db") as store:
        for item in store.items()[:4]:
            store.import_rating(item.id, "ann", "first")
    assert run(*command) == 0
    shown = capsys.readouterr()
    assert "judged by people" in shown.out.splitlines()[0]
    assert "more ratings" in shown.out and "people with the help of python=judges.py:longer" in shown.out
    assert "ann" in shown.out and "ann" not in (FOLDER / "judgments.jsonl").read_text()
    assert "4 of 8 pairs are rated (4 votes)" in shown.err


def test_a_file_of_answers_is_judged_again_without_models(house, capsys, monkeypatch):
    assert run("one", "two", "--out", "c") == 0
    assert "say who judges with --by" in capsys.readouterr().err
    monkeypatch.setattr(drawing, "find_model", None)
    command = ["--answers", "c/answers.jsonl", "--by", "python=judges.py:longer"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["sides"]) == ["one@v1", "two@v1"] and result["recorded"] == ["one@v1", "two@v1"]
    assert Path("c/result.json").is_file()
    assert "has no answers of three; it has those of one@v1, two@v1" in refused(capsys, "one@v1", "three", *command)
    assert "one side alone (one@v1); a comparison needs two" in refused(capsys, "one@v1", *command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "1 side to compare; name two or more"),
        (["one", "one"], "two sides are called one@v1; name them apart: one=one@v1 two=one@v1"),
        (["a=one", "b=one"], "a and b gave the same answers to all 8 prompts"),
        (["one", "three"], "no model 'three' in the registry"),
        (["one", "two", "--slice", "kind"], "--slice kind: no such column in prompts.jsonl; its columns: topic"),
        (["one", "two", "--by", "people"], "--by people: name the ratings file"),
        (["one", "two", "--by", "reward=one"], "one@v1 is a policy; a reward model was asked for"),
        (["one", "two", "--limit", "0"], "--limit 0: expected 1 or more"),
        (["one", "two", "--temperature", "nan"], "--temperature nan: expected 0 or more"),
        (["one", "two", "--key-env", "NO_SUCH"], "--key-env NO_SUCH: this environment variable is not set"),
        (["one", "x=http://127.0.0.1:9/v1#m"], "Connection refused; is the server running"),
        (["one", "x=http://127.0.0.1:9/v1"], "the model's name is missing; write it behind a #"),
        (["one", "two", "--by", "refusals"], "has no true or false in refuse or safe"),
        (["one", "two", "--by", "consistency"], "--by consistency: expected one of"),
        (["one", "two", "--by", "consistency=kind"], "no two prompts share a value of kind"),
        (["one", "two", "--by", "support=kind"], "--by support=kind: prompts.jsonl:1 has no text there"),
        (["one", "two", "--by", "json=no.json"], "no.json: cannot be read"),
        (["one", "two", "--judge-model", "rm"], "--judge-model rm: read by --by refusals and --by support alone"),
        (["one", "two", "--price-per-hour", "three=2"], "no side is called three; the sides are one@v1, two@v1"),
        (["one", "old=few.jsonl"], "few.jsonl has no answer to 7 of 8 prompts, as to 'Question 1?'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(house, capsys, arguments, message):
    Path("few.jsonl").write_text(json.dumps({"prompt": "Question 0?", "completion": "x"}) + "\n")
    by = [] if "--by" in arguments else ["--by", "python=judges.py:longer"]
    assert run(*arguments, *by) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("answers of ")]
    assert len(error) == 1 and message in error[0], error


def test_no_prompts_are_one_line(house, capsys):
    Path("empty.jsonl").write_text("")
    assert run("one", "two", "--by", "references", prompts="empty.jsonl") == 2
    assert "empty.jsonl: the data set is empty" in capsys.readouterr().err


def test_changed_settings_are_refused_and_nothing_is_lost(house, capsys):
    assert run("one", "two", "--by", "python=judges.py:longer") == 0
    before = (FOLDER / "answers.jsonl").read_bytes()
    capsys.readouterr()
    assert run("one", "two", "--by", "python=judges.py:longer", "--temperature", "0.5") == 2
    assert "drawn with temperature=1.0, now it is 0.5" in capsys.readouterr().err
    assert (FOLDER / "answers.jsonl").read_bytes() == before


def test_a_registry_that_cannot_be_written_costs_no_result(house, capsys, monkeypatch):
    from alignment.registry import RegistryError

    def full(*_):
        raise RegistryError("no space left")

    monkeypatch.setattr("alignment.evaluation.recording.add_evaluation", full)
    assert run("one", "two", "--by", "python=judges.py:longer") == 0
    said = capsys.readouterr()
    assert "not in the registry: no space left" in said.err
    assert "one@v1 against two@v1" in said.out and (FOLDER / "result.json").is_file()


def test_wandb_is_asked_for_and_texts_need_it(house, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    asked = ("one", "two", "--by", "python=judges.py:longer")
    assert run(*asked) == 0
    assert "W&B" not in capsys.readouterr().err
    assert run(*asked, "--wandb") == 0
    assert "W&B is off (WANDB_MODE=disabled): nothing was sent" in capsys.readouterr().err
    text = refused(capsys, *asked, "--prompts", "prompts.jsonl", "--wandb-text")
    assert text == "--wandb-text: nothing is told to W&B; add --wandb"
