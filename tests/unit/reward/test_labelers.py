"""`reward.labelers`: two reward models from one source, each on the ratings of its own labelers."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.reading import DataError
from alignment.data.records import Vote
from alignment.ratings import RatingsStore
from alignment.ratings.quality import label_events
from reward.__main__ import main
from reward.config import RewardSection
from reward.data import read_judgements
from reward.labelers import resolved

SAID = {"ann": "first", "bob": "first", "cyd": "second", "dan": "tie"}


@pytest.fixture
def database(tmp_path):
    """Six pairs: ann and bob rated all of them, cyd the first four, the program dan the last two."""
    path = tmp_path / "ratings.db"
    with RatingsStore(path, create=True, seed=0) as store:
        for number in range(6):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            texts = [{"text": f"a {number}", "model": f"m{number // 4}@v1"}, {"text": f"b {number}"}]
            item = store.add_item(prompt, texts, need=3)
            for name in ("ann", "bob", "cyd" if number < 4 else "dan"):
                store.import_rating(item, name, SAID[name])
        store.people.mark_simulated("dan")
    return path


def read(path, *labelers, **data):
    return read_judgements(DataConfig(train=str(path), **{"eval_share": 0.0} | data), RewardSection(labelers=labelers))


def votes(records):
    return [[vote.choice for vote in row.votes] for row in records.items]


def hashes(path, *names):
    with RatingsStore(path) as store:
        return {store.people.labeler_hash(name) for name in names}


def test_each_model_learns_from_its_own_labelers_and_both_from_all_votes_together(database):
    mine, _ = read(database, "ann", "bob")
    theirs, _ = read(database, "cyd", "dan")
    assert votes(mine) == [["first", "first"]] * 6
    assert votes(theirs) == [["second"]] * 4 + [["tie"]] * 2
    everybody, _ = read(database)
    both = [sorted(a + b) for a, b in zip(votes(mine), votes(theirs), strict=True)]
    assert both == [sorted(said) for said in votes(everybody)]


def test_pairs_that_none_of_them_rated_are_left_out(database):
    records, _ = read(database, "cyd")
    assert [row.first for row in records.items] == ["a 0", "a 1", "a 2", "a 3"]


def test_the_fingerprint_is_of_what_was_learned_from(database):
    whole = read(database)[0].fingerprints[0]
    (mark,) = read(database, "cyd")[0].fingerprints
    assert (mark["ratings"], mark["items"], mark["labelers"], mark["rows"]) == (4, 4, 1, 4)
    assert mark["labeler_hashes"] == dict.fromkeys(hashes(database, "cyd"), 4)
    assert mark["rating_ids"] == "3,6,9,12"
    assert mark["answered_by"] == {"m0@v1": 4} and whole["answered_by"] == {"m0@v1": 4, "m1@v1": 2}
    assert mark["sha256"] != whole["sha256"] and mark["database"] == whole["database"]
    assert not mark["simulated"]
    assert read(database, "ann", "dan")[0].fingerprints[0]["simulated"]


def test_names_become_hashes_which_may_be_given_again(database):
    config = DataConfig(train=str(database))
    once = resolved(("cyd", "ann"), config)
    assert set(once) == hashes(database, "cyd", "ann") and resolved(once, config) == once
    assert votes(read(database, *once)[0]) == votes(read(database, "cyd", "ann")[0])
    assert resolved((), config) == ()


def test_an_unknown_labeler_is_an_error_with_those_that_there_are(database):
    with pytest.raises(
        DataError, match=r"labelers: no rating in .*ratings\.db is by 'eve'; there .* ann, bob, cyd, dan"
    ):
        read(database, "ann", "eve")


def test_a_labeler_who_only_skipped_is_unknown(tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        item = store.add_item([{"role": "user", "content": "Hi"}], [{"text": "a"}, {"text": "b"}])
        store.import_rating(item, "ann", "first")
        store.import_rating(item, "bob", "skip")
    with pytest.raises(DataError, match=r"is by 'bob'; there are ratings by ann$"):
        read(tmp_path / "r.db", "bob")


def test_a_database_without_ratings_says_what_to_do(tmp_path):
    RatingsStore(tmp_path / "r.db", create=True).close()
    with pytest.raises(DataError, match="nothing is rated yet; rate some with"):
        read(tmp_path / "r.db", "ann")


def test_rows_that_say_who_rated_are_chosen_by_name(tmp_path):
    path = tmp_path / "rated.jsonl"
    rows = [
        {"prompt": f"p{n}", "completion": text, "rating": rating, "labeler": labeler}
        for n in range(3)
        for labeler, text, rating in (("ann", "x", 5), ("ann", "y", 1), ("bob", "x", 1), ("bob", "y", 4))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, _ = read(path, "bob")
    assert [(row.completion, row.rating, row.labeler) for row in records.items] == [
        ("x", 1, "bob"),
        ("y", 4, "bob"),
    ] * 3
    assert records.notes == ["6 skipped: rated by none of reward.labelers"] and not records.bad
    (mark,) = records.fingerprints
    assert (mark["labelers"], mark["of_labelers"], mark["rows"]) == (1, ["bob"], 6)
    with pytest.raises(DataError, match=r"is by 'eve'; there are ratings by ann, bob"):
        read(path, "eve")


def test_a_source_by_others_is_named(database, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl: none of reward\.labelers .* by unnamed people"):
        read(database, "ann", eval=str(pairs))


def test_held_out_prompts_are_those_of_the_model_on_all_ratings(database):
    share = {"eval_share": 0.5, "split_seed": 1}
    all_held_out = {row.first for row in read(database, **share)[1].items}
    train, held_out = read(database, "ann", "bob", **share)
    assert {row.first for row in held_out.items} == all_held_out and 0 < len(all_held_out) < 6
    assert train.fingerprints[0]["rows"] == len(train.items)


def test_the_quality_of_labels_is_that_of_the_chosen_ones(database):
    config, chosen = DataConfig(train=str(database)), hashes(database, "ann", "bob")
    (found,) = label_events(config, [], chosen)
    assert found["labelers"].keys() == chosen
    (found,) = label_events(config, [])
    assert found["labelers"].keys() == hashes(database, *SAID)


def test_what_is_written_of_a_run_has_hashes_in_place_of_names(database, tmp_path, monkeypatch, capsys):
    config = tmp_path / "reward.yaml"
    values = {"name": "r", "model": {"name": "m"}, "data": {"train": str(database)}, "registry": {"name": "r"}}
    config.write_text(json.dumps(values))
    monkeypatch.setattr("sys.argv", ["reward", str(config), "reward.labelers=[cyd]", "--dry-run"])
    monkeypatch.setattr("reward.plan.plan", lambda config, world_size: {})
    assert main() == 0
    planned = json.loads(capsys.readouterr().out)
    assert set(planned["config"]["reward"]["labelers"]) == hashes(database, "cyd")
    monkeypatch.setattr("sys.argv", ["reward", str(config), "reward.labelers=[eve]", "--dry-run"])
    assert main() == 2
    assert "is by 'eve'; there are ratings by ann, bob, cyd, dan" in capsys.readouterr().err


def test_labelers_of_rows_that_judge_attributes_alone(tmp_path):
    row = {"prompt": "Hi", "answer_a": "Hello", "answer_b": "Go away"}
    votes = [{**row, "rater": name, "attributes": {"kind": vote}} for name, vote in (("ann", 2), ("bob", -1))]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    settings = RewardSection(labelers=("bob",), attributes=("kind",))
    train, _ = read_judgements(DataConfig(train=str(path), eval_share=0.0), settings)
    assert [(each.attribute, each.votes) for each in train.items] == [("kind", (Vote("second", 1, "bob"),))]
