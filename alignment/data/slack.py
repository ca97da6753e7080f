"""Read the threads of a Slack export."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from alignment.data.json_values import whole_number
from alignment.data.opening import DataError, DataFile, Note
from alignment.data.row_files import is_macos_copy, zip_members
from alignment.data.tickets import Rows, conversation_row
from alignment.templates.rendering import Message

LARGEST_FILE = 64 << 20
"""Bytes of one file of an export, a channel's messages of a day: it is read whole."""
_LISTS = ("users.json", "channels.json")
_SAID = (None, "bot_message", "thread_broadcast", "file_share")


def is_slack_export(path: Path) -> bool:
    """Return whether the path is a folder or a zip file with Slack's list of channels or users."""
    if path.is_dir():
        return any((path / name).is_file() for name in _LISTS)
    if path.suffix.lower() != ".zip":
        return False
    try:
        return any(PurePosixPath(member.member).name in _LISTS for member in zip_members(path, (".json",)))
    except DataError:
        return False


def slack_rows(path: Path, agents: Collection[str], note: Note = lambda text: None) -> Rows:
    """Yield a `messages` row for each thread of an export (a folder or a zip file) that an agent answered.

    Args:
        agents: ids or names (real, display or user name) of the users whose messages are the assistant's.

    Raises:
        DataError: no agent is named, or no named agent wrote a message.
    """
    if not agents:
        raise DataError(
            f"{path}: a Slack export; set data.agents (--agent) to the users whose messages are the assistant's"
        )
    export = _Export(path, agents)
    if not export.agents & export.authors:
        shown = ", ".join(sorted({export.names.get(author, author) for author in export.authors})[:20]) or "nobody"
        raise DataError(f"{path}: data.agents={list(agents)} wrote nothing here; these did: {shown}")
    if export.num_files:
        note(f"{path}: files of {export.num_files} messages are left out")
    for _, messages in sorted(export.threads.items()):
        messages.sort(key=lambda item: _seconds(item[1].get("ts")))
        turns = [
            Message(
                role="assistant" if _authors(message) & export.agents else "user",
                content=_slack_text(_written(message), export.names),
            )
            for _, message in messages
        ]
        yield messages[0][0], conversation_row(turns)


class _Export:
    """The messages of an export by thread, and who wrote them. `names` are those of users and channels by their id."""

    def __init__(self, path: Path, agents: Collection[str]) -> None:
        self.names: dict[str, str] = {}
        self.agents: set[str] = set()
        self.authors: set[str] = set()
        self.threads: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
        self.num_files = 0
        for file, content in _json_files(path):
            channel, _, day = file.rpartition("/")
            if day == "users.json":
                for user in content:
                    self._add_user(user, agents)
            elif day == "channels.json":
                self.names |= {str(each.get("id")): str(each.get("name")) for each in content}
            elif path.suffix.lower() == ".json":
                for index, message in enumerate(content, 1):
                    self._add_message(channel, f"{path}:row {index}", message)
            elif re.fullmatch(r"\d{4}-\d\d-\d\d\.json", day):
                for index, message in enumerate(content, 1):
                    self._add_message(channel, f"{path}:{file}:row {index}", message)
        self.agents |= set(agents) & self.authors

    def _add_user(self, user: Mapping[str, Any], agents: Collection[str]) -> None:
        profile = user.get("profile") or {}
        names = {user.get("name"), user.get("real_name"), *map(profile.get, ("real_name", "display_name"))}
        key = str(user.get("id"))
        self.names[key] = profile.get("display_name") or user.get("real_name") or user.get("name") or key
        if names & set(agents):
            self.agents.add(key)

    def _add_message(self, channel: str, where: str, message: Mapping[str, Any]) -> None:
        authors = _authors(message)
        is_said = message.get("type") == "message" and message.get("subtype") in _SAID
        if not (authors and is_said):
            return
        self.num_files += bool(message.get("files"))
        if _written(message).strip():
            self.authors |= authors
            thread = (channel, str(message.get("thread_ts") or message.get("ts")))
            self.threads.setdefault(thread, []).append((where, message))


def _authors(message: Mapping[str, Any]) -> set[str]:
    return {str(message[key]) for key in ("user", "bot_id", "username") if message.get(key)}


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _written(message: Mapping[str, Any]) -> str:
    """The text of a message; if it has none, that of its blocks, or a bot's attachments."""
    text = str(message.get("text") or "")
    if text.strip():
        return text
    text = "\n".join(filter(None, map(_block_text, _objects(message.get("blocks")))))
    if text.strip() or not message.get("bot_id"):
        return text
    parts = [str(each.get("text") or each.get("fallback") or "") for each in _objects(message.get("attachments"))]
    return "\n".join(part for part in parts if part.strip())


def _block_text(block: Mapping[str, Any]) -> str:
    """The text of a block of Slack's rich text, with its mentions in the markup of plain messages."""
    kind = block.get("type")
    if kind == "emoji":
        return f":{block.get('name')}:"
    if kind in ("user", "channel"):
        return f"<{'@' if kind == 'user' else '#'}{block.get(f'{kind}_id')}>"
    if kind == "link":
        label = block.get("text")
        return f"<{block.get('url')}|{label}>" if label else f"<{block.get('url')}>"
    text = block.get("text")
    if isinstance(text, Mapping):  # a section block
        return str(text.get("text") or "")
    parts = [_block_text(each) for each in _objects(block.get("elements"))]
    return str(text or "") + ("\n" if kind in ("rich_text", "rich_text_list") else "").join(parts)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _json_files(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the relative name and the content of each JSON file of an export, users first."""
    if path.suffix.lower() == ".json" and path.is_file():  # one channel's messages
        names = {path.name: DataFile(path)}
    elif path.is_dir():
        names = {file.relative_to(path).as_posix(): DataFile(file) for file in path.rglob("*.json")}
    else:
        names = {member.member: member for member in zip_members(path, (".json",))}
    for name in sorted(names, key=_users_first):
        if not is_macos_copy(name):
            with names[name].opened() as stream:
                content = stream.read(LARGEST_FILE + 1)
            if len(content) > LARGEST_FILE:
                raise DataError(f"{names[name]}: a day of more than {LARGEST_FILE >> 20} MiB; is it a Slack export?")
            yield name, _parse(path, name, content)


def _users_first(name: str) -> tuple[bool, str]:
    return not name.endswith("users.json"), name


def _parse(path: Path, name: str, content: bytes) -> list[Any]:
    try:
        value = json.loads(content, parse_int=whole_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{name}: not valid JSON: {error}") from None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _slack_text(text: str, names: Mapping[str, str]) -> str:
    """Slack's markup as plain text: `<@U1>` becomes a name, `<url|label>` becomes label and address."""
    text = re.sub(r"<@(\w+)(?:\|([^>]*))?>", lambda m: "@" + (m[2] or names.get(m[1]) or m[1]), text)
    text = re.sub(r"<([#!])([^|>]*)(?:\|([^>]*))?>", lambda m: _mention(m[1], m[2], m[3], names), text)
    text = re.sub(r"<([^|>\s]+)\|([^>]*)>", lambda m: m[2] if m[1].endswith(m[2]) else f"{m[2]} ({m[1]})", text)
    text = re.sub(r"<((?:https?|mailto):[^>\s]+)>", lambda m: m[1], text)
    return html.unescape(text).strip()


def _mention(kind: str, key: str, label: str | None, names: Mapping[str, str]) -> str:
    """A channel (#), group or date (!) as text: its label, else its name."""
    return label or names.get(key) or (key.partition("^")[2] if "^" in key else key)
