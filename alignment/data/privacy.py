"""Find mail addresses, phone numbers and payment cards in text by pattern. Names of people are not found."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# Without spaces, in groups of four, or in American Express's groups; a list of numbers does not match.
_CARD = re.compile(
    r"(?<![\w.,+-])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3})?"
    r"|3[0-9]{3}[ -][0-9]{6}[ -][0-9]{5})(?![\w-])(?![.,][0-9])"
)
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
# With a country code, in North American form, or with a leading zero as in most of Europe. Plain runs of digits, dates,
# versions and IP addresses do not match.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,4}\)?){2,6}"
    r"|(?:\([0-9]{3}\) ?|[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}"
    r"|\(?0[0-9]{1,4}\)?[ /-][0-9]{2,4}(?:[ -]?[0-9]{2,4}){1,3}"
    r")(?![\w-])(?![.,][0-9])"
)
_KINDS = {"mail": _MAIL, "card": _CARD, "phone": _PHONE}
# A cheap necessary condition of cards and phone numbers: most texts fail it, and the full patterns cost more.
_DIGITS = re.compile(r"[0-9+(][0-9 ().+/-]{8}")


def luhn(digits: str) -> bool:
    """Return whether the last digit is the Luhn check digit (ISO/IEC 7812-1), as in payment card numbers."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def scrub(text: str) -> tuple[str, Counter[str]]:
    """The text with personal data replaced by `[MAIL]`, `[CARD]` and `[PHONE]`, and the count of each kind."""
    counts: Counter[str] = Counter()
    return _scrub(text, counts), counts


def _scrub(text: str, counts: Counter[str]) -> str:
    kinds = [kind for kind in _KINDS if (("@" in text) if kind == "mail" else _DIGITS.search(text))]
    for kind in kinds:

        def replace(match: re.Match[str], kind: str = kind) -> str:
            if not _is_one(kind, match.group()):
                return match.group()
            counts[kind] += 1
            return f"[{kind.upper()}]"

        text = _KINDS[kind].sub(replace, text)
    return text


def _is_one(kind: str, text: str) -> bool:
    digits = "".join(char for char in text if "0" <= char <= "9")
    if kind == "card":
        return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)
    return kind == "mail" or 9 <= len(digits) <= 15


def scrub_row(value: Any) -> tuple[Any, Counter[str]]:
    """A row with every string in it scrubbed, at any depth (keys stay), and the count of each kind."""
    counts: Counter[str] = Counter()
    return _scrub_value(value, counts), counts


def _scrub_value(value: Any, counts: Counter[str]) -> Any:
    if isinstance(value, str):
        return _scrub(value, counts)
    if isinstance(value, int) and not isinstance(value, bool):  # a card number may be unquoted
        text = _scrub(str(value), counts) if 10**12 <= value < 10**19 else ""
        return text if text.startswith("[") else value
    if isinstance(value, list):
        return [_scrub_value(item, counts) for item in value]
    if isinstance(value, dict):
        return {key: _scrub_value(item, counts) for key, item in value.items()}
    return value
