"""Support tickets as Zendesk, Intercom, Freshdesk and spreadsheets have them."""

import csv
import json

import pytest

from alignment.config.sections import DataConfig
from alignment.data.help_desks import TICKET_COLUMNS
from alignment.data.parsing import to_examples
from alignment.data.reading import read_records
from alignment.data.row_files import DataError

CHAT = [("user", "Where is the saw?"), ("assistant", "Left of the door.")]


def read(path, rows, **options):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows))
    return read_records(path, to_examples, DataConfig(train="unused", **options))


def said(records):
    return [[(turn["role"], turn["content"]) for turn in record.messages] for record in records.items]


def notes(records):
    """The notes without the file's name."""
    return [note.partition(": ")[2] for note in records.notes]


def table(ids="conversation_id", role="role", text="text", ts="ts", roles=("customer", "agent"), times=(1, 2), **more):
    """Two messages, the answer first in the file."""
    rows = [{ids: 7, role: who, text: what} for who, (_, what) in zip(roles, CHAT, strict=True)]
    for row, time in zip(rows, times, strict=True):
        row |= {ts: time} | more
    return rows[::-1]


@pytest.mark.parametrize(
    "rows",
    [
        table(),
        table("Ticket ID", "Author Role", "Comment Body", "Created At", ("end-user", "agent")),
        table("ticket_id", "author_type", "body", "created_at", ("contact", "admin")),
        table("ticket_id", "sender_type", "message", "sent_at", ("Visitor", "Operator")),
        table("ticket_id", "incoming", "body_text", "created_at", ("true", "false"), body="<div>HTML</div>"),
        table("case_number", "role", "content", "timestamp", ("lead", "bot")),
    ],
)
def test_the_columns_of_help_desks_are_known(tmp_path, rows):
    assert said(read(tmp_path / "t.csv", rows)) == [CHAT]


def test_columns_that_may_hold_the_same_are_refused_until_one_is_named(tmp_path):
    rows = table(text="body", message="another")
    with pytest.raises(DataError, match=r"'body' and 'message' may both be the text .*\(--column text=body\)"):
        read(tmp_path / "t.csv", rows)
    assert said(read(tmp_path / "t.csv", rows, columns={"text": "body"})) == [CHAT]
    rows = table(ts="created_at", timestamp="2")
    with pytest.raises(DataError, match=r"'created_at' and 'timestamp' may both be the ts"):
        read(tmp_path / "t.csv", rows)
    assert said(read(tmp_path / "t.csv", rows, columns={"ts": "created_at"})) == [CHAT]


def test_each_column_that_is_known_stands_in_one_place():
    names = [name for families in TICKET_COLUMNS.values() for family in families for name in family]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("key", "value", "other"), [("public", "false", "true"), ("private", "1", "0"), ("is_internal", True, False)]
)
def test_internal_notes_are_left_out_and_said(tmp_path, key, value, other):
    rows = [row | {key: other} for row in table()]
    rows.append({"conversation_id": 7, "role": "agent", "text": "He is rude.", "ts": 1, key: value})
    records = read(tmp_path / "t.csv", rows)
    assert said(records) == [CHAT]
    assert notes(records) == ["1 internal notes are left out"]


def test_keys_that_are_not_used_are_said_once(tmp_path):
    records = read(tmp_path / "t.json", [row | {"subject": "Saw", "status": "open"} for row in table()])
    assert notes(records) == ["keys of tickets that are not used: status, subject"]


ZENDESK = {
    "id": 3,
    "subject": "saw",
    "description": CHAT[0][1],
    "requester_id": 9,
    "comments": [
        {"author_id": 1, "body": CHAT[1][1], "public": True, "created_at": "2026-01-05T09:06:00Z"},
        {"author_id": 1, "body": "He is rude.", "public": False, "created_at": "2026-01-05T09:05:00Z"},
        {"author_id": 9, "body": CHAT[0][1], "public": True, "created_at": "2026-01-05T09:00:00Z"},
    ],
}
INTERCOM = {
    "type": "conversation",
    "id": "5",
    "created_at": 1700000000,
    "source": {"type": "conversation", "body": "<p>Where is the saw?</p>", "author": {"type": "user", "id": "u"}},
    "conversation_parts": {
        "type": "conversation_part.list",
        "conversation_parts": [
            {"part_type": "assignment", "body": None, "created_at": 1700000001, "author": {"type": "bot"}},
            {"part_type": "note", "body": "<p>Rude.</p>", "created_at": 1700000002, "author": {"type": "admin"}},
            {
                "part_type": "comment",
                "body": "<p>Left of the door.</p>",
                "created_at": 1700000003,
                "author": {"type": "admin"},
            },
        ],
    },
}
FRESHDESK = {
    "helpdesk_ticket": {
        "display_id": 1,
        "description": CHAT[0][1],
        "notes": [
            {"note": {"body": "He is rude.", "incoming": False, "private": True}},
            {"note": {"body": CHAT[1][1], "incoming": False, "private": False}},
        ],
    }
}
FRESHDESK_API = {
    "id": 1,
    "description_text": CHAT[0][1],
    "description": "<div>Where is the saw?</div>",
    "created_at": "2026-01-05T09:00:00Z",
    "conversations": [
        {
            "body": "<div>x</div>",
            "body_text": CHAT[1][1],
            "incoming": False,
            "private": False,
            "created_at": "2026-01-05T09:06:00Z",
        }
    ],
}


