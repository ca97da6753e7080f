"""Read the threads of a Slack export."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from alignment.data.opening import DataError, DataFile
from alignment.data.row_files import is_macos_copy, zip_members
from alignment.data.tickets import Rows, conversation_row
from alignment.templates.rendering import Message

_LISTS = ("users.json", "channels.json")


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


def slack_rows(path: Path, agents: Collection[str]) -> Rows:
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
    names: dict[str, str] = {}
    agent_ids: set[str] = set()
    threads: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    authors: set[str] = set()
    for file, content in _json_files(path):
        channel, _, day = file.rpartition("/")
        if day == "users.json":
            for user in content:
                profile = user.get("profile") or {}
                user_names = {user.get("name"), user.get("real_name"), *map(profile.get, ("real_name", "display_name"))}
                names[user["id"]] = profile.get("display_name") or user.get("real_name") or user.get("name")
                if user_names & set(agents):
                    agent_ids.add(user["id"])
        elif re.fullmatch(r"\d{4}-\d\d-\d\d\.json", day):
            for index, message in enumerate(content, 1):
                author = message.get("user") or message.get("bot_id") or message.get("username")
                has_text = message.get("type") == "message" and str(message.get("text") or "").strip()
                if author and has_text and message.get("subtype") in (None, "bot_message", "thread_broadcast"):
                    authors.add(str(author))
                    thread = (channel, str(message.get("thread_ts") or message.get("ts")))
                    threads.setdefault(thread, []).append((f"{path}:{file}:row {index}", message))
    agent_ids |= set(agents) & authors
    if not agent_ids & authors:
        shown = ", ".join(sorted({names.get(author, author) for author in authors})[:20]) or "nobody"
        raise DataError(f"{path}: data.agents={list(agents)} wrote nothing here; these did: {shown}")
    for _, messages in sorted(threads.items()):
        messages.sort(key=lambda item: float(item[1].get("ts") or 0))
        turns = [
            Message(
                role="assistant"
                if {message.get("user"), message.get("bot_id"), message.get("username")} & agent_ids
                else "user",
                content=_slack_text(message["text"], names),
            )
            for _, message in messages
        ]
        yield messages[0][0], conversation_row(turns)


def _json_files(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the relative name and the content of each JSON file of an export, users first."""
    if path.is_dir():
        names = {file.relative_to(path).as_posix(): DataFile(file) for file in path.rglob("*.json")}
    else:
        names = {member.member: member for member in zip_members(path, (".json",))}
    for name in sorted(names, key=_users_first):
        if not is_macos_copy(name):
            with names[name].opened() as stream:
                yield name, _parse(path, name, stream.read())


def _users_first(name: str) -> tuple[bool, str]:
    return not name.endswith("users.json"), name


def _parse(path: Path, name: str, content: bytes) -> list[Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}:{name}: not valid JSON: {error}") from None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _slack_text(text: str, names: Mapping[str, str]) -> str:
    """Slack's markup as plain text: `<@U1>` becomes a name, `<url|label>` becomes label and address."""
    text = re.sub(r"<@(\w+)(?:\|([^>]*))?>", lambda m: "@" + (m[2] or names.get(m[1]) or m[1]), text)
    text = re.sub(r"<[#!](?:\w+\|)?([^>]*)>", lambda m: m[1], text)
    text = re.sub(r"<([^|>\s]+)\|([^>]*)>", lambda m: f"{m[2]} ({m[1]})", text)
    text = re.sub(r"<((?:https?|mailto):[^>\s]+)>", lambda m: m[1], text)
    return html.unescape(text).strip()
