"""`python -m reward`: what it refuses to publish, where its zero is, and the preflight."""

import json
import math
from pathlib import Path

import launching
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import reward.saved_model
import reward.studies.overfit
import reward.train
import sft.train
from alignment.cli.rate import main as rate
from alignment.config.loading import validate
from alignment.errors import ConfigError
from alignment.models.scalar import load_scalar_model
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.ratings import RatingsStore
from alignment.registry import Registry
from alignment.runs.journal import Journal
from alignment.templates.rendering import encode_conversation
from alignment.tensors import pad_rows
from reward.batches import score_heads
from reward.config import RewardStageConfig
from reward.finish import GateError, check_gate
from reward.prepare import prepare
from reward.questions import JudgedPair, Question
from reward.studies.overfit import PreflightError, first_pairs
from reward.trainer import QuestionTrainer
from sft.config import SFTStageConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
WORDS = ("cats", "rain", "bread", "trains", "tea", "snow", "maps", "bells")


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An SFT model, published, and its demonstrations; forty pairs."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        asked = [
            (f"Say that {word} are {style}.", word, style)
            for word in WORDS
            for style in ("old", "new", "odd", "big", "wet")
        ]
        write(
            "sft.jsonl",
            [{"prompt": prompt, "completion": f"Yes, {word} are {style}."} for prompt, word, style in asked],
        )
        pairs = [
            {"prompt": prompt, "chosen": f"Yes, {word} are {style}.", "rejected": f"No, {word}? Never {style}."}
            for prompt, word, style in asked
        ]
        write("pairs.jsonl", pairs)
        config = {
            "name": "sft",
            "model": {"name": "scratch:llama", "scratch": SHAPE},
            "data": {"train": "sft.jsonl", "eval_share": 0, "max_length": 64},
            "training": {"max_steps": 2, "learning_rate": 1e-3},
            "registry": {"name": "sft", "path": "registry"},
            "tracking": {"wandb": "disabled"},
        }
        run(sft.train.train, SFTStageConfig, config)
    return folder


@pytest.fixture(autouse=True)
def _here(house, monkeypatch):
    monkeypatch.chdir(house)


def run(train, cls, config):
    parsed = validate(cls, config, "test")
    parsed.run_dir.mkdir(parents=True)
    return train(parsed)