@pytest.mark.parametrize(
    "content",
    [
        {"tickets": [ZENDESK], "count": 1},
        [ZENDESK],
        {"type": "conversation.list", "conversations": [INTERCOM]},
        [INTERCOM],
        [FRESHDESK],
        [FRESHDESK_API],
    ],
)
def test_nested_exports_are_conversations(tmp_path, content):
    assert said(read(tmp_path / "t.json", content)) == [CHAT]


def test_files_and_keys_of_nested_tickets_that_are_not_used_are_said(tmp_path):
    picture = {"author_id": 9, "body": "", "attachments": [{"file_name": "saw.png"}]}
    ticket = ZENDESK | {"comments": [*ZENDESK["comments"], picture], "status": "open", "tags": []}
    records = read(tmp_path / "t.json", [ticket])
    assert said(records) == [CHAT]
    assert notes(records) == [
        "1 internal notes are left out",
        "files of 1 messages are left out",
        "keys of tickets that are not used: status, subject",
    ]


def test_agents_of_a_zendesk_ticket_may_be_named(tmp_path):
    third = {"author_id": 4, "body": "Me too!", "public": True, "created_at": "2026-01-05T09:01:00Z"}
    ticket = ZENDESK | {"comments": [*ZENDESK["comments"], third]}
    assert said(read(tmp_path / "t.json", [ticket], agents=["1"])) == [
        [("user", "Where is the saw?\nMe too!"), ("assistant", "Left of the door.")]
    ]
    without = {key: value for key, value in ZENDESK.items() if key != "requester_id"}
    with pytest.raises(DataError, match=r"without requester_id; name the agents' author ids in data\.agents"):
        read(tmp_path / "t.json", [without])


def test_bodies_in_html_are_read_as_text_if_most_are(tmp_path):
    html = ["<div>Where is <b>the</b> saw?</div>", "<p>Left.</p><ul><li>of the<li>door</ul><img src=x>"]
    rows = [row | {"text": text} for row, text in zip(table()[::-1], html, strict=True)]
    records = read(tmp_path / "t.csv", rows)
    assert said(records) == [[("user", "Where is the saw?"), ("assistant", "Left.\n\n- of the\n- door")]]
    assert notes(records) == ["2 of 2 messages are HTML, read as text; 1 images in them are left out"]
    plain = [
        {"conversation_id": 8, "role": who, "text": text, "ts": 1}
        for who, text in (("user", "How?"), ("agent", "So."), ("user", "Thx"))
    ]
    plain[1]["text"] = "Write <p>so</p> in the page."
    records = read(tmp_path / "t.csv", plain)
    assert said(records)[0][1] == ("assistant", plain[1]["text"])
    assert notes(records) == ["1 of 3 messages look like HTML and are left as they are"]


