"""Rewards from a service that is asked over HTTP."""

from __future__ import annotations

import functools
import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.data.records import Prompt
from alignment.errors import ConfigError
from alignment.evaluation.reward_values import RewardError, TokenIds, checked, columns_of, prompt_of
from alignment.models.same_tokenizer import token_mark
from alignment.models.tokenizers import vocabulary_of
from alignment.proxies import through_proxy
from alignment.redaction import without_secrets
from alignment.terminal import one_line
from ppo.config import RewardSource

TIMEOUT, MAX_RETRIES = 30.0, 3
"""Seconds for one whole request; further tries of one that failed, after 1, 2, 4, ... seconds."""
RETRIED = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a service that may be another one next time."""
MAX_ANSWER = 2**24
"""Bytes; an endless answer would fill the memory."""
KEY_VARIABLE = "ALIGNMENT_SCORE_TOKEN"
"""Environment variable with the key of `alignment score --serve`."""
OFFERS, WANTS = "Alignment-Offers", "Alignment-Wants"
"""Headers: what a request could bring (`tokens`), and what the service that refuses it wants (`key`, `tokens`)."""
SHOWN = 200
"""Characters of an answer that an error shows."""


class HTTPReward:
    """A service that is asked by POST for the scores of one process's responses at a time."""

    def __init__(
        self,
        entry: RewardSource,
        columns: Sequence[str] = (),
        sleep: Callable[[float], None] = time.sleep,
        max_retries: int = MAX_RETRIES,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        assert entry.url is not None
        self._tokenizer, self._authorization = tokenizer, _authorization()
        self._wanted: set[str] = set()
        parts = _parts_of(entry.url)
        self.url, self.weight, self._columns, self._sleep = entry.url, entry.weight, columns, sleep
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        self.label = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
        """The address without keys, for messages and the journal."""
        self.name = str(parts.hostname)
        self.max_retries = max_retries
        self.timeout = TIMEOUT if entry.timeout is None else entry.timeout

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[str], tokens: Sequence[TokenIds] = ()
    ) -> list[float]:
        """Scores by the service, which is given the token ids and the key only if it asks for them: what it is not
        sent, no service can keep."""
        body: dict[str, Any] = {"prompts": [prompt_of(p) for p in prompts], "responses": list(responses)}
        body |= columns_of(prompts, self._columns)
        answer = None
        while answer is None:
            more = {"tokens": self._tokens(tokens)} if self._offered(tokens) and "tokens" in self._wanted else {}
            answer = self._ask(json.dumps(body | more, default=str).encode(), self._headers(tokens))
        try:
            given = json.loads(answer)
        except (ValueError, RecursionError):  # 100,000 brackets, or a number of 5,000 digits
            given = None
        if not isinstance(given, dict) or list(given) != ["scores"] or not isinstance(given["scores"], list):
            raise RewardError(
                f'{self.label} must answer {{"scores": [a number for each response]}} and nothing else, and answered '
                f"{_start_of(answer)!r}"
            )
        if any(isinstance(score, bool) for score in given["scores"]):
            raise RewardError(f"{self.label} must answer numbers, and answered {_start_of(answer)!r}")
        return checked(given["scores"], len(responses), self.label)

    def _offered(self, tokens: Sequence[TokenIds]) -> bool:
        return self._tokenizer is not None and bool(tokens)

    def _headers(self, tokens: Sequence[TokenIds]) -> dict[str, str]:
        offers = {OFFERS: "tokens"} if self._offered(tokens) else {}
        return {"Content-Type": "application/json"} | offers | (self._authorization if "key" in self._wanted else {})

    def _tokens(self, tokens: Sequence[TokenIds]) -> dict[str, Any]:
        assert self._tokenizer is not None
        return {
            "mark": token_mark(self._tokenizer),
            "vocabulary": vocabulary_of(self._tokenizer),
            "prompts": [ids.prompt for ids in tokens],
            "responses": [ids.response for ids in tokens],
        }

    def _learns(self, error: urllib.error.HTTPError, headers: Mapping[str, str]) -> bool:
        """Whether a refusal asks for what this has and was not asked for before."""
        wants = error.headers.get(WANTS, "")
        has = (wants == "tokens" and OFFERS in headers) or (wants == "key" and bool(self._authorization))
        if not has or wants in self._wanted:
            return False
        self._wanted.add(wants)
        return True

    def _ask(self, body: bytes, headers: Mapping[str, str]) -> bytes | None:
        """The body of the answer, after as many tries as it takes; None if the service wants more than it was sent."""
        started = time.monotonic()
        for attempt in range(self.max_retries + 1):
            deadline = time.monotonic() + self.timeout
            try:
                return within(self.timeout, functools.partial(self._post, body, headers, deadline))
            except urllib.error.HTTPError as error:
                if self._learns(error, headers):
                    return None
                reason, again = self._refusal(error, deadline), error.code in RETRIED
            except (OSError, ValueError, http.client.HTTPException) as error:  # no connection, too late, cut off
                reason, again = str(getattr(error, "reason", error)) or type(error).__name__, True
                reason = without_secrets(one_line(reason))[:SHOWN]
            if not again or attempt == self.max_retries:
                seconds = time.monotonic() - started
                raise RewardError(
                    f"{self.label}: {reason} ({attempt + 1} tries in {seconds:.0f} s); is the reward service up? "
                    f"timeout says how long each try may take{through_proxy(self.url)}"
                )
            self._sleep(2.0**attempt)
        raise AssertionError

    def _post(self, body: bytes, headers: Mapping[str, str], deadline: float) -> bytes:
        """The body of one answer."""
        request = urllib.request.Request(  # noqa: S310 - http or https, see _parts_of
            self.url, body, dict(headers), method="POST"
        )
        answer = bytearray()
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as response:
            while chunk := response.read1(2**16):
                answer += chunk
                if len(answer) > MAX_ANSWER:
                    raise RewardError(f"{self.label} answered more than {MAX_ANSWER >> 20} MiB; scores need far less")
                if time.monotonic() > deadline:  # nobody waits for it any more
                    raise TimeoutError
            if response.length:  # read1 does not tell of a connection that was cut
                raise http.client.IncompleteRead(bytes(answer), response.length)
        return bytes(answer)

    def _refusal(self, error: urllib.error.HTTPError, deadline: float) -> str:
        """The status of an answer that is no success, and what its body says."""
        status = without_secrets(one_line(f"HTTP {error.code} {error.reason}"))[:SHOWN]
        if 300 <= error.code < 400:
            return f"{status}: redirects are not followed, so write the final address into url"
        try:
            left = max(deadline - time.monotonic(), 0.1)
            text = _start_of(within(left, functools.partial(error.read, 2**13)))
        except (OSError, ValueError, http.client.HTTPException):
            text = ""
        return f"{status}: {text}" if text else status


