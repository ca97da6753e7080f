"""A reward model with a head for each attribute: one body, one pass, and scores that plain transformers gives too."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from test_reward_stage import _here, events, house, run, settings, write  # noqa: F401 - fixtures among them
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import reward.train
from alignment.cli import score
from alignment.cli.main import app
from alignment.data.reading import DataError
from alignment.data.records import Prompt
from alignment.errors import ConfigError, ModelError
from alignment.evaluation.answers import SideAnswer
from alignment.evaluation.judge_names import check_judges
from alignment.evaluation.score_judges import RewardModelScorer
from alignment.evaluation.scorers import load_scorer
from alignment.models.ensembles import load_reward_model
from alignment.models.names import split_head
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import encode_conversation
from alignment.tensors import pad_rows
from reward.config import RewardStageConfig

HEADS = ["agreeing", "polite"]
ASKED = Prompt(({"role": "user", "content": "Hi"},))


def texts(row):
    return (row["chosen"], row["rejected"]) if "chosen" in row else (row["answer_a"], row["answer_b"])


@pytest.fixture(scope="module")
def judged(house):  # noqa: F811
    """Pairs that are judged on both attributes, one of them, or as a whole too: agreeing answers begin with Yes, polite
    ones do not end with a bang. Half of the pairs have the two attributes against each other."""
    rows = []
    for number, row in enumerate(map(json.loads, Path(house, "pairs.jsonl").read_text().splitlines())):
        yes, no = row["chosen"], row["rejected"]
        rude = number % 2
        yes, no = (yes[:-1] + "!", no) if rude else (yes, no[:-1] + "!")
        said = {"agreeing": 1 + number % 3, "polite": -1 if rude else 1}
        if number % 5 == 0:
            del said["polite"]
        if number % 4 == 0:
            said = {name: -value for name, value in said.items()}
            rows.append({"prompt": row["prompt"], "answer_a": no, "answer_b": yes, "attributes": said})
        else:
            rows.append({"prompt": row["prompt"], "chosen": yes, "rejected": no, "attributes": said})
    write(Path(house, "attributes.jsonl"), rows)
    return rows


def heads_settings(name, **sections):
    section = {"attributes": HEADS, "demonstrations": "sft.jsonl"} | sections.pop("reward", {})
    training = {"max_steps": 40, "logging_steps": 10} | sections.pop("training", {})
    data = {"train": "attributes.jsonl", "eval_share": 0.3, "max_length": 64} | sections.pop("data", {})
    return settings(name, data=data, reward=section, training=training, **sections)


def trained(name, **sections):
    if not Registry("registry").is_reference(name):
        run(reward.train.train, RewardStageConfig, heads_settings(name, **sections))
    return find_model(name, Registry("registry"), role="reward")


def batch(source, rows):
    tokenizer = load_tokenizer(source)
    ids = [
        encode_conversation(
            tokenizer, [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
        ).input_ids
        for row in rows
        for text in texts(row)
    ]
    return pad_rows(ids, tokenizer.pad_token_id, "right")


def plain(source):
    """By transformers, and for an adapter PEFT, alone."""
    if source.base is None:
        return AutoModelForSequenceClassification.from_pretrained(source.path).eval()
    base = AutoModelForSequenceClassification.from_pretrained(source.base.path, num_labels=len(HEADS))
    return PeftModel.from_pretrained(base, source.path).eval()


def offsets(source):
    file = Path(source.path, "config.json" if source.base is None else "score.json")
    return torch.tensor(json.loads(file.read_text())["score_bias"])


@torch.no_grad()
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_scores_of_heads_are_those_of_plain_transformers(judged, method):
    more = {} if method == "full" else {"model": {"name": "sft", "method": "lora"}, "training": {"learning_rate": 1e-2}}
    with torch.enable_grad():
        source = trained(f"heads-{method}", **more)
    ids, mask = batch(source, judged)
    ours = load_reward_model(source, several_heads=True).eval()
    assert ours.heads == tuple(HEADS)
    scores, theirs = ours.score(ids, mask), plain(source)
    assert scores.shape == (2 * len(judged), 2)
    torch.testing.assert_close(scores, theirs(input_ids=ids, attention_mask=mask).logits - offsets(source), atol=1e-5,
                               rtol=1e-5)  # fmt: skip
    if method == "full":
        assert theirs.config.num_labels == 2 and theirs.config.id2label == dict(enumerate(HEADS))
    # Each head has learned its own attribute, also where the other says the opposite.
    ahead = (scores[::2] - scores[1::2]).T
    for head, name in enumerate(HEADS):
        right = [ahead[head][n] * row["attributes"][name] > 0 for n, row in enumerate(judged)
                 if name in row["attributes"]]  # fmt: skip
        assert sum(right) / len(right) > 0.8, name
    assert (ahead[0] * ahead[1] < 0).float().mean() > 0.3


def test_each_head_is_evaluated_on_what_judges_it(judged):
    source = trained("heads-full")
    metrics = Registry("registry").resolve("heads-full").manifest.metrics
    held_out = [json.loads(line) for line in Path("runs/heads-full/eval_pairs.jsonl").read_text().splitlines()]
    for name in HEADS:
        rows = [row for row in held_out if row["attribute"] == name]
        lead = [(row["first_score"] - row["second_score"]) * (row["votes"]["first"] - row["votes"]["second"])
                for row in rows]  # fmt: skip
        assert metrics[f"held_out_pairs/{name}"] == len(rows) > 3
        assert metrics[f"accuracy/{name}"]["value"] == pytest.approx(sum(x > 0 for x in lead) / len(lead))
        log_loss = sum(math.log1p(math.exp(-x)) for x in lead) / len(lead)
        assert metrics[f"log_loss/{name}"]["value"] == pytest.approx(log_loss, rel=1e-4)
    assert len([row for row in held_out if row["attribute"] == "polite"]) < len(held_out) / 2
    journal = [json.loads(line) for line in Path("runs/heads-full/metrics.jsonl").read_text().splitlines()]
    names = {name for row in journal for name in row}
    assert {f"{kind}/{name}" for kind in ("train/accuracy", "eval/accuracy", "eval/ece") for name in HEADS} <= names
    page = Path("runs/heads-full/evaluation.html").read_text()
    assert "2 scores of an answer: agreeing, polite" in page and page.count("Agrees with") == 2
    assert json.loads(Path("runs/heads-full/evaluation.json").read_text())["heads"].keys() == set(HEADS)
    # Both heads are 0 on average over the demonstrations.
    scalar = load_reward_model(source, several_heads=True).eval()
    shown = [json.loads(line) for line in Path("sft.jsonl").read_text().splitlines()]
    rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"]} for row in shown]
    with torch.no_grad():
        assert scalar.score(*batch(source, rows)).mean(0).abs().max() < 1e-3


def test_where_one_score_is_needed_a_model_of_several_is_refused(judged):
    trained("heads-full")
    with pytest.raises(ModelError, match="a score for each of agreeing, polite, where one score is needed"):
        load_reward_model(find_model("heads-full", Registry("registry"), role="reward"))
    with pytest.raises(ModelError, match="a judge and chosen_by take a head, as heads-full@v1#agreeing"):
        RewardModelScorer("heads-full", Registry("registry")).scores([ASKED], [SideAnswer("Yes!")])


def scored(*names, tmp_path, capsys):
    """The lines that `alignment score` writes, by model, and what it says."""
    found = {}
    for name in names:
        out = tmp_path / "scores.jsonl"
        capsys.readouterr()
        # Not through the console command, which sets this process's signal handlers for its end.
        asked = [name, "pairs.jsonl", "--registry", "registry", "--no-record", "--json", "--out", str(out)]
        assert score.main(asked) == 0
        told = json.loads(capsys.readouterr().out)
        found[name] = ([json.loads(line) for line in out.read_text().splitlines()], told)
        for file in tmp_path.glob("scores.jsonl*"):
            file.unlink()
    return found


@pytest.mark.parametrize("name", ["heads-full", "heads-lora"])
def test_score_has_a_column_for_each_head_and_takes_one_or_a_sum(judged, name, tmp_path, capsys):
    lora = {"model": {"name": "sft", "method": "lora"}, "training": {"learning_rate": 1e-2}}
    source = trained(name, **({} if name == "heads-full" else lora))
    one, weighted = f"{name}#polite", f"{name}#polite=-0.5,agreeing=2"
    found = scored(name, one, weighted, tmp_path=tmp_path, capsys=capsys)
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    with torch.no_grad():
        expected = load_reward_model(source, several_heads=True).eval().score(*batch(source, rows))
    lines, told = found[name]
    assert "scores" not in lines[0] and "mean" not in told and told["heads"].keys() == set(HEADS)
    columns = torch.tensor([[line[f"scores/{head}"] for head in HEADS] for line in lines]).transpose(1, 2)
    torch.testing.assert_close(columns.reshape(-1, 2), expected, atol=1e-4, rtol=1e-4)
    for asked, by_hand in ((one, expected[:, 1]), (weighted, 2 * expected[:, 0] - 0.5 * expected[:, 1])):
        lines, told = found[asked]
        scores = torch.tensor([line["scores"] for line in lines]).reshape(-1)
        torch.testing.assert_close(scores, by_hand, atol=1e-4, rtol=1e-4)
        assert told["head"] == asked.partition("#")[2] and told["mean"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert found[name][1]["heads"]["polite"]["mean"] == pytest.approx(found[one][1]["mean"], rel=1e-5)


def test_a_judge_takes_a_head_and_names_it(judged):
    source = trained("heads-full")
    judge = RewardModelScorer("heads-full#polite", Registry("registry"))
    assert judge.identity.name == "reward=heads-full@v1#polite" and judge.identity.digest == source.digest
    (score,) = judge.scores([ASKED], [SideAnswer("Yes!")])
    with torch.no_grad():
        model = load_reward_model(source, several_heads=True).eval()
        row = {"prompt": "Hi", "chosen": "Yes!", "rejected": "Yes!"}
        assert score == pytest.approx(float(model.score(*batch(source, [row]))[0, 1]), abs=1e-5)


@pytest.mark.parametrize(("name", "said"), [
    ("heads-full#polit", r"heads-full@v1#polit: there is no head 'polit'; it has agreeing, polite; did you mean 'pol"),
    ("heads-full#polite=much", "expected a head, or weights as agreeing=1,polite=1"),
    ("heads-full#polite=inf", "expected a head, or weights"),
    ("one#polite", r"one@v1: a reward model with one score, and no head 'polite'; leave #polite out"),
    ("sft#polite", "a policy, which has no head 'polite'"),
])  # fmt: skip
def test_a_head_that_a_model_has_not_is_refused(judged, name, said):
    trained("heads-full")
    trained("one", reward={"attributes": ["overall"]})
    with pytest.raises(ModelError, match=said):
        load_scorer(name, Registry("registry"), several_heads=True)


def test_a_name_with_a_head_is_checked_without_it(judged):
    trained("heads-full")
    check_judges(["reward=heads-full#polite"], Registry("registry"), None, None)
    assert split_head("a#b=1,c=2") == ("a", "b=1,c=2") and split_head("a") == ("a", None)
    Path("with#sign").mkdir(exist_ok=True)
    assert split_head("with#sign") == ("with#sign", None)


@torch.no_grad()
@pytest.mark.parametrize("flags", [(), ("--adapter",)])
def test_an_exported_adapter_has_its_heads(judged, flags, tmp_path):
    with torch.enable_grad():
        source = trained("heads-lora", model={"name": "sft", "method": "lora"}, training={"learning_rate": 1e-2})
    folder = tmp_path / "out"
    told = CliRunner().invoke(app, ["models", "export", "heads-lora", str(folder), "--registry", "registry", *flags])
    assert told.exit_code == 0, told.output
    assert "2 scores, of agreeing, polite: `num_labels=2`" in (folder / "README.md").read_text()
    ids, mask = batch(source, judged[:4])
    ours = load_reward_model(source, several_heads=True).eval().score(ids, mask)
    if not flags:
        merged = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        theirs = merged(input_ids=ids, attention_mask=mask).logits - offsets(source)
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


KINDS = ["relevance", "factuality", "completeness"]
SHARED = Path(os.environ.get("ALIGNMENT_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def marked_rows(published):
    """Rows in QA-Feedback's shape: those of the data set with the shortest answers, or made-up ones."""
    if published:
        if not (SHARED / "qa-feedback" / "feedback.json").exists():
            pytest.skip("no qa-feedback; name the folder of published data in ALIGNMENT_TEST_DATA")
        rows = json.loads((SHARED / "qa-feedback" / "feedback.json").read_text())
        rows.sort(key=lambda row: len(row["prediction 1"]) + len(row["feedback"]["corrected-prediction"]))
        return [{**row, "passages": []} for row in rows[:80]]
    rows = []
    for number in range(40):
        kinds = [["Irrelevant"], ["Wrong-Grounding"], []][number % 3]
        missing = [{"error type": "Missing-Answer"}] * (number % 2 if kinds else 1)
        errors = [{"error type": kind, "start": 0, "end": 3, "explanation": ""} for kind in kinds]
        answer = f"Yes{' I like tea' * (number % 3 == 0)}{' ten' * (number % 3 == 1)}."
        feedback = {"errors": errors, "missing-info": missing, "corrected-prediction": f"Yes, floor {number}."}
        row = {"question": f"Which floor, {number}?", "passages": [], "preference": [1], "feedback": feedback}
        rows.append(row | {"prediction 1": answer, "prediction 2": "No."})
    return rows


