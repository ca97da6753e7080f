"""A reward model behind HTTP, as `rewards.others[].url` asks for it: `alignment score MODEL --serve`.

What one request asks is laid out and computed exactly as a PPO process does with a model of its own
(`ppo.reward_model`), and requests are computed one after the other. Rows of two requests in one forward pass would be
faster, but matrix products round differently with the number of rows, so a run would no longer equal one with the model
held in process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.loading import validate
from alignment.config.sections import ModelConfig
from alignment.distributed import processes
from alignment.errors import UserError, require_extra
from alignment.models.ensembles import load_reward_model
from alignment.models.forward import switch_off_dropout
from alignment.models.names import split_head
from alignment.models.same_tokenizer import PROBE, token_mark
from alignment.models.selfcheck import CheckError, undisturbed, why_wrong
from alignment.models.sources import find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.rendering import Message, encode_text
from alignment.terminal import one_line, say
from ppo.batch_plan import NO_GRADIENT
from ppo.config import ModelsConfig
from ppo.loading import text_scorer, token_limit, token_scorer
from ppo.options import combination
from ppo.reward_model import RewardModel
from ppo.reward_services import OFFERS, WANTS
from ppo.roles import pack_if_possible
from ppo.rows import Row

MAX_BODY = 2**28
"""Bytes of one request: 65,536 responses of 4 KiB."""
MAX_RESPONSES = 2**16
MOST_WAITING = 256
"""Requests that wait for their turn; a further one is told to come again, and PPO does."""
LOCAL = ("127.0.0.1", "localhost", "::1")
ROLES = ("system", "user", "assistant", "tool")


class BadRequest(Exception):
    """A request that is not of the protocol, with what is wrong and the status to answer with."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Asked(NamedTuple):
    """What a request asks: the responses as conversations, and as the policy's tokens if it sent them."""

    conversations: list[list[Message]]
    rows: list[Row] | None
    mark: str
    vocabulary: int


