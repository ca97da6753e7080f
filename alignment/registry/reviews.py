"""Reviews of a version, written after looking at its run: numbered files, never changed.

    models/NAME/reviews/v000003/00000001.json

Only the newest review counts: a rejected version is not promoted until someone approves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from alignment.registry.aliases import append_entry, entry_numbers
from alignment.registry.errors import RegistryError
from alignment.registry.files import one_line_errors, read_entry
from alignment.registry.layout import STAGING
from alignment.registry.manifest import first_problem
from alignment.registry.version import Version
from alignment.terminal import one_line

if TYPE_CHECKING:  # the store asks for rejections
    from alignment.registry.store import Registry

REVIEWS = "reviews"
_SHOWN = 200


class Review(BaseModel):
    """One reviewer's decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    decision: Literal["approve", "reject"]
    reviewer: str
    note: str
    by: str
    """user@host that recorded it."""
    run: str
    run_id: str
    step: int
    """The run's last step at the time."""
    verdict: str
    """The run's verdict at the time: pass, warn, fail or not measured."""
    not_measured: list[str] = []
    """Names of the checks that could not be made; empty in older reviews."""
    judged_by: str | None = None
    """The judge of the run's win rate, if it has one."""
    model: str | None = None
    digest: str | None = None
    """Digest of the published version; None if the run had published none yet."""

    @property
    def text(self) -> str:
        """A line for the screen."""
        decision = "approved" if self.decision == "approve" else "rejected"
        note = one_line(self.note)
        short = note if len(note) <= _SHOWN else note[: _SHOWN - 3] + "..."
        return f"{decision} by {one_line(self.reviewer)} on {self.at:%Y-%m-%d %H:%M} UTC: {short}"

    @property
    def caveat(self) -> str | None:
        """The checks that an approval lacks, in words."""
        if not self.not_measured:
            return None
        return f"the run was not checked for: {', '.join(map(one_line, self.not_measured))}"


def add_review(registry: Registry, version: Version, review: Review) -> None:
    """Put a review beside the version that it is about.

    Raises:
        RegistryError: it cannot be written.
    """
    folder = _folder(registry.path, (version.name, version.number))
    data = json.dumps(review.model_dump(mode="json")).encode() + b"\n"
    with one_line_errors(f"the review of {version.ref} cannot be written in {registry.path}"):
        append_entry(folder, registry.path / STAGING, data)


def reviews_of(registry: Registry, version: Version) -> list[Review]:
    """All reviews of a version, the oldest first.

    Raises:
        RegistryError: one is damaged, or is about other weights.
    """
    reviews: list[Review] = []
    for path, review in stored(registry.path, (version.name, version.number)):
        reviews.append(review or _parse(path))
        if reviews[-1].digest != version.digest:
            raise RegistryError(f"{path} is a review of {reviews[-1].digest}, and {version.ref} is {version.digest}")
    return reviews


def stored(root: Path, key: tuple[str, int]) -> Iterator[tuple[Path, Review | None]]:
    """The files of a version's reviews, the oldest first; None in place of one that cannot be read."""
    folder = _folder(root, key)
    for path in (folder / f"{number:08d}.json" for number in entry_numbers(folder)):
        try:
            yield path, _parse(path)
        except RegistryError:
            yield path, None


def _folder(root: Path, key: tuple[str, int]) -> Path:
    return root / "models" / key[0] / REVIEWS / f"v{key[1]:06d}"


def _parse(path: Path) -> Review:
    try:
        return Review.model_validate_json(read_entry(path))
    except OSError as error:
        raise RegistryError(f"{path} cannot be read: {error.strerror}; review the run again") from None
    except ValidationError as error:
        raise RegistryError(f"{path} is damaged: {first_problem(error)}; review the run again") from None


def rejection(registry: Registry, version: Version) -> str | None:
    """The newest review in words, if it is a rejection, with the aliases that point to the version all the same.

    A review that cannot be read is no rejection; `doctor` and every promotion name it.
    """
    try:
        latest = reviews_of(registry, version)[-1:]
    except RegistryError:
        return None
    if not latest or latest[0].decision != "reject":
        return None
    try:
        pointing = pointing_to(registry, version)
    except RegistryError:
        pointing = []
    return latest[0].text + (f" - and {', '.join(pointing)} points to it" if pointing else "")


def pointing_to(registry: Registry, version: Version) -> list[str]:
    """The aliases of a version, such as `help-desk@prod`.

    Raises:
        RegistryError: an alias is damaged.
    """
    numbers = registry.aliases(version.name)
    return [f"{version.name}@{alias}" for alias, number in numbers.items() if number == version.number]


def check_reviewed(registry: Registry, version: Version, required: bool) -> Review | None:
    """The newest review; None if there is none and none is required.

    Raises:
        RegistryError: it is a rejection, or is missing and required.
    """
    reviews = reviews_of(registry, version)
    latest = reviews[-1] if reviews else None
    run = version.manifest.run_id or "RUN"
    if latest is None and required:
        raise RegistryError(
            f"{version.ref} has no review; look at the run that made it and say so: "
            f"alignment runs review {one_line(run)} --approve --note TEXT"
        )
    if latest is not None and latest.decision == "reject":
        raise RegistryError(
            f"{version.ref} was {latest.text}; it moves once somebody approves it: "
            f"alignment runs review {one_line(run)} --approve --note TEXT"
        )
    return latest