def settings(name, **sections):
    config = {
        "name": name,
        "model": {"name": "sft"},
        "data": {"train": "pairs.jsonl", "eval_share": 0.2, "max_length": 64},
        "training": {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        "registry": {"name": name, "path": "registry"},
        "tracking": {"wandb": "disabled"},
    }
    return {
        key: {**config.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in (config | sections).items()
    }


def events(name):
    return {row["event"]: row for row in map(json.loads, Path("runs", name, "events.jsonl").read_text().splitlines())}


def published(name):
    source = find_model(name, Registry("registry"), role="reward")
    scalar = load_scalar_model(source, trained=True).eval()
    return Registry("registry").resolve(name), scalar, load_tokenizer(source)


def mean_score(name, path="sft.jsonl"):
    """Of a file's demonstrations, one at a time."""
    _, scalar, tokenizer = published(name)
    scores = []
    for row in map(json.loads, Path(path).read_text().splitlines()):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        ids = encode_conversation(tokenizer, turns).input_ids
        with torch.no_grad():
            scores.append(scalar.score(torch.tensor([ids]), torch.ones(1, len(ids)).bool()).item())
    return sum(scores) / len(scores)


# --- votes of other tools --------------------------------------------------------------------------------------------


def label_studio(number, question, right, wrong):
    """A task that three people annotated, one of whom skips every seventh."""
    annotations = [
        {
            "completed_by": {"id": n, "email": f"{name}@example.org"},
            "result": [
                {
                    "value": {"selected": side},
                    "from_name": "pw",
                    "to_name": "answer1,answer2",
                    "type": "pairwise",
                }
            ],
            "was_cancelled": name == "cy" and number % 7 == 0,
        }
        for n, (name, side) in enumerate((("ada", "left"), ("bo", "left" if number % 5 else "right"), ("cy", "left")))
    ]
    data = {"prompt": question, "answer1": right, "answer2": wrong}
    return {"id": number, "data": data, "annotations": annotations, "predictions": []}


def argilla(number, question, right, wrong):
    """A record that two people ranked, and a third one left as a draft."""
    names = ["response-1", "response-2"]
    said = [
        ("u1", names, "submitted"),
        ("u2", names if number % 5 else names[::-1], "submitted"),
        ("u3", names, "draft"),
    ]
    answers = [{"user_id": user, "value": value, "status": status} for user, value, status in said]
    fields = {"prompt": question, "response-1": right, "response-2": wrong}
    return {"id": f"r{number}", "status": "completed", "fields": fields, "responses": {"rank": answers}}


@pytest.mark.parametrize(("export", "votes"), [(label_studio, [34, 40, 40]), (argilla, [40, 40])])
def test_each_annotator_of_an_exported_project_trains_the_reward_model(house, export, votes):
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    rows = [export(n, pair["prompt"], pair["chosen"], pair["rejected"]) for n, pair in enumerate(pairs)]
    name = export.__name__
    Path(f"{name}.json").write_text(json.dumps(rows))
    assert rate(["import", "--db", f"{name}.db", f"{name}.json"]) == 0
    run(reward.train.train, RewardStageConfig, settings(name, data={"train": f"{name}.db"}))
    learned = published(name)[0].manifest.data[0]
    assert (learned.items, sorted(learned.labeler_hashes.values())) == (40, votes)
    assert not any("@" in hashed for hashed in learned.labeler_hashes)


# --- the score offset -------------------------------------------------------------------------------------------------


def test_scores_average_zero_over_the_sft_stages_demonstrations(house):
    run(reward.train.train, RewardStageConfig, settings("zero"))
    metrics = published("zero")[0].manifest.metrics
    assert metrics["zero_over"] == "demonstrations"
    assert (metrics["zero_from"], metrics["zero_sequences"]) == ("sft.jsonl", 40)
    assert events("zero")["data"]["zero_over"] == "demonstrations"
    assert abs(mean_score("zero")) < 1e-3
    assert abs(metrics["score_bias"]) > 1e-2  # else there was nothing to shift


def test_demonstrations_are_scored_once(house, monkeypatch):
    """They are as many as 512, and took half of the stage."""
    scored = []

    def counting(model, questions, *given, **more):
        scored.append(len(questions))
        return score_heads(model, questions, *given, **more)

    monkeypatch.setattr(reward.saved_model, "score_heads", counting)
    run(reward.train.train, RewardStageConfig, settings("once"))
    assert scored.count(40) == 1
    assert abs(mean_score("once")) < 1e-3


def test_a_reward_model_that_is_trained_on_has_its_zero_there_too(house):
    """Its scores are shifted already."""
    if not Registry("registry").is_reference("zero"):
        run(reward.train.train, RewardStageConfig, settings("zero"))
    version, scalar, _ = published("zero")
    again = settings("again", model={"name": str(version.path)}, reward={"demonstrations": "sft.jsonl"})
    run(reward.train.train, RewardStageConfig, again)
    assert abs(mean_score("again")) < 1e-3
    before = scalar.model.config.score_bias
    assert published("again")[1].model.config.score_bias != pytest.approx(before, abs=1e-4)


def test_plain_transformers_loads_the_published_folder_without_a_complaint(house, caplog):
    if not Registry("registry").is_reference("zero"):
        run(reward.train.train, RewardStageConfig, settings("zero"))
    version, scalar, tokenizer = published("zero")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(version.path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask = pad_rows([[5, 6, 7, 2], [9, 2]], tokenizer.pad_token_id, "right")
    with torch.no_grad():
        plain = theirs.eval()(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
        torch.testing.assert_close(scalar.score(ids, mask), plain - theirs.config.score_bias, atol=1e-5, rtol=1e-5)


def test_demonstrations_that_are_gone_or_changed_are_not_taken_and_that_is_said(house, capfd):
    kept = Path("sft.jsonl").read_text()
    try:
        Path("sft.jsonl").write_text(kept.replace("Yes", "Oh"))
        run(reward.train.train, RewardStageConfig, settings("changed"))
        Path("sft.jsonl").unlink()
        run(reward.train.train, RewardStageConfig, settings("gone"))
    finally:
        Path("sft.jsonl").write_text(kept)
    said = capfd.readouterr().err
    for name, why in (("changed", "the file has changed since sft@v1 was trained on it"), ("gone", "no such file")):
        metrics = published(name)[0].manifest.metrics
        assert metrics["zero_over"] == "training completions"
        assert why in metrics["zero_from"]
        assert why in events(name)["data"]["zero_from"]
        assert "scores will average 0 over the training completions: " in said
        assert why in said


def test_a_file_that_the_config_names_must_be_there(house):
    with pytest.raises(Exception, match=r"nothing\.jsonl: no such file"):
        run(reward.train.train, RewardStageConfig, settings("named", reward={"demonstrations": "nothing.jsonl"}))


# --- the gate --------------------------------------------------------------------------------------------------------


def damage(change):
    """Save as ever, then change the file."""

    def save(self, output_dir=None, _internal_call=False):
        ORIGINAL(self, output_dir, _internal_call)
        (file,) = Path(output_dir).glob("*.safetensors")
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})

    return save


ORIGINAL = QuestionTrainer.save_model


def lose_head(weights):
    del weights[next(name for name in weights if name.endswith("score.weight"))]


def double_head(weights):
    name = next(name for name in weights if name.endswith("score.weight"))
    weights[name] = 1.5 * weights[name]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("change", [lose_head, double_head])
def test_a_model_whose_files_are_not_it_is_not_published(house, monkeypatch, change, method):
    monkeypatch.setattr(QuestionTrainer, "save_model", damage(change))
    name = f"{change.__name__.replace('_', '-')}-{method}"
    config = settings(name, model={"name": "sft", "method": method}, training={"learning_rate": 1e-2})
    lost_adapter = method == "lora" and change is lose_head  # PEFT's own loading finds that
    says = "cannot be put on its base" if lost_adapter else "differently from the model in memory"
    with pytest.raises(Exception, match=says) as caught:
        run(reward.train.train, RewardStageConfig, config)
    assert isinstance(caught.value, GateError) or lost_adapter
    assert "\n" not in str(caught.value)
    assert not Registry("registry").is_reference(name)


@pytest.mark.parametrize("expected", [[1.0, math.nan], [math.nan, 1.0], [1.0, math.inf], [1.0, 1.1]])
@pytest.mark.parametrize("found", [[1.0, math.nan], [1.0, 1.0], [math.nan, 1.0], [1.0, math.inf]])
def test_scores_that_are_no_numbers_do_not_pass_the_gate(expected, found):
    says = "differently from the model in memory" if all(map(math.isfinite, expected)) else "scores are not finite"
    with pytest.raises(GateError, match=says):
        check_gate(expected, found, 1e-3, "what was saved")
    check_gate([1.0, 2.0], [1.0, 2.0005], 1e-3, "what was saved")


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_an_adapters_head_is_published_as_it_was_trained(house, monkeypatch, method):
    """What is loaded from the registry scores as the model in memory did."""
    seen = {}

    def save(self, output_dir=None, _internal_call=False):
        ORIGINAL(self, output_dir, _internal_call)
        seen["probe"] = self.probe

    monkeypatch.setattr(QuestionTrainer, "save_model", save)
    config = settings(f"head-{method}", model={"name": "sft", "method": method}, training={"learning_rate": 1e-2})
    run(reward.train.train, RewardStageConfig, config)
    version, scalar, tokenizer = published(f"head-{method}")
    ids, mask = pad_rows([ids for q in seen["probe"].questions for ids in q.sequences], tokenizer.pad_token_id, "right")
    with torch.no_grad():
        found = scalar.score(ids, mask) + version.manifest.metrics["score_bias"]
    torch.testing.assert_close(found, torch.tensor(seen["probe"].scores), atol=1e-4, rtol=1e-4)
    start = load_scalar_model(find_model("sft", Registry("registry"), role="policy"), seed=42)
    assert not torch.allclose(start.model.score.weight, scalar.model.score.weight, atol=1e-3)


def test_the_best_models_own_scores_stand_at_the_gate(house):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1e-1}
    run(reward.train.train, RewardStageConfig, settings("best", training=best))
    assert abs(mean_score("best")) < 1e-3


# --- settings --------------------------------------------------------------------------------------------------------


def losses(name):
    rows = map(json.loads, Path("runs", name, "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def test_each_key_of_the_reward_section_does_something(house):
    """Against the same run without it."""
    votes = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"], "Perhaps."], "ranks": [1, 2, 2]}
        for row in map(json.loads, Path("pairs.jsonl").read_text().splitlines())
    ]
    write("ranks.jsonl", votes)
    data = {"train": "ranks.jsonl"}
    run(reward.train.train, RewardStageConfig, settings("plain", data=data))
    run(reward.train.train, RewardStageConfig, settings("smooth", data=data, reward={"label_smoothing": 0.2}))
    in_order = {"train_sampling_strategy": "random"}  # which is that of shared prefixes
    apart = settings("apart", data=data, training={"packing": False, **in_order})
    run(reward.train.train, RewardStageConfig, apart)
    assert losses("smooth") != pytest.approx(losses("plain"), abs=1e-3)
    assert losses("apart") == pytest.approx(losses("plain"), abs=1e-5)
    assert events("plain")["batches"]["layout"] == "packed"
    assert (events("apart")["batches"]["layout"], events("apart")["batches"]["reason"]) == (
        "padded",
        "training.packing=false",
    )


def database(path, strengths):
    """Every pair judged by four labelers, of whom one is contrary; how strongly is up to `strengths`."""
    with RatingsStore(path, create=True, seed=0) as store:
        good = {}
        for row in map(json.loads, Path("pairs.jsonl").read_text().splitlines()):
            prompt = [{"role": "user", "content": row["prompt"]}]
            good[store.add_item(prompt, [{"text": row["chosen"]}, {"text": row["rejected"]}], need=4)] = row["chosen"]
        for labeler in ("ann", "bob", "cyd", "dan"):
            while (shown := store.claim(labeler)) is not None:
                left = (shown.completions[0] == good[shown.item]) == (labeler != "dan")
                store.submit(shown, "left" if left else "right", 1.0, strength=strengths.get(labeler, 1))
    return {"train": path}


def test_strength_and_reliability_of_votes_reach_the_loss(house):
    """Both make the right answers win by more; and neither touches what is held out."""
    data = database("votes.db", {"ann": 3, "bob": 3, "cyd": 3})
    training = {"max_steps": 30, "learning_rate": 1e-2}
    means = {}
    runs = {"votes": {}, "votes-margin": {"margin": 3.0}, "votes-trusted": {"use_reliability": True}}
    for name, section in runs.items():
        run(reward.train.train, RewardStageConfig, settings(name, data=data, reward=section, training=training))
        pairs = list(map(json.loads, Path("runs", name, "eval_pairs.jsonl").read_text().splitlines()))
        leads = [(row["first_score"] - row["second_score"]) * (1 if row["votes"]["first"] > 2 else -1) for row in pairs]
        assert all(sum(row["votes"].values()) == 4 for row in pairs)
        means[name] = sum(leads) / len(leads)
    # Three to one: log 3 without, that and the margin with it; all but certain where dan counts nothing.
    assert means["votes"] == pytest.approx(1.1, abs=0.3)
    assert means["votes-margin"] == pytest.approx(1.1 + 3 * (3 * 3 - 1) / 12, abs=0.5)
    assert means["votes-trusted"] > means["votes"] + 0.7
    weights = events("votes-trusted")["reliability"]["weights"]
    assert weights[0] < 0.2 < 1 < weights[1]


@pytest.mark.parametrize(
    ("training", "reason", "order"),
    [
        ({"pad_to_multiple_of": 8}, "training.pad_to_multiple_of needs padded rows", "group_by_length"),
        ({"neftune_noise_alpha": 5.0}, "training.neftune_noise_alpha needs padded rows", "group_by_length"),
        ({"pad_to_multiple_of": 8, "train_sampling_strategy": "random"}, "needs padded rows", "random"),
    ],
)
def test_rows_that_must_be_padded_are_grouped_by_length(house, tmp_path, capsys, training, reason, order):
    config = validate(RewardStageConfig, settings("multiple", training=training), "test")
    prepared = prepare(config)
    with Journal(tmp_path) as journal:
        layout, found = reward.building.layout_for(config, prepared, reward.building.initial_model(config, prepared))
        reward.building.note_layout(config, prepared, found, journal)
    assert layout == "padded"
    assert reason in found
    assert reason in capsys.readouterr().err
    assert prepared.arguments.train_sampling_strategy == order
    (noted,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (noted["layout"], noted["reason"]) == (layout, found)


def test_ratings_as_numbers_can_be_brought_back(house):
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "rating": rating}
        for number, row in enumerate(map(json.loads, Path("pairs.jsonl").read_text().splitlines()))
        for side, rating in (("chosen", 5 + number % 3), ("rejected", 1 + number % 2))
    ]
    write("numbers.jsonl", rows)
    training = {"max_steps": 60, "learning_rate": 1e-2}
    config = settings("numbers", data={"train": "numbers.jsonl"}, reward={"objective": "regression"}, training=training)
    run(reward.train.train, RewardStageConfig, config)
    version, scalar, tokenizer = published("numbers")
    metrics = version.manifest.metrics
    said = {"chosen": [], "rejected": []}
    for row in map(json.loads, Path("pairs.jsonl").read_text().splitlines()):
        for side, found in said.items():
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            ids = torch.tensor([encode_conversation(tokenizer, turns).input_ids])
            with torch.no_grad():
                score = scalar.score(ids, torch.ones_like(ids).bool()).item()
            found.append(metrics["rating_mean"] + metrics["rating_std"] * (score + metrics["score_bias"]))
    means = {side: sum(found) / len(found) for side, found in said.items()}
    assert means["chosen"] == pytest.approx(6, abs=0.4)
    assert means["rejected"] == pytest.approx(1.5, abs=0.4)


def test_centering_is_refused_where_it_does_nothing(house):
    config = settings("refused", reward={"objective": "regression"}, training={"center_rewards_coefficient": 0.1})
    with pytest.raises(Exception, match=r"center_rewards_coefficient is only for reward\.objective=pairs"):
        run(reward.train.train, RewardStageConfig, config)


def test_smoothing_under_the_name_that_does_nothing_is_refused(house):
    config = settings("refused-too", training={"label_smoothing_factor": 0.1})
    with pytest.raises(ConfigError, match=r"set reward\.label_smoothing"):
        run(reward.train.train, RewardStageConfig, config)


@pytest.mark.parametrize("key", ["margin", "label_smoothing"])
def test_keys_of_the_other_objective_are_refused(key):
    with pytest.raises(Exception, match=f"{key} is only for objective=pairs, found objective=regression"):
        validate(RewardStageConfig, settings("x", reward={"objective": "regression", key: 0.1}), "test")


# --- the preflight ---------------------------------------------------------------------------------------------------


def preflight(name, *arguments, **sections):
    Path(f"{name}.yaml").write_text(json.dumps(settings(name, **sections)))
    import sys

    return launching.run([sys.executable, "-m", "reward", f"{name}.yaml", "--overfit", *arguments], Path.cwd())


def test_the_preflight_learns_by_heart_and_leaves_nothing(house):
    before = sorted(path for path in house.rglob("*"))
    done = preflight(
        "heart", "32", training={"max_steps": 4, "learning_rate": 3e-3, "members": 3}, data={"eval_share": 0}
    )
    assert done.code == 0, done.output
    assert "preflight: 32 pairs overfitted in " in done.output
    assert sorted(path for path in house.rglob("*") if path.name != "heart.yaml") == before


def test_the_preflight_says_what_is_usually_wrong(house):
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    mixed = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if n % 2 else row for n, row in enumerate(rows)
    ]
    write("mixed.jsonl", mixed)  # which no start has all right
    data = {"train": "mixed.jsonl", "eval_share": 0}
    done = preflight("frozen", "32", training={"learning_rate": 1e-9}, data=data)
    assert done.code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert "of 32 pairs are ordered correctly after 400 steps" in line
    assert "training.learning_rate (1e-09) is too low or far too high" in line
    assert not Path("runs/frozen").exists()
    assert not Registry("registry").is_reference("frozen")


