"""Open data files as streams of UTF-8 bytes: plain, compressed with gzip, or inside a zip archive; guess encodings."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from alignment.errors import UserError

Note = Callable[[str], object]
"""Takes a line for the user about how a file was read."""
_BLOCK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: it begins with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What another encoding looks like when it is decoded as cp1252: a capital after a small letter, signs inside words
# (DOS, Mac, Polish), letters that no cp1252 text has (Turkish), three accented letters in a row (Cyrillic, Chinese).
_IMPLAUSIBLE = re.compile(
    r"[a-z][À-ÞŠŽŸŒ]|[a-z][¡-´¶¸-¿‚„†‡ˆ‰‹›˜ƒ][a-z]|[^\W\d_][‚„‹ƒˆ˜]|[ÿþÝ]|[À-ÖØ-öø-þŠŽŸŒšžœ]{3}|[\x00-\x08\x0e-\x1f\x7f]"
)


class DataError(UserError):
    """Data that cannot be used."""


class BadRow(ValueError):
    """The reason why one row is set aside."""


class PassedOver(BadRow):
    """The reason why a valid row yields no example; counted apart from bad rows."""


@dataclass(frozen=True)
class DataFile:
    """A data file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def suffix(self) -> str:
        """The suffix in lower case, without `.gz`: `.jsonl` for `Rows.JSONL.gz`."""
        return suffix_of(self.member or self.path.name)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes as a stream.

        Raises:
            DataError: the file is missing, damaged or encrypted.
        """
        try:
            with self._raw() as raw:
                yield gzip.GzipFile(fileobj=raw) if self._is_gzip else raw  # type: ignore[misc]
        except UnicodeDecodeError as error:
            raise DataError(f"{self}: not {error.encoding}, as its first bytes say; save it as UTF-8") from None
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(f"{self}: cannot be read: {error}; copy or compress the file again") from None

    @property
    def _is_gzip(self) -> bool:
        return (self.member or self.path.name).lower().endswith(".gz")

    @contextmanager
    def _raw(self) -> Iterator[IO[bytes]]:
        if not self.member:
            with self.path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive:
            if archive.getinfo(self.member).flag_bits & 1:
                raise DataError(f"{self}: is encrypted; unpack the archive and name the file")
            with archive.open(self.member) as stream:
                yield stream

    @contextmanager
    def utf8(self, encoding: str) -> Iterator[IO[bytes]]:
        """The bytes recoded from an encoding to UTF-8, without a byte order mark."""
        with self.opened() as stream:
            if encoding == "utf-8":
                yield stream
            elif encoding == "utf-8-sig":
                stream.read(len(codecs.BOM_UTF8))
                yield stream
            else:
                yield io.BufferedReader(_Recoded(stream, encoding), _BLOCK)

    def marked_encoding(self) -> str:
        """The encoding that the first bytes tell (a byte order mark, or zeros as UTF-16 has them), else `utf-8`."""
        with self.opened() as stream:
            return marked_encoding(stream.read(1024))

    def guessed_encoding(self) -> str:
        """As `marked_encoding`; where the file is not UTF-8, `cp1252` if that gives a plausible text.

        Raises:
            DataError: neither; the message names the first line that is not UTF-8.
        """
        marked = self.marked_encoding()
        if marked not in ("utf-8", "utf-8-sig") or (problem := self._not_utf8()) is None:
            return marked
        with self.opened() as stream:
            # Blocks overlap by nothing: a pair of letters on a border is not looked at, which is one in a million.
            if all(map(is_plausible_cp1252, iter(lambda: stream.read(_BLOCK), b""))):
                return "cp1252"
        raise DataError(f"{self}:{problem}")

    def _not_utf8(self) -> str | None:
        """The first place that is not UTF-8, as `line: problem`."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        line = 1
        with self.opened() as stream:
            while True:
                block = stream.read(_BLOCK)
                try:
                    decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    return f"{line + error.object[: error.start].count(10)}: {not_utf8(error)}"
                if not block:
                    return None
                line += block.count(10)


class _Recoded(io.RawIOBase):
    """A stream of bytes in another encoding, as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            block = self._stream.read(len(buffer) // 4)  # a byte of cp1252 has up to three in UTF-8
            raw = self._decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")
            if raw or not block:
                buffer[: len(raw)] = raw
                return len(raw)


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, without `.gz`."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def marked_encoding(start: bytes) -> str:
    """See `DataFile.marked_encoding`; `start` is the beginning of a file."""
    for mark, encoding in _BOMS:
        if start.startswith(mark):
            return encoding
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = start[first::2].count(0)
        if zeros > 4 and zeros > 0.9 * len(start[first::2]) and not start[1 - first :: 2].count(0):
            return encoding
    return "utf-8"


def is_plausible_cp1252(raw: bytes) -> bool:
    """Whether bytes decode as cp1252 to what looks like text of a Western European language."""
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = sum(map(str.isalpha, text))
    accented = sum(not char.isascii() for char in text if char.isalpha())
    num_odd = sum(1 for _ in _IMPLAUSIBLE.finditer(text))
    return 3 * accented <= letters and 50 * num_odd <= accented  # a typing mistake is no other encoding


def not_utf8(error: UnicodeDecodeError) -> str:
    """The problem of a text that is not UTF-8, in words."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"
