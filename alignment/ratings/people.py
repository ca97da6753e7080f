"""The labelers of a ratings file: invitations, hashed names, simulated labelers, and removal."""

from __future__ import annotations

import json
import secrets
import time
from hashlib import sha256

from alignment.ratings.file import EVENT_TRIGGERS, RatingsFile
from alignment.ratings.records import check_labeler, dump


class People:
    """The labelers of one ratings file."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    def invite(self, labeler: str) -> str:
        """Return a new secret for the labeler's link and end the previous one. The file holds only its digest."""
        check_labeler(labeler)
        token = secrets.token_urlsafe(32)
        now = time.time()
        with self._file.transaction():
            self._file.db.execute(
                "INSERT OR REPLACE INTO invitation(labeler, token_sha256, at) VALUES(?, ?, ?)",
                (labeler, sha256(token.encode()).hexdigest(), now),
            )
            self._file.log(now, labeler, None, "invite", {})
        return token

    def labeler_of(self, token: str) -> str | None:
        """The labeler invited with this token; None if the token is unknown or ended."""
        hashed = sha256(token.encode("utf-8", "replace")).hexdigest()
        row = self._file.db.execute("SELECT labeler FROM invitation WHERE token_sha256 = ?", (hashed,)).fetchone()
        return None if row is None else str(row["labeler"])

    def revoke(self, labeler: str) -> None:
        """End the labeler's invitation, if there is one; their ratings stay."""
        check_labeler(labeler)
        with self._file.transaction():
            if self._file.db.execute("DELETE FROM invitation WHERE labeler = ?", (labeler,)).rowcount:
                self._file.log(time.time(), labeler, None, "revoke", {})

    def mark_simulated(self, labeler: str) -> None:
        """Record that this labeler is a program. Every model trained on the ratings then says so."""
        check_labeler(labeler)
        with self._file.transaction():
            self._file.set_meta("simulated", dump(sorted(self.simulated() | {labeler})))
            self._file.log(time.time(), labeler, None, "simulated", {})

    def simulated(self) -> frozenset[str]:
        """The labelers that are programs."""
        return frozenset(json.loads(self._file.meta("simulated", "[]")))

    def labeler_hash(self, labeler: str) -> str:
        """The pseudonym of a labeler in models' manifests: a salted hash; the salt is in this file only."""
        return sha256((self._file.meta("salt", "") + labeler).encode()).hexdigest()[:16]

    def forget(self, labeler: str) -> int:
        """Delete a labeler's ratings, claims, invitation and events, and return the number of deleted ratings.

        Only the event `forgotten` stays, with their hash and the count. The file is rewritten and its write-ahead log
        is truncated, so close other programs that use the file. Copies, backups and freed disk blocks are out of reach.
        Raises UserError if a concurrent reader prevented the overwriting of old bytes; call it again to finish.
        """
        check_labeler(labeler)
        assert not self._file.db.in_transaction  # VACUUM cannot run in a transaction
        now = time.time()
        with self._file.transaction():
            count = self._file.db.execute(
                "SELECT count(*) FROM rating WHERE labeler = ? AND done", (labeler,)
            ).fetchone()[0]
            removed = self._file.db.execute("DELETE FROM rating WHERE labeler = ?", (labeler,)).rowcount
            removed += self._file.db.execute("DELETE FROM invitation WHERE labeler = ?", (labeler,)).rowcount
            self._file.db.execute("DROP TRIGGER event_kept")
            removed += self._file.db.execute("DELETE FROM event WHERE labeler = ?", (labeler,)).rowcount
            self._file.db.execute(EVENT_TRIGGERS["event_kept"])
            if labeler in self.simulated():
                self._file.set_meta("simulated", dump(sorted(self.simulated() - {labeler})))
            if removed:
                self._file.log(now, self.labeler_hash(labeler), None, "forgotten", {"ratings": count})
        self._file.scrub()
        return int(count)
