"""What people already have: documents, question lists, tickets, Slack exports, saved and published data sets."""

import json
import zipfile

import datasets
import pytest

from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.records import Demonstration, Document
from alignment.data.row_files import DataError, read_rows


def read(path, **options):
    return read_records(path, to_examples, DataConfig(train="unused", **options))


def said(record):
    return [(message["role"], message["content"]) for message in record.messages]


# --- documents and question lists ------------------------------------------------------------------------------------


def test_a_folder_of_documents_is_its_texts(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.md").write_text("# Title\n\nText.", encoding="utf-8-sig")
    (tmp_path / "deep" / "a.TXT").write_text("é")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    records = read(tmp_path)
    assert records.items == [Document("# Title\n\nText."), Document("é")]
    assert records.items[1].place.endswith("a.TXT")
    assert records.fingerprints[0]["rows"] == 2
    (tmp_path / "b.md").write_text("# Other")
    assert read(tmp_path).fingerprints[0]["sha256"] != records.fingerprints[0]["sha256"]
    assert read(tmp_path / "b.md").items == [Document("# Other")]
    (tmp_path / "b.md").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.md:1: not UTF-8 \(byte 0xff\)"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"none\.md: no such file; give data\.train"):
        read(tmp_path / "none.md")


def test_a_folder_with_data_files_is_not_its_readme(tmp_path):
    (tmp_path / "README.md").write_text("about the data")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert [type(record) for record in read(tmp_path).items] == [Demonstration]


FAQ = """# Questions

## When are you open? ##
From nine.

```sh
# no heading
```
## Where?

## Who are you?
The library.
"""


def test_a_markdown_list_of_questions_is_its_headings_with_text_below(tmp_path):
    (tmp_path / "faq.md").write_text(FAQ)
    records = read(tmp_path / "faq.md", format="faq")
    assert [said(record) for record in records.items] == [
        [("user", "When are you open?"), ("assistant", "From nine.\n\n```sh\n# no heading\n```")],
        [("user", "Who are you?"), ("assistant", "The library.")],
    ]
    assert [record.place.rpartition(":")[2] for record in records.items] == ["3", "11"]
    (tmp_path / "faq.csv").write_text('question,answer\nWhen?,"From nine, daily."\n')
    assert said(read(tmp_path / "faq.csv").items[0]) == [("user", "When?"), ("assistant", "From nine, daily.")]


# --- tickets ---------------------------------------------------------------------------------------------------------

TICKETS = """conversation_id,role,text,ts
2,customer,Hello?,2026-01-01T10:00
1,customer,My book is lost.,2026-01-01T09:00
1,agent,Please pay.,2026-01-01T09:05
1,customer,Which one?,2026-01-01T09:01
1,Ann,Ten euros.,2026-01-01T09:06
1,customer,Thanks!,2026-01-01T09:07
"""


def test_tickets_become_conversations_in_order_of_time(tmp_path):
    (tmp_path / "t.csv").write_text(TICKETS)
    records = read(tmp_path / "t.csv", agents=["Ann"])
    assert [said(record) for record in records.items] == [
        [("user", "My book is lost.\nWhich one?"), ("assistant", "Please pay.\nTen euros.")]
    ]
    assert records.items[0].place.endswith("t.csv:3")
    assert records.notes == ["1 skipped: a conversation in which the assistant answered no question"]
    with pytest.raises(
        DataError, match=r"t\.csv:3: role 'Ann'; expected user, customer.*--agent NAME \(data\.agents\)"
    ):
        read(tmp_path / "t.csv")


def test_tickets_of_other_columns_and_times(tmp_path):
    rows = [
        {"ticket": 7, "who": "user", "body": "b", "at": 2},
        {"ticket": 7, "who": "user", "body": "a", "at": 1},
        {"ticket": 7, "who": "bot", "body": "c", "at": 10},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"conversation_id": "ticket", "role": "who", "text": "body", "ts": "at"}
    assert said(read(path, columns=columns).items[0]) == [("user", "a\nb"), ("assistant", "c")]
    path.write_text(json.dumps(rows[0] | {"at": "yesterday"}) + "\n")
    with pytest.raises(DataError, match="ts 'yesterday' is neither a number nor a time such as 2026"):
        read(path, columns=columns)


# --- Slack -----------------------------------------------------------------------------------------------------------


def message(user, text, ts, thread=None, **more):
    return {"type": "message", "user": user, "text": text, "ts": str(ts), "thread_ts": str(thread or ts), **more}


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    (folder / "help").mkdir(parents=True)
    users = [
        {"id": "U1", "name": "bob", "profile": {"display_name": "Bob"}},
        {"id": "U2", "name": "ann", "real_name": "Ann Lee", "profile": {}},
    ]
    (folder / "users.json").write_text(json.dumps(users))
    (folder / "channels.json").write_text(json.dumps([{"id": "C1", "name": "help"}]))
    days = {
        "2026-01-01": [
            message("U1", "How do I reach &lt;b&gt; &amp; <@U2>?", 1.0),
            message("U1", "Anyone?", 2.0, thread=1.0),
            message("U2", "See <https://x.org/a|the page>.", 5.0, thread=1.0),
            message("U1", "lonely", 3.0),
            message("U1", "has joined", 4.0, subtype="channel_join"),
        ],
        "2026-01-02": [
            message("U2", "Or <https://y.org>.", 6.0, thread=1.0),
            message("U1", "Thanks <!here>", 7.0, thread=1.0),
            message("U2", "", 8.0, thread=1.0),
        ],
    }
    for day, messages in days.items():
        (folder / "help" / f"{day}.json").write_text(json.dumps(messages))
    return folder


THREAD = [
    ("user", "How do I reach <b> & @Ann Lee?\nAnyone?"),
    ("assistant", "See the page (https://x.org/a).\nOr https://y.org."),
]


@pytest.mark.parametrize("agent", ["Ann Lee", "ann", "U2"])
def test_a_slack_thread_that_an_agent_answered_is_a_conversation(export, agent):
    records = read(export, agents=[agent])
    assert [said(record) for record in records.items] == [THREAD]
    assert records.items[0].place.endswith("help/2026-01-01.json:row 1")
    assert records.notes[0].startswith("1 skipped: a conversation in which the assistant answered no question")


def test_a_slack_export_may_be_its_zip(export):
    path = export.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in export.rglob("*.json"):
            archive.write(file, file.relative_to(export))
    records = read(path, agents=["ann"])
    assert [said(record) for record in records.items] == [THREAD]
    assert records.fingerprints[0]["name"] == "export.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"export\.zip: cannot be read as a zip archive"):
        read(path, agents=["ann"])


def test_a_slack_export_needs_an_agent_who_wrote_something(export):
    with pytest.raises(DataError, match=r"a Slack export; set data\.agents \(--agent\) to the users whose messages"):
        read(export)
    with pytest.raises(DataError, match=r"data\.agents=\['Eve'\] wrote nothing here; these did: Ann Lee, Bob"):
        read(export, agents=["Eve"])


def test_a_day_of_slack_that_is_nested_too_deeply_is_one_line(export):
    (export / "help" / "2026-01-03.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"2026-01-03\.json: not valid JSON"):
        read(export, agents=["ann"])


def test_a_slack_zip_of_macos_has_a_folder_and_copies(export):
    path = export.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in export.rglob("*.json"):
            name = file.relative_to(export).as_posix()
            archive.write(file, f"export/{name}")
            folder, _, last = name.rpartition("/")
            archive.writestr(f"__MACOSX/export/{folder}/._{last}", b"\0\5\26\7\0\2")
    assert [said(record) for record in read(path, agents=["ann"]).items] == [THREAD]


def test_slack_messages_in_blocks_by_bots_and_with_mentions(export):
    rich = {
        "type": "rich_text_section",
        "elements": [
            {"type": "text", "text": "Ask "},
            {"type": "user", "user_id": "U2"},
            {"type": "text", "text": " in "},
            {"type": "channel", "channel_id": "C1"},
            {"type": "link", "url": "https://x.org", "text": "here"},
            {"type": "emoji", "name": "key"},
        ],
    }
    asked = "<!here> <!subteam^S1|@desk> where? <#C1|> <#C2|sheds> <!date^17^{date}|14 Nov> <mailto:a@x.org|a@x.org>"
    messages = [
        message("U1", asked, 1.0, files=[{"name": "a.pdf"}]),
        message("U2", "", 2.0, thread=1.0, blocks=[{"type": "rich_text", "elements": [rich]}]),
        message(None, "", 3.0, thread=1.0, subtype="bot_message", bot_id="B1", attachments=[{"text": "Left."}]),
    ]
    for file in (export / "help").iterdir():
        file.unlink()
    (export / "help" / "2026-01-01.json").write_text(json.dumps(messages))
    records = read(export, agents=["ann", "B1"])
    assert [said(record) for record in records.items] == [
        [
            ("user", "here @desk where? help sheds 14 Nov a@x.org"),
            ("assistant", "Ask @Ann Lee in helphere (https://x.org):key:\nLeft."),
        ]
    ]
    assert records.notes == [f"{export}: files of 1 messages are left out"]


# --- the datasets library --------------------------------------------------------------------------------------------

ROWS = [{"q": f"q{number}", "a": "x"} for number in range(5)]
COLUMNS = {"prompt": "q", "completion": "a"}


def test_a_saved_dataset_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    records = read(tmp_path / "one", columns=COLUMNS)
    assert [said(record)[0] for record in records.items] == [("user", row["q"]) for row in ROWS]
    assert records.items[4].place == f"{tmp_path / 'one'}:row 5"
    assert len(records.fingerprints[0]["sha256"]) == 64
    many = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:2]), test=datasets.Dataset.from_list(ROWS[2:]))
    many.save_to_disk(tmp_path / "many")
    assert len(read(tmp_path / "many", columns=COLUMNS).items) == 2
    assert len(read(tmp_path / "many" / "test", columns=COLUMNS).items) == 3
    datasets.DatasetDict(test=many["test"]).save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match=r"its splits are test; name one of those folders: .*odd/test"):
        read(tmp_path / "odd")
    (tmp_path / "odd" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match="not a data set that can be loaded"):
        read(tmp_path / "odd")


def test_a_hub_name_is_loaded_with_its_config_and_split(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = read("some/data", columns=COLUMNS)
    assert len(records.items) == 5
    assert records.fingerprints[0]["name"] == "some/data"
    read("some/data:main@test", columns=COLUMNS)
    assert asked == [("some/data", None, "train"), ("some/data", "main", "test")]


def test_a_hub_name_that_is_none_is_one_line(tmp_path, monkeypatch):
    def load_dataset(*names, split):
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match="nobody/nothing: no such file or folder, and the hub does not give it"
    ) as caught:
        read("nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read("data/train.jsonl")  # a typing mistake in a path is not looked for on the hub


def test_no_damaged_byte_of_an_archive_is_a_traceback(tmp_path):
    """zipfile raises NotImplementedError, ValueError and others beside its own BadZipFile."""
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d.jsonl", '{"prompt": "Where is the key?", "completion": "On the hook."}\n' * 3)
    good = path.read_bytes()
    refused = 0
    for at in range(len(good)):
        for flip in (1, 0x80):
            path.write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
            try:
                list(read_rows(path))
            except DataError:
                refused += 1
    assert refused > len(good)
