"""What a ratings file keeps beside items and ratings: its settings, and who its labelers are."""

import json
import secrets
import time
from hashlib import sha256

from alignment.errors import UserError
from alignment.ratings.choosing import ControlShares
from alignment.ratings.file import EVENT_TRIGGERS, RatingsFile
from alignment.ratings.records import check_labeler, dump
from alignment.terminal import clean


class Register:
    """The part of `RatingsStore` that is about the file as a whole and about people."""

    _file: RatingsFile

    @property
    def guideline(self) -> str:
        """What labelers are asked to prefer; empty if nobody wrote it."""
        return self._file.meta("guideline", "")

    @guideline.setter
    def guideline(self, text: str) -> None:
        self._set("guideline", clean(text))

    @property
    def calibration(self) -> int:
        """How many gold items with feedback come before anything else, for each labeler."""
        return int(self._file.meta("calibration", "0"))

    @calibration.setter
    def calibration(self, count: int) -> None:
        if count < 0:
            raise UserError(f"calibration is how many gold items come first: expected 0 or more, found {count}")
        self._set("calibration", str(count))

    @property
    def gold_share(self) -> float:
        """The share of gold items among what a labeler gets, as long as there are any new to them."""
        return float(self._file.meta("gold_share", "0.05"))

    @gold_share.setter
    def gold_share(self, share: float) -> None:
        self._set_share("gold_share", share)

    @property
    def repeat_share(self) -> float:
        """The share of own earlier pairs, sides flipped, among what a labeler gets."""
        return float(self._file.meta("repeat_share", "0.03"))

    @repeat_share.setter
    def repeat_share(self, share: float) -> None:
        self._set_share("repeat_share", share)

    def invite(self, labeler: str) -> str:
        """A secret for the labeler's link; an earlier one ends. Only its digest is in the file."""
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
        """Who was invited with this token; None if nobody, or not any more."""
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
        """Say that this labeler is a program. Everything trained on the store then says so."""
        check_labeler(labeler)
        with self._file.transaction():
            self._file.set_meta("simulated", dump(sorted(self.simulated() | {labeler})))
            self._file.log(time.time(), labeler, None, "simulated", {})

    def simulated(self) -> frozenset[str]:
        """The labelers that are programs."""
        return frozenset(json.loads(self._file.meta("simulated", "[]")))

    def labeler_hash(self, labeler: str) -> str:
        """What stands for a labeler in models' manifests: without this file nobody can tell who it is."""
        return sha256((self._file.meta("salt", "") + labeler).encode()).hexdigest()[:16]

    def forget(self, labeler: str) -> int:
        """Remove a labeler's ratings, claims, invitation and events from the file, and return how many ratings went.

        Only the event `forgotten`, with their hash and the count, stays. The file is written anew and its
        write-ahead log is cut, so close other programs that use the file. Copies, backups and what a disk keeps of
        blocks that it has freed are out of reach. Raises UserError if a program that was reading kept the old bytes
        from being overwritten; the same call finishes the work.
        """
        check_labeler(labeler)
        assert not self._file.db.in_transaction  # the file is rewritten, which no transaction can hold
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

    def _set_share(self, name: str, share: float) -> None:
        if not 0 <= share <= 0.5:
            raise UserError(f"{name}: expected a number from 0 to 0.5, found {share}")
        self._set(name, repr(float(share)))

    def _set(self, name: str, value: str) -> None:
        with self._file.transaction():
            self._file.set_meta(name, value)
            self._file.log(time.time(), "", None, "setting", {name: value})

    def _shares(self) -> ControlShares:
        return ControlShares(self.calibration, self.gold_share, self.repeat_share)