def test_rows_of_other_shapes_are_not_tickets(tmp_path):
    rows = [
        {"conversation_id": 1, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ]
    assert said(read(tmp_path / "t.json", rows)) == [[("user", "q"), ("assistant", "a")]]
    with pytest.raises(DataError, match=r"found the keys prompt, completion; expected conversation_id, role and text"):
        read(tmp_path / "t.json", [{"prompt": "a", "completion": "b"}], format="tickets")


def test_a_file_without_any_answer_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of its rows gives an example: 1 skipped: a conversation in which the"):
        read(tmp_path / "t.csv", table(roles=("user", "user")))


# --- times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        (1, 2),
        ("1700000000000", "1700000060"),  # milliseconds and seconds
        ("1700000000", "1700000000001"),
        ("2026-01-05T09:00:00+02:00", "2026-01-05T08:30:00+01:00"),
        ("2026-01-05 09:00:00 UTC", "2026-01-05 09:06:00 UTC"),
        ("2026-01-05T09:00:00Z", "2026-01-05T09:00:00.5Z"),
        ("01/05/2026 9:00 AM", "01/05/2026 1:06 PM"),  # the order is the same both ways
        ("01/05/2026 09:00", "13/05/2026 09:00"),
        ("12/31/2025 9:00 PM", "01/05/2026 9:00 AM"),
        ("31.12.2025 21:00", "05.01.2026 09:00"),
        ("Jan 5, 2026 9:00 AM", "5 February 2026 09:00"),
        ("Mon, 05 Jan 2026 09:00:00 +0200", "Mon, 05 Jan 2026 08:30:00 +0100"),
        ("2026/01/05 09:00", "2026/01/05 09:06"),
        ("2026-01-05T09:00:00+02:00", "2026-01-06T09:00:00"),  # in every zone
    ],
)
def test_messages_are_sorted_by_any_known_time(tmp_path, times):
    assert said(read(tmp_path / "t.csv", table(times=times))) == [CHAT]


def test_units_and_dates_are_said(tmp_path):
    assert notes(read(tmp_path / "t.csv", table(times=("1700000000000", "1700000060")))) == [
        "'ts' holds seconds and milliseconds; each is read by its size"
    ]
    assert notes(read(tmp_path / "t.csv", table(times=("01/05/2026", "13/05/2026 09:00")))) == [
        "'ts' has the day first, as '13/05/2026 09:00' shows"
    ]


def test_an_order_that_depends_on_the_reading_of_a_date_is_refused_until_it_is_named(tmp_path):
    rows = table(ts="when", times=("03/01/2026 09:00", "02/02/2026 09:00"))  # 3 January or March 1
    with pytest.raises(
        DataError, match=r"depends on how .* is read; .*--column ts_month_first=when\), or ts_day_first"
    ):
        read(tmp_path / "t.csv", rows, columns={"ts": "when"})
    assert said(read(tmp_path / "t.csv", rows, columns={"ts_day_first": "when"})) == [CHAT]
    with pytest.raises(DataError, match="none of its rows gives an example"):  # the answer is before the question
        read(tmp_path / "t.csv", rows, columns={"ts_month_first": "when"})
    both = table(times=("13/01/2026", "01/13/2026"))
    with pytest.raises(DataError, match=r"dates with the day first .* and with the month first"):
        read(tmp_path / "t.csv", both)


def test_times_with_and_without_a_zone_are_refused_until_it_is_named(tmp_path):
    rows = table(times=("2026-01-05T09:00:00+02:00", "2026-01-05T07:30:00"))
    with pytest.raises(DataError, match=r"'2026-01-05T07:30:00' has no time zone .*--column ts_utc=ts\) if it is UTC"):
        read(tmp_path / "t.csv", rows)
    assert said(read(tmp_path / "t.csv", rows, columns={"ts_utc": "ts"})) == [CHAT]


def test_the_order_of_the_file_holds_for_equal_and_missing_times(tmp_path):
    rows = [
        {"conversation_id": 1, "role": who, "text": text, "ts": ts}
        for who, text, ts in (("agent", "b", "09:01"), ("user", "a2", "09:00"), ("user", "a1", "09:00"))
    ]
    dated = [row | {"ts": f"2026-01-05T{row['ts']}"} for row in rows]
    assert said(read(tmp_path / "t.csv", dated)) == [[("user", "a1\na2"), ("assistant", "b")]]  # newest first
    missing = [row | {"ts": ts} for row, ts in zip(rows[::-1], ("", "1", "2"), strict=True)]
    assert said(read(tmp_path / "t.csv", missing)) == [[("user", "a1\na2"), ("assistant", "b")]]
    unordered = [row | {"ts": ts} for row, ts in zip(rows[::-1], ("2", "", "1"), strict=True)]
    with pytest.raises(DataError, match="some messages have no 'ts', and the others are not in order of time"):
        read(tmp_path / "t.csv", unordered)


@pytest.mark.parametrize("time", ["yesterday", "nan", "2026-13-45", "31/31/2026", "09:00"])
def test_a_time_that_is_none_sets_its_conversation_aside(tmp_path, time):
    with pytest.raises(DataError, match="is neither a number nor a time such as 2026-01-31T09:00"):
        read(tmp_path / "t.csv", table(times=("1", time)))
