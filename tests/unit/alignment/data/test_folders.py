"""Folders with parts of a data set: a test part is never learned with the rest, and a README is no data."""

import json
import zipfile

import pytest

from alignment.config.loading import validate
from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records, train_and_eval
from alignment.data.row_files import DataError
from alignment.data.splitting import plan_split


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        row = {"prompt": f"Question in {name}?", "completion": "An answer."}
        (folder / name).write_text(json.dumps(row) + "\n")
    return folder


def questions(records):
    return [record.messages[0]["content"] for record in records.items]


@pytest.mark.parametrize(
    "held_out",
    ["test.jsonl", "validation.jsonl", "dev.jsonl", "data_test.jsonl", "test-00000-of-00001.jsonl", "val_1.jsonl"],
)
def test_a_test_part_is_not_learned_with_the_training_part(tmp_path, held_out):
    fill(tmp_path, "train.jsonl", held_out)
    for read in (
        lambda: read_records(tmp_path, to_examples, DataConfig(train="x")),
        lambda: plan_split(tmp_path, 0.5, 0),
    ):
        with pytest.raises(
            DataError, match=f"'{held_out}' is a test or validation part .* 'train.jsonl'; name the parts"
        ):
            read()


def test_an_archive_with_a_test_part_is_refused(tmp_path):
    for name in ("train/rows.jsonl", "test/rows.jsonl"):
        fill((tmp_path / name).parent, "rows.jsonl")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("train/rows.jsonl", "test/rows.jsonl"):
            archive.write(tmp_path / name, name)
    with pytest.raises(DataError, match=r"'test/rows.jsonl' is a test .*; unpack the archive and name the parts"):
        read_records(tmp_path / "set.zip", to_examples, DataConfig(train="x"))


def test_the_fix_of_a_folder_with_parts_is_accepted(tmp_path):
    fill(tmp_path, "train-1.jsonl", "train-2.jsonl", "test.jsonl")
    with pytest.raises(DataError) as refused:
        read_records(tmp_path, to_examples, DataConfig(train="x"))
    settings = str(refused.value).split("name the parts: ")[1]
    train, _, held_out = settings.partition(" data.eval=")
    values = {"train": train.removeprefix("data.train=").strip("'"), "eval": held_out}
    assert values["train"] == f"[{{path: {tmp_path}/train-1.jsonl}}, {{path: {tmp_path}/train-2.jsonl}}]"
    parts = [{"path": str(tmp_path / f"train-{number}.jsonl")} for number in (1, 2)]
    train_rows, eval_rows = train_and_eval(validate(DataConfig, {**values, "train": parts}, "x"), to_examples)
    assert questions(train_rows) == ["Question in train-1.jsonl?", "Question in train-2.jsonl?"]
    assert questions(eval_rows) == ["Question in test.jsonl?"]


@pytest.mark.parametrize(
    "names", [("a.jsonl", "latest.jsonl"), ("test.jsonl", "validation.jsonl"), ("contest.jsonl", "b.jsonl")]
)
def test_other_folders_are_read_whole(tmp_path, names):
    fill(tmp_path, *names)
    assert len(read_records(tmp_path, to_examples, DataConfig(train="x")).items) == 2


def test_what_tells_of_the_data_is_no_data(tmp_path):
    fill(tmp_path, "rows.jsonl")
    for name in ("dataset_infos.json", "dataset_info.json", "state.json"):
        (tmp_path / name).write_text(json.dumps({"default": {"features": {}}}))
    (tmp_path / "README.md").write_text("# About\n\nThese rows.\n")
    records = read_records(tmp_path, to_examples, DataConfig(train="x"))
    assert (questions(records), records.bad) == (["Question in rows.jsonl?"], [])


def test_a_readme_above_the_data_is_not_learned(tmp_path):
    fill(tmp_path / "data", "rows.jsonl")
    (tmp_path / "README.md").write_text("# About\n\nThese rows.\n")
    with pytest.raises(DataError, match=f"no data file in this folder but in {tmp_path}/data; name one"):
        read_records(tmp_path, to_examples, DataConfig(train="x"))
    (tmp_path / "guide.md").write_text("# Guide\n\nA text to learn.\n")
    assert len(read_records(tmp_path, to_examples, DataConfig(train="x")).items) == 2