def _authorization() -> dict[str, str]:
    """The header with the key of `alignment score --serve`, if the environment has one.

    Raises:
        ConfigError: no header can hold it.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{KEY_VARIABLE} holds other characters than ASCII without spaces; export another key")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _parts_of(url: str) -> urllib.parse.SplitResult:
    """An address of http or https in its parts.

    Raises:
        ConfigError: it is none, or has what urllib does not send.
    """
    shown = f"rewards.others: url={without_secrets(url)!r}"
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # a ValueError if it is no number
    except ValueError as error:
        raise ConfigError(f"{shown} is no http:// or https:// address: {without_secrets(str(error))}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{shown} is no http:// or https:// address")
    if "@" in parts.netloc:
        raise ConfigError(f"{shown}: a user and password before the host are not sent; leave them out")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{shown}: write spaces and other characters than ASCII as %20 and the like")
    return parts


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: urllib would send a GET without the prompts, to any host."""

    def http_error_302(self, *args: Any, **options: Any) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """The result of a call on a thread of its own, so that a service that sends a byte now and then is not waited for.

    A timeout of a socket counts from the last byte. A call that is given up ends by itself, or with the process.

    Raises:
        TimeoutError: it takes longer.
    """
    results: queue.SimpleQueue[tuple[bytes, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            results.put((b"", error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"timed out: no whole answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _start_of(answer: bytes) -> str:
    """The start of an answer for a message; secrets are taken out before it is cut, which could hide them."""
    return without_secrets(one_line(answer[: 2**13].decode(errors="replace")))[:SHOWN]