def test_the_preflight_needs_a_pair_that_is_no_tie(house):
    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}]
    write("tied.jsonl", [*rows, {"prompt": "q", "chosen": "long " * 60, "rejected": "b"}])
    config = settings("tied", data={"train": "tied.jsonl", "eval_share": 0, "max_bad_share": 0.9})
    with pytest.raises(PreflightError, match="each usable pair is a tie"):
        reward.studies.overfit.overfit(validate(RewardStageConfig, config, "test"), 8)


def test_batches_that_never_fill_are_a_mistake_in_the_config(house):
    training = {"dataloader_drop_last": True, "per_device_train_batch_size": 64}
    with pytest.raises(ConfigError, match=r"training\.dataloader_drop_last leaves no full batch"):
        run(reward.train.train, RewardStageConfig, settings("never", training=training))


def test_pairs_that_contradict_an_earlier_one_are_passed_over():
    def pair(first, second, target):
        return JudgedPair(first, second, target, 1.0, 0.0, None)

    one = Question([1], [[2], [3], [4]], (pair(0, 1, 1.0), pair(1, 0, 0.9), pair(0, 2, 0.5), pair(1, 2, 0.3)))
    chosen = first_pairs([one, one], 3)
    assert (chosen.pairs, chosen.contradictions) == (3, 1)
    assert [question.pairs for question in chosen.questions] == [(one.pairs[0], one.pairs[3]), (one.pairs[0],)]