class ScoringService:
    """One reward model or ensemble that scores requests.

    Args:
        packing, max_tokens, bf16: as a PPO run settles them from `training.packing`, `training.microbatch_tokens` and
            `training.bf16`; with other values scores differ in their last digits.
        max_length: `data.max_length` of the run.
        combine: of an ensemble, `model.reward_ensemble`.
    """

    def __init__(
        self,
        name: str,
        registry: Registry,
        *,
        packing: bool = True,
        microbatch_tokens: int = 2048,
        max_length: int = 1024,
        bf16: bool | None = None,
        combine: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        given = {"policy": "-", "reward_ensemble": combine, "trust_remote_code": trust_remote_code}
        options = ModelConfig(name=name, trust_remote_code=trust_remote_code)
        name, head = split_head(name)
        self.source = find_model(name, registry, role="reward")
        self.bf16 = processes.bf16_by_default() if bf16 is None else bf16
        self.device = processes.start_processes().device
        combined = combination(validate(ModelsConfig, given, "--combine"))
        model = load_reward_model(self.source, options, head=head, **combined)
        self.model = model.to(self.device).eval()
        switch_off_dropout(self.model)
        self.tokenizer = load_tokenizer(self.source, options)
        self.mark, self.limit = token_mark(self.tokenizer), token_limit(self.model)
        self.by_text = text_scorer(self.source, self.model, self.tokenizer, options)
        self.by_tokens = token_scorer(self.model) if self.limit else None
        for scorer in filter(None, (self.by_text, self.by_tokens)):
            scorer.max_tokens = NO_GRADIENT * microbatch_tokens
        if self.by_tokens is not None:
            self._choose_layout(self.by_tokens, packing, max_length)

    def _choose_layout(self, scorer: RewardModel, packing: bool, max_length: int) -> None:
        """Packed rows where the model can, once their scores equal those of single rows, as `ppo.selfcheck` has it."""
        rows = _probe(self.tokenizer)
        with self._computing(), undisturbed(self.model):
            alone = [self._members(scorer, [row]) for row in rows]
            scale = max(1.0, *(float(score.abs().max()) for score in alone))

            def together() -> Sequence[Tensor]:
                return list(self._members(scorer, rows).split(1, dim=1))

            if packing and pack_if_possible(scorer.members, max_length) is None:
                scorer.packed = True
                if reason := why_wrong(self.model, together, alone, scale):
                    say(f"score: rows are padded, not packed: {one_line(reason)}")
                    scorer.packed = False
            if not scorer.packed and (reason := why_wrong(self.model, together, alone, scale)):
                raise CheckError(f"{self.source.label}: {reason}; name another reward model")

    def _members(self, scorer: RewardModel, rows: Sequence[Row]) -> Tensor:
        return scorer.member_scores(rows, [], self.device)

    @contextlib.contextmanager
    def _computing(self) -> Any:
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            yield

    def score(self, asked: Asked) -> list[float]:
        """The score of each response, rounded by nothing that PPO's own scoring does not do.

        Raises:
            BadRequest: a token id that the model does not know.
            LengthError: a conversation is longer than the model's positions.
        """
        same = asked.mark == self.mark and asked.vocabulary <= self.limit
        scorer, rows = self.by_text, []
        if asked.rows is not None and same and self.by_tokens is not None:
            scorer, rows = self.by_tokens, asked.rows
            if any(not 0 <= token < self.limit for row in rows for token in (*row.prompt, *row.response)):
                raise BadRequest(f"tokens: the reward model has the ids 0 to {self.limit - 1}")
        with self._computing():
            scores, _ = scorer.combined(scorer.member_scores(rows, asked.conversations, self.device))
        found: list[float] = scores.tolist()
        return found


def _probe(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Two responses to one prompt, which packing computes once, and one to another prompt."""
    first, second = (encode_text(tokenizer, text) for text in PROBE)
    return [Row(first[:9], second[:8]), Row(first[:9], first[2:7]), Row(second[:6], first[:6])]


def parse(body: bytes) -> Asked:
    """A request's body: `{"prompts": [...], "responses": [...], "tokens": {...}, COLUMN: [...]}`.

    Raises:
        BadRequest: it is something else.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON") from None
    prompts, responses = (given.get(name) if isinstance(given, dict) else None for name in ("prompts", "responses"))
    if not isinstance(prompts, list) or not isinstance(responses, list) or len(prompts) != len(responses):
        raise BadRequest('expected {"prompts": [...], "responses": [...]} with as many of each')
    if not 1 <= len(responses) <= MAX_RESPONSES:
        raise BadRequest(f"{len(responses)} responses; expected 1 to {MAX_RESPONSES}", 413 if responses else 400)
    if not all(isinstance(response, str) for response in responses):
        raise BadRequest("responses: expected strings")
    conversations = [
        [*_messages(prompt, number), Message(role="assistant", content=response)]
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    tokens = given.get("tokens")
    if tokens is None:
        return Asked(conversations, None, "", 0)
    return Asked(conversations, *_rows_of(tokens, len(responses)))


def _messages(prompt: Any, number: int) -> list[Message]:
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    wanted = isinstance(prompt, list) and all(
        isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str) for turn in prompt
    )
    if not wanted or not prompt:
        raise BadRequest(f"prompts[{number}]: expected a text, or a list of messages with `role` and `content`")
    messages: list[Message] = prompt
    return messages


def _rows_of(tokens: Any, count: int) -> tuple[list[Row], str, int]:
    problem = BadRequest("tokens: expected `mark`, `vocabulary`, and lists of ids for each prompt and response")
    if not isinstance(tokens, dict):
        raise problem
    columns = [tokens.get("prompts"), tokens.get("responses")]
    for column in columns:
        if not isinstance(column, list) or len(column) != count:
            raise problem
        if not all(isinstance(ids, list) and ids and all(type(token) is int for token in ids) for ids in column):
            raise problem
    mark, vocabulary = tokens.get("mark"), tokens.get("vocabulary")
    if not isinstance(mark, str) or type(vocabulary) is not int:
        raise problem
    rows = [Row(prompt, response) for prompt, response in zip(*columns, strict=True)]
    return rows, mark, vocabulary


# --- HTTP ------------------------------------------------------------------------------------------------------------


def make_app(service: ScoringService, token: str | None = None, hosts: Sequence[str] = LOCAL) -> Any:
    """The service as an ASGI application: POST /score, and GET /health.

    Args:
        token: what a request must bring, as `Authorization: Bearer TOKEN`.
        hosts: names in the address that it answers to; `*` for any. Another name may be DNS rebinding.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    turn = asyncio.Lock()
    waiting = 0

    def may(request: Request) -> bool:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer if scheme.lower() == "bearer" else ""
        return token is None or hmac.compare_digest(given.encode(), token.encode())

    async def health(request: Request) -> JSONResponse:
        known = {"model": service.source.label, "digest": service.source.digest} if may(request) else {}
        return JSONResponse({"status": "ok", **known})

    async def score(request: Request) -> JSONResponse:
        nonlocal waiting
        if not may(request):
            await _drop(request)
            needed = "a key is needed: Authorization: Bearer KEY; a run sends that of its ALIGNMENT_SCORE_TOKEN"
            return JSONResponse({"error": needed}, 401, {WANTS: "key", "WWW-Authenticate": "Bearer"})
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"error": "expected Content-Type: application/json"}, 415)
        if waiting >= MOST_WAITING:
            return JSONResponse({"error": f"{waiting} requests are waiting"}, 503)
        waiting += 1
        try:
            asked = await run_in_threadpool(parse, await _body(request))
            if asked.rows is None and service.by_tokens is not None and request.headers.get(OFFERS) == "tokens":
                return JSONResponse({"error": "send the tokens that you have"}, 428, {WANTS: "tokens"})
            async with turn:
                scores = await run_in_threadpool(service.score, asked)
        except BadRequest as error:
            return JSONResponse({"error": str(error)}, error.status)
        except UserError as error:
            return JSONResponse({"error": one_line(str(error))}, 400)
        finally:
            waiting -= 1
        return JSONResponse({"scores": scores})

    routes = [Route("/health", health), Route("/score", score, methods=["POST"])]
    hosts_only = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts_only])


async def _drop(request: Any) -> None:
    """Read what a refused request brings: a connection that is closed while it sends would look broken to it."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            return


async def _body(request: Any) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise BadRequest(f"a request of more than {MAX_BODY >> 20} MiB", 413)
    return bytes(body)


def serve(
    name: str,
    *,
    registry: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8100,
    token: str | None = None,
    **options: Any,
) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: the port is taken, the model is none, or the service would be open to everybody.
    """
    require_extra("rating", "starlette", "uvicorn", purpose="alignment score --serve")
    import uvicorn

    if host not in LOCAL and token is None:
        raise UserError(
            f"--host {host}: anybody who reaches this machine could use the service; set the environment variable "
            "ALIGNMENT_SCORE_TOKEN to a long random text, here and where the run is"
        )
    listener = _listen(host, port)
    with listener:
        service = ScoringService(name, Registry(registry), **options)
        app = make_app(service, token, LOCAL if host in LOCAL else ("*",))
        config = uvicorn.Config(
            app, lifespan="off", ws="none", log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/score"
        layout = "by text" if service.by_tokens is None else "packed" if service.by_tokens.packed else "padded"
        print(f"Scores by {service.source.label} ({layout}): {url} (Ctrl-C ends it)", file=sys.stderr)
        print(f"In a run: rewards.others='[{{url: \"{url}\"}}]'", file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--port {port}: cannot listen on {host} ({reason}); choose another port") from None
