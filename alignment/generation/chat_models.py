"""Chat models: a model in the registry or a local folder, or a server with OpenAI's chat completions API."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from alignment.data.duplicates import digest
from alignment.errors import UserError
from alignment.proxies import through_proxy
from alignment.templates.rendering import Message
from alignment.terminal import one_line

if TYPE_CHECKING:
    from alignment.config.sections import ModelConfig
    from alignment.registry import Registry

ATTEMPTS = 6
_FORMAT = "response_format"
_LONGEST_WAIT = 60.0  # seconds, even if a server asks for more


@dataclass(frozen=True)
class ReplySampling:
    """Sampling settings; temperature 0 is greedy. `schema` is a JSON schema for the reply, which a server enforces and
    a local model does not."""

    temperature: float
    seed: int
    max_new_tokens: int
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """A model's reply. `whole` is false if it was truncated. Token counts are None if a server does not report them."""

    text: str
    whole: bool
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True)
class Failure:
    """The reason why one conversation has no reply; others may have one."""

    reason: str


@dataclass(frozen=True)
class _TryAgain:
    """A temporary error of a server, with its requested delay in seconds, if any."""

    said: str
    wait: float | None = None


class ChatModel(Protocol):
    """A model that replies to `batch_size` conversations per call, from up to `concurrency` threads."""

    label: str
    identity: str
    batch_size: int
    concurrency: int

    def ask(self, conversations: Sequence[Sequence[Message]], sampling: ReplySampling) -> list[Reply | Failure]: ...


class Endpoint:
    """A model behind an OpenAI-compatible URL.

    Temporary errors (408, 409, 429, 5xx), timeouts and lost connections are retried, up to `ATTEMPTS` attempts, with
    exponential backoff from `wait` seconds or the server's `Retry-After`. If a server refuses a schema (400, 422), the
    request is repeated without it, and if that succeeds, later requests have no schema.

    Args:
        url: ends with `/v1` or `/chat/completions`.
        key: sent as the bearer token; it is neither printed nor stored.
        timeout: seconds for one reply.
        option: what gave the URL, for messages.
    """

    batch_size = 1

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None,
        concurrency: int = 8,
        timeout: float = 300.0,
        wait: float = 1.0,
        option: str = "--url",
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"{option} {url}: not a URL: {error}") from None
        if parsed.userinfo or parsed.query:
            raise UserError(
                f"{option}: holds a user name or a query; put the key into an environment variable (--key-env)"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UserError(f"{option} {url}: expected http:// or https://, for example http://127.0.0.1:8000/v1")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError("--key-env: the key has a line break or another invalid character; set it again")
        path = parsed.path.rstrip("/").removesuffix("/chat/completions")
        self.label = model
        self.identity = f"{model} at {parsed.copy_with(path=path or '/')}"
        self.concurrency = concurrency
        self._wait = wait
        self._key = key
        self._has_answered = False
        self._takes_schemas = True
        self._url = str(parsed.copy_with(path=f"{path}/chat/completions"))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=20.0), limits=limits)

    def ask(self, conversations: Sequence[Sequence[Message]], sampling: ReplySampling) -> list[Reply | Failure]:
        return [self._ask(list(conversation), sampling) for conversation in conversations]

    def _ask(self, messages: list[Message], sampling: ReplySampling) -> Reply | Failure:
        body: dict[str, Any] = {
            "model": self.label,
            "messages": messages,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.schema is not None and self._takes_schemas:
            asked_for = {"name": "reply", "strict": True, "schema": sampling.schema}
            body[_FORMAT] = {"type": "json_schema", "json_schema": asked_for}
        said = ""
        for attempt in range(ATTEMPTS):
            outcome = self._attempt(body)
            if not isinstance(outcome, _TryAgain):
                return outcome
            said = outcome.said
            wait = self._wait * 2**attempt * (1 + random.random() / 4) if outcome.wait is None else outcome.wait
            if attempt + 1 < ATTEMPTS:
                time.sleep(min(wait, _LONGEST_WAIT))
        return Failure(f"no reply after {ATTEMPTS} attempts: {said}")

    def _attempt(self, body: dict[str, Any]) -> Reply | Failure | _TryAgain:
        try:
            response = self._client.post(self._url, json=body)
        except httpx.RequestError as error:
            problem = self._safe(f"{type(error).__name__}: {error}")
            if isinstance(error, httpx.ConnectError) and not self._has_answered:
                raise UserError(
                    f"{self._url}: {problem}; is the server running, and is it this URL?{through_proxy(self._url)}"
                ) from None
            return _TryAgain(problem)
        status = response.status_code
        if status == 200:
            reply = _reply(response)
            if reply:
                self._has_answered = True
                return reply
            problem = f"no chat completion but {self._safe(response.headers.get('content-type', ''))} "
            problem += repr(self._safe(response.text)[:80])
            if not self._has_answered:
                raise UserError(f"{self._url}: {problem}; expected an OpenAI-compatible URL, up to /v1")
            return _TryAgain(problem)
        problem = f"{status} {self._safe(_message(response))}"
        if status in (408, 409, 429) or status >= 500:
            return _TryAgain(problem, _retry_after(response))
        if status in (400, 422) and _FORMAT in body:
            outcome = self._attempt({name: value for name, value in body.items() if name != _FORMAT})
            if isinstance(outcome, Reply):
                self._takes_schemas = False
            return outcome
        return self._refusal(status, problem)

    def _refusal(self, status: int, said: str) -> Failure:
        """The failure of one conversation; an error that would affect all of them is raised."""
        if status in (401, 403):
            hint = "is the key the right one?" if self._key else "put a key into OPENAI_API_KEY, or name its --key-env"
            raise UserError(f"{self._url}: {said}; {hint}")
        if status in (404, 405) or 300 <= status < 400:
            raise UserError(f"{self._url}: {said}; is the model's name right, and does the URL end in /v1?")
        return Failure(f"refused by the server: {said}")

    def _safe(self, text: str) -> str:
        """Text that is safe to show. The key is removed before the text is shortened."""
        return one_line(text.replace(self._key, "[KEY]") if self._key else text)[:200]


def _reply(response: httpx.Response) -> Reply | None:
    try:
        answer = response.json()
        choice = answer["choices"][0]
        usage = answer.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [count if isinstance(count, int) else None for count in counts]
        text = choice["message"].get("content") or ""
        return Reply(text, choice.get("finish_reason") != "length", *tokens) if isinstance(text, str) else None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.text


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):  # missing, or a date
        return None