def in_helpsteer_form(rows):
    """A row for each answer, with a column from 0 to 4 for each attribute: 4 less the errors that were marked."""
    found = []
    for row in rows:
        feedback = row["feedback"]
        kinds = [error["error type"] for key in ("errors", "missing-info") for error in feedback[key]]
        corrected = feedback["corrected-prediction"]
        if corrected.strip() in ("", row["prediction 1"].strip()):
            continue
        errors = dict(zip(KINDS, (
            sum(kind in ("Irrelevant", "Redundant", "Incoherent") for kind in kinds),
            sum(kind in ("Unverifiable", "Wrong-Grounding") for kind in kinds),
            sum(kind.startswith("Missing") for kind in kinds),
        ), strict=True))  # fmt: skip
        for text, counts in ((row["prediction 1"], errors), (corrected, dict.fromkeys(KINDS, 0))):
            columns = {name: 4 - min(4, count) for name, count in counts.items()}
            found.append({"prompt": row["question"], "response": text, "helpfulness": min(columns.values()), **columns})
    return found


@pytest.mark.parametrize("published", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_heads_learn_from_marked_errors_in_both_forms(judged, published):
    rows = marked_rows(published)
    forms = {"feedback": rows, "helpsteer": in_helpsteer_form(rows)}
    decided = {}
    for form, given in forms.items():
        name = f"marked-{form}-{'published' if published else 'made-up'}"
        write(Path(f"{name}.jsonl"), given)
        data = {"train": f"{name}.jsonl", "max_length": 512}
        source = trained(name, data=data, reward={"attributes": KINDS}, training={"max_steps": 10})
        pairs = [{"prompt": row["question"], "chosen": row["prediction 1"], "rejected": "No."} for row in rows[:30]]
        ids, mask = batch(source, pairs)
        with torch.no_grad():
            scores = load_reward_model(source, several_heads=True).eval().score(ids, mask)
            logits = plain(source)(input_ids=ids, attention_mask=mask).logits
        assert scores.shape[1] == 3 and scores.std(0).min() > 0
        torch.testing.assert_close(scores, logits - offsets(source), atol=1e-5, rtol=1e-5)
        held_out = [json.loads(line) for line in Path(f"runs/{name}/eval_pairs.jsonl").read_text().splitlines()]
        decided[form] = {
            (row["attribute"], row["second" if row["votes"]["second"] else "first"])
            for row in held_out if row["votes"]["second"] + row["votes"]["first"]
        }  # fmt: skip
    assert decided["feedback"] and {name for name, _ in decided["feedback"]} == set(KINDS)
    assert decided["feedback"] == decided["helpsteer"]  # the same corrected answers are better in the same attributes


def test_a_head_that_nothing_judges_is_refused_with_the_nearest(judged):
    with pytest.raises(
        DataError, match=r"judges none of reward.attributes, but agreeing, polite; did you mean 'polite'"
    ):
        run(reward.train.train, RewardStageConfig, heads_settings("nearest", reward={"attributes": ["politee"]}))
    with pytest.raises(DataError, match=r"no training pair judges 'polit' .* judge agreeing, polite; did you"):
        run(reward.train.train, RewardStageConfig, heads_settings("near", reward={"attributes": ["agreeing", "polit"]}))
    with pytest.raises(ConfigError, match=r"training.members: an ensemble has one score for each member"):
        run(reward.train.train, RewardStageConfig, heads_settings("members", training={"members": 2}))


def test_the_whole_is_an_attribute_too_and_one_head_is_a_plain_reward_model(judged):
    source = trained("one", reward={"attributes": ["overall"]})
    assert load_reward_model(source).heads == ()
    whole = [row for row in judged if "chosen" in row]
    assert events("one")["data"]["pairs"] + events("one")["data"]["held_out"] == len(whole)
