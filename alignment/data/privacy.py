"""Personal data in texts: mail addresses, phone numbers, payment cards. Found by shape, so names are not found."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# Whole, in groups of four, or as American Express prints it; a list of numbers is none of these.
_CARD = re.compile(
    r"(?<![\w.,+-])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3})?"
    r"|3[0-9]{3}[ -][0-9]{6}[ -][0-9]{5})(?![\w-])(?![.,][0-9])"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
# With a country code; as in North America; or with a leading zero, as in most of Europe. Plain runs of digits, dates,
# versions and addresses of machines are none of these.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,4}\)?){2,6}"
    r"|(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}"
    r"|\(?0[0-9]{1,4}\)?[ /-][0-9]{2,4}(?:[ -]?[0-9]{2,4}){1,3}"
    r")(?![\w-])(?![.,][0-9])"
)
_KINDS = {"mail": _MAIL, "card": _CARD, "phone": _PHONE}
# Every card and phone number begins like this; most texts hold nothing of the kind, and the full patterns cost more.
_DIGITS = re.compile(r"[0-9+(][0-9 ().+/-]{8}")


def luhn(digits: str) -> bool:
    """Whether a number's last digit is its check digit (ISO/IEC 7812-1): payment card numbers pass."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def scrub(text: str) -> tuple[str, Counter[str]]:
    """The text with `[MAIL]`, `[CARD]`, `[PHONE]` in place of what was found, and how many of each."""
    found: Counter[str] = Counter()
    return _scrub(text, found), found


def _scrub(text: str, found: Counter[str]) -> str:
    kinds = [kind for kind in _KINDS if (("@" in text) if kind == "mail" else _DIGITS.search(text))]
    for kind in kinds:

        def replace(match: re.Match[str], kind: str = kind) -> str:
            if not _is_one(kind, match.group()):
                return match.group()
            found[kind] += 1
            return f"[{kind.upper()}]"

        text = _KINDS[kind].sub(replace, text)
    return text


def _is_one(kind: str, text: str) -> bool:
    digits = "".join(char for char in text if "0" <= char <= "9")
    if kind == "card":
        return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)
    return kind == "mail" or 9 <= len(digits) <= 15


def scrub_row(value: Any) -> tuple[Any, Counter[str]]:
    """A row of a data file with every text in it scrubbed, at any depth (keys stay), and how many of each kind."""
    found: Counter[str] = Counter()
    return _scrub_value(value, found), found


def _scrub_value(value: Any, found: Counter[str]) -> Any:
    if isinstance(value, str):
        return _scrub(value, found)
    if isinstance(value, int) and not isinstance(value, bool):  # a card number that was not put in quotes
        text = _scrub(str(value), found) if 10**12 <= value < 10**19 else ""
        return text if text.startswith("[") else value
    if isinstance(value, list):
        return [_scrub_value(item, found) for item in value]
    if isinstance(value, dict):
        return {key: _scrub_value(item, found) for key, item in value.items()}
    return value