class LocalModel:
    """A policy from the registry, a folder or the hub, on the GPU if there is one."""

    concurrency = 1

    def __init__(
        self, name: str, config: ModelConfig | None = None, batch_size: int = 8, registry: Registry | None = None
    ) -> None:
        import torch

        from alignment.models.policies import load_policy
        from alignment.models.sources import find_model
        from alignment.models.tokenizers import fit_embeddings, load_tokenizer
        from alignment.registry import Registry

        source = find_model(name, registry or Registry(), "policy")
        self.batch_size = batch_size
        self.label = source.ref or Path(name).name
        self.identity = source.digest or _fingerprint(Path(source.path))
        self._tokenizer = load_tokenizer(source, config)
        self._policy = load_policy(source, config)
        fit_embeddings(self._policy, self._tokenizer)  # the config's pad token may be new
        self._policy.to("cuda" if torch.cuda.is_available() else "cpu")

    def ask(self, conversations: Sequence[Sequence[Message]], sampling: ReplySampling) -> list[Reply | Failure]:
        from alignment.generation.engine import complete
        from alignment.templates.rendering import encode_prompt

        prompts = list(conversations)
        lengths = [len(encode_prompt(self._tokenizer, prompt)) for prompt in prompts]
        limit = getattr(self._policy.config, "max_position_embeddings", None) or max(lengths) + sampling.max_new_tokens
        fits = [length + sampling.max_new_tokens <= limit for length in lengths]
        completions = iter(
            complete(
                self._policy,
                self._tokenizer,
                [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                batch_size=self.batch_size,
                seed=digest(f"{sampling.seed} {json.dumps(prompts)}"),
            )
        )
        replies: list[Reply | Failure] = []
        for length, fit in zip(lengths, fits, strict=True):
            if fit:
                completion = next(completions)
                replies.append(Reply(completion.text, completion.ended, length, len(completion.ids)))
            else:
                reason = f"{length} tokens of prompt and {sampling.max_new_tokens} of reply exceed the model's {limit}"
                replies.append(Failure(reason))
        return replies


def _fingerprint(folder: Path) -> str:
    """A fingerprint of a folder's file names, sizes and times; a hub name is its own fingerprint."""
    if not folder.is_dir():
        return str(folder)
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return f"{folder.name} {digest(repr(stats)):x}"
