"""The labelers of a ratings file: invitations, hashed names, simulated labelers, and removal."""

from __future__ import annotations

import json
import secrets
import time
from hashlib import sha256

from alignment.errors import UserError
from alignment.ratings.file import EVENT_TRIGGERS, RatingsFile
from alignment.ratings.names import near
from alignment.ratings.records import check_labeler, dump


class People:
    """The labelers of one ratings file."""

    def __init__(self, file: RatingsFile) -> None:
        self._file = file

    def invite(self, labeler: str, referee: bool = False) -> str:
        """Return a new secret for the labeler's link and end the previous one. The file holds only its digest.

        Whoever comes by the link of a `referee` decides disputed items instead of rating.
        """
        check_labeler(labeler)
        token = secrets.token_urlsafe(32)
        now = time.time()
        with self._file.transaction():
            self._file.db.execute(
                "INSERT OR REPLACE INTO invitation(labeler, token_sha256, at) VALUES(?, ?, ?)",
                (labeler, sha256(token.encode()).hexdigest(), now),
            )
            self._set_referees((self.referees() - {labeler}) | ({labeler} if referee else set()))
            self._file.log(now, labeler, None, "invite", {"referee": True} if referee else {})
        return token

    def invitations(self) -> dict[str, float]:
        """The labelers whose link is open, with the time of their invitation, the oldest first."""
        rows = self._file.db.execute("SELECT labeler, at FROM invitation ORDER BY at, labeler")
        return {row["labeler"]: row["at"] for row in rows}

    def referees(self) -> frozenset[str]:
        """The labelers whose link is a referee's."""
        return frozenset(json.loads(self._file.meta("referees", "[]")))

    def known(self) -> list[str]:
        """The names of all who have a rating, an open item or an invitation."""
        rows = self._file.db.execute("SELECT labeler FROM rating UNION SELECT labeler FROM invitation ORDER BY labeler")
        return [row["labeler"] for row in rows]

    def check_new(self, labeler: str, fix: str) -> None:
        """Raise UserError if the labeler is new here and their name is near a known one.

        Args:
            fix: what the caller can do if it is somebody else, as `--new-labeler`.
        """
        check_labeler(labeler)
        if alike := near(labeler, self.known()):
            raise UserError(
                f"labeler {labeler!a} is new in {self._file.path}, where {' and '.join(map(ascii, alike[:3]))} rate"
                f"{'s' * (len(alike) == 1)}; correct the name, or {fix} if this is another person"
            )

    def found(self, labeler: str) -> str:
        """The name, if it is known here.

        Raises:
            UserError: nobody of that name has rated or has a link.
        """
        known = self.known()
        if labeler not in known:
            meant = near(labeler, known) or known[:20]
            here = f"; here are {', '.join(map(ascii, meant))}" if meant else "; nobody has rated or has a link yet"
            raise UserError(f"{self._file.path}: no labeler {labeler!a}{here}")
        return labeler

    def labeler_of(self, token: str) -> str | None:
        """The labeler invited with this token; None if the token is unknown or ended."""
        hashed = sha256(token.encode("utf-8", "replace")).hexdigest()
        row = self._file.db.execute("SELECT labeler FROM invitation WHERE token_sha256 = ?", (hashed,)).fetchone()
        return None if row is None else str(row["labeler"])

    def revoke(self, labeler: str) -> bool:
        """End the labeler's invitation, if there is one; their ratings stay. Returns whether there was one."""
        check_labeler(labeler)
        with self._file.transaction():
            ended = self._file.db.execute("DELETE FROM invitation WHERE labeler = ?", (labeler,)).rowcount > 0
            self._set_referees(self.referees() - {labeler})
            if ended:
                self._file.log(time.time(), labeler, None, "revoke", {})
        return ended

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

    def holdings(self, labeler: str) -> dict[str, int]:
        """What `forget` would delete: counts of `ratings`, `open` items, `invitations` and `events`."""
        check_labeler(labeler)
        counts = {
            "ratings": "rating WHERE done AND",
            "open": "rating WHERE NOT done AND",
            "invitations": "invitation WHERE",
            "events": "event WHERE",
        }
        return {
            name: int(self._file.db.execute(f"SELECT count(*) FROM {where} labeler = ?", (labeler,)).fetchone()[0])
            for name, where in counts.items()
        }

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
            self._set_referees(self.referees() - {labeler})
            if labeler in self.simulated():
                self._file.set_meta("simulated", dump(sorted(self.simulated() - {labeler})))
            if removed:
                self._file.log(now, self.labeler_hash(labeler), None, "forgotten", {"ratings": count})
        self._file.scrub()
        return int(count)

    def _set_referees(self, names: frozenset[str] | set[str]) -> None:
        if names != self.referees():
            self._file.set_meta("referees", dump(sorted(names)))
