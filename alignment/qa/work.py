"""Cache replies in an append-only file, so that a killed run can be resumed and no request is paid for twice.

Each reply is a JSON line, written to disk (fsync) before it is used. Its key is a hash of the model, the conversation
and the settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.generation.chat_models import ChatModel, Failure, Reply, ReplySampling
from alignment.templates.rendering import Message


class WorkFile(AbstractContextManager["WorkFile"]):
    """The cached replies. It is thread-safe; a second process on the same file is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_asked = 0
        self._lock = threading.Lock()
        self._replies: dict[str, Reply] = {}
        try:
            self._file = path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._file.fileno()).st_nlink:
                raise BlockingIOError  # a run that ended has just removed the file; replies would be lost in it
        except BlockingIOError:
            raise UserError(f"{path}: another run is writing to it; wait for it, or name another --out") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}; name another --out") from None
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        complete = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            try:
                row = json.loads(line)
                key = row.pop("key")
                self._replies[key] = Reply(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a damaged line costs one more request
        self._file.truncate(complete)  # remove an incomplete last line

    def __exit__(self, *exception: object) -> None:
        if not os.fstat(self._file.fileno()).st_size:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def ask(
        self, model: ChatModel, conversations: Sequence[Sequence[Message]], sampling: ReplySampling
    ) -> list[Reply | Failure]:
        """The replies to conversations, in order, from the cache or the model. Failures are not cached, so the next run
        tries again.

        If a reply of a batch is missing, the whole batch is asked again, because padding and seed depend on the batch.
        """
        keys = [_key(model, conversation, sampling) for conversation in conversations]
        with self._lock:
            known = [self._replies[key] for key in keys if key in self._replies]
        if len(known) == len(keys):
            return list(known)
        asked = model.ask(conversations, sampling)
        with self._lock:
            self.num_asked += len(asked)
            for key, reply in zip(keys, asked, strict=True):
                if isinstance(reply, Reply):
                    self._replies[key] = reply
            self._append([{"key": key, **vars(r)} for key, r in zip(keys, asked, strict=True) if isinstance(r, Reply)])
        return asked

    def _append(self, rows: list[dict[str, Any]]) -> None:
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; make room and give the same command again: "
                "earlier replies are kept"
            ) from None


def _key(model: ChatModel, conversation: Sequence[Message], sampling: ReplySampling) -> str:
    content = json.dumps([model.identity, vars(sampling), list(conversation)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
