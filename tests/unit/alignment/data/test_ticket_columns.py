"""Who wrote the messages of tickets, and in which order, where columns have other names."""

import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.row_files import DataError

TURNS = [
    ("user", "Where is the saw?"),
    ("assistant", "Left of the door."),
    ("user", "And nails?"),
    ("assistant", "No."),
]


def read(path, rows, **options):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_records(path, to_examples, DataConfig(train="unused", **options))


def said(records):
    return [[(turn["role"], turn["content"]) for turn in record.messages] for record in records.items]


def messages(**columns):
    """A ticket of four messages; each column has a value for each."""
    rows = [{"ticket_id": 1, "role": role, "text": text} for role, text in TURNS]
    for index, row in enumerate(rows):
        row.update({name: values[index] for name, values in columns.items()})
    return rows


def out_of_order(rows):
    return [rows[index] for index in (3, 0, 2, 1)]


DATES = [f"2024-05-01 10:0{minute}" for minute in range(4)]
NUMBERS = [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["Date", "Created", "datetime", "sent", "time", "createdAt", "created_datetime"])
def test_messages_are_sorted_by_a_column_of_times(tmp_path, name):
    assert said(read(tmp_path / "t.jsonl", out_of_order(messages(**{name: DATES})))) == [TURNS]


@pytest.mark.parametrize("name", ["turn", "message_index", "index", "seq", "Message Number"])
def test_messages_are_sorted_by_their_numbers_where_no_column_has_times(tmp_path, name):
    assert said(read(tmp_path / "t.jsonl", out_of_order(messages(**{name: NUMBERS})))) == [TURNS]
    rows = messages(**{name: NUMBERS[::-1], "ts": DATES})
    assert said(read(tmp_path / "t.jsonl", out_of_order(rows))) == [TURNS]


@pytest.mark.parametrize("values", [DATES, NUMBERS, [1714550400, 1714550410, 1714550420, 1714550430]])
def test_an_order_in_a_column_of_unknown_name_is_refused_until_it_is_named(tmp_path, values):
    rows = out_of_order(messages(zeit=values))
    with pytest.raises(DataError, match=r"t.jsonl:1: 'zeit' looks like .* --column ts=zeit .* --column zeit= leaves"):
        read(tmp_path / "t.jsonl", rows)
    assert said(read(tmp_path / "t.jsonl", rows, columns={"ts": "zeit"})) == [TURNS]
    left_out = read(tmp_path / "t.jsonl", rows, columns={"zeit": None})
    assert [role for role, _ in said(left_out)[0]] == ["user", "assistant"]


@pytest.mark.parametrize(
    "columns", [{"zeit": DATES}, {"author_id": [2, 1, 2, 1]}, {"stars": [5, 3, 1, 1]}, {"due": ["2024-05-01"] * 4}]
)
def test_columns_that_do_not_contradict_the_order_of_the_file_are_no_reason_to_refuse(tmp_path, columns):
    assert said(read(tmp_path / "t.jsonl", messages(**columns))) == [TURNS]


def flagged(name, is_true_of):
    return [{"ticket_id": 1, name: str(role == is_true_of), "text": text} for role, text in TURNS]


@pytest.mark.parametrize(
    ("name", "is_true_of"),
    [
        ("incoming", "user"), ("from_customer", "user"), ("is_customer", "user"),
        ("from_agent", "assistant"), ("is_agent", "assistant"), ("outgoing", "assistant"), ("Is Bot", "assistant"),
    ],
)  # fmt: skip
def test_a_yes_or_no_is_read_by_the_name_of_its_column(tmp_path, name, is_true_of):
    rows = flagged(name, is_true_of)
    assert said(read(tmp_path / "t.jsonl", rows)) == [TURNS]
    assert said(read(tmp_path / "t.jsonl", rows, columns={"role": name})) == [TURNS]
    assert said(read(tmp_path / "t.jsonl", rows, columns={"incoming": name})) == [TURNS]


def test_a_yes_or_no_in_a_column_that_does_not_say_who_wrote_is_refused_until_it_does(tmp_path):
    rows = flagged("flag", "assistant")
    with pytest.raises(DataError, match=r"'flag' is 'False', .* --column incoming=flag .* --column from_agent=flag"):
        read(tmp_path / "t.jsonl", rows, columns={"role": "flag"})
    assert said(read(tmp_path / "t.jsonl", rows, columns={"from_agent": "flag"})) == [TURNS]


def test_directions_of_hubspot_are_roles_and_its_comments_are_internal(tmp_path):
    rows = [
        {"conversationsThreadId": "1", "direction": way, "type": kind, "text": text, "createdAt": at}
        for way, kind, text, at in [
            ("OUTGOING", "MESSAGE", TURNS[1][1], DATES[2]),
            ("INCOMING", "MESSAGE", TURNS[0][1], DATES[0]),
            ("OUTGOING", "COMMENT", "An angry one.", DATES[1]),
        ]
    ]
    records = read(tmp_path / "t.jsonl", rows)
    assert said(records) == [TURNS[:2]]
    assert any("1 internal notes are left out" in note for note in records.notes)


@pytest.mark.parametrize("key", ["speaker", "sender", "direction", "author", "role", "ticket_id"])
def test_a_message_is_never_a_document(tmp_path, key):
    rows = [{key: "user", "text": "Where is the saw?"}]
    with pytest.raises(DataError, match=f"'{key}' beside 'text' .* conversation_id, role and text .* --column {key}="):
        read(tmp_path / "t.jsonl", rows)
    (document,) = read(tmp_path / "t.jsonl", rows, columns={key: None}).items
    assert document.text == "Where is the saw?"


def test_speakers_of_dialogues_are_tickets(tmp_path):
    rows = [{"dialogue_id": 0, "speaker": role.upper(), "text": text} for role, text in TURNS]
    assert said(read(tmp_path / "t.jsonl", rows)) == [TURNS]


def test_where_agents_are_named_other_roles_are_the_customers_and_said(tmp_path):
    names = {"user": "Kunde", "assistant": "Mitarbeiter"}
    rows = [{"ticket_id": 1, "role": names[role], "text": text} for role, text in TURNS]
    with pytest.raises(DataError, match=r"role 'Kunde'; .*--agent NAME"):
        read(tmp_path / "t.jsonl", rows)
    records = read(tmp_path / "t.jsonl", rows, agents=["Mitarbeiter"])
    assert said(records) == [TURNS]
    assert any(note.endswith("because agents are named: Kunde (2)") for note in records.notes)


@pytest.mark.parametrize(
    ("speakers", "advice"),
    [
        (("customer", "SYSTEM"), "; SYSTEM speaks after the customer: --agent SYSTEM (data.agents) if it answers"),
        (("SYSTEM", "customer"), ""),
        (("SYSTEM",), ""),
    ],
)
def test_a_speaker_called_system_is_the_assistant_only_if_it_may_answer(tmp_path, speakers, advice):
    path = tmp_path / "t.csv"
    lines = [f"1,{speaker},text {n}" for n, speaker in enumerate(speakers)]
    path.write_text("\n".join(["conversation_id,role,text", *lines, "2,customer,When?", "2,agent,At nine."]) + "\n")
    records = read_records(path, to_examples, DataConfig(train="x"))
    assert len(records.items) == 1
    assert records.notes == [f"1 skipped: a conversation in which the assistant answered no question{advice}"]
    if advice:
        found = read_records(path, to_examples, DataConfig(train="x", agents=("SYSTEM",))).items
        assert [turn["role"] for turn in found[0].messages] == ["user", "assistant"]
