"""Scores of a reward model and log-probabilities of a policy for answers, in batches that nothing else decides.

A result depends on the model, the row and the rows of its batch alone: not on the number of processes, nor on where an
interrupted run went on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.sections import ModelConfig
from alignment.data.messages import answer_turns, with_answer
from alignment.data.trimming import trim_prompt
from alignment.distributed.processes import say, start_processes
from alignment.errors import ModelError
from alignment.evaluation.scored_rows import ScorableAnswers, untrained
from alignment.models.ensembles import RewardEnsemble, disagreement, load_reward_model
from alignment.models.forward import body_and_head, eval_mode, options_of, token_logprobs
from alignment.models.lengths import positions
from alignment.models.names import split_head
from alignment.models.policies import load_policy
from alignment.models.reward_files import is_ensemble
from alignment.models.same_tokenizer import PROBE
from alignment.models.scalar import ScalarModel
from alignment.models.selfcheck import CheckError, cut_rows, plain_logprobs, undisturbed, why_not_split, why_wrong
from alignment.models.sources import ModelSource, find_model
from alignment.models.tokenizers import load_tokenizer
from alignment.registry import Registry
from alignment.templates.ends import end_token_ids
from alignment.templates.rendering import (
    Encoded,
    Unrenderable,
    encode_conversation,
    encode_prompt,
    encode_text,
    encode_to_score,
)
from alignment.tensors import logprobs_from_logits, pad_rows

TOKENS_AT_ONCE = 8192
"""Of one forward pass, padding included; a longer sequence is a pass of its own."""
Role = Literal["reward", "policy"]
TOO_LONG = "its answer leaves no room for a prompt within {0} tokens"


class Scorer(Protocol):
    """What scores the answers of some rows."""

    source: ModelSource
    role: Role

    def score(self, batch: Sequence[ScorableAnswers]) -> list[dict[str, Any]]:
        """Columns of each row's line; `error` for one that cannot be scored."""
        ...


def role_of(source: ModelSource, registry: Registry) -> Role:
    """Whether a model is a reward model or a policy, by its manifest or its config.json.

    Raises:
        ModelError: it is a critic.
    """
    if source.ref is not None:
        role = registry.resolve(source.ref).manifest.role
        if role not in ("reward", "policy"):
            raise ModelError(f"{source.label}: a {role} model, which scores no answers; name a reward model or policy")
        return "reward" if role == "reward" else "policy"
    if is_ensemble(source):
        return "reward"
    try:
        classes = AutoConfig.from_pretrained(source.config_path).architectures or ()
    except (OSError, ValueError):
        classes = ()  # loading says what is wrong
    return "reward" if any("ForSequenceClassification" in name for name in classes) else "policy"


def load_scorer(
    name: str,
    registry: Registry,
    options: ModelConfig | None = None,
    max_length: int | None = None,
    several_heads: bool = False,
) -> Scorer:
    """The scorer of a registry reference, folder or hub name, on this process's device.

    Args:
        name: of a reward model with several heads also `REF#HEAD`.
        options: dtype, template and the like.
        max_length: tokens of a prompt with its answer; by default those that a reward model was trained with, and the
            positions that the model has.
        several_heads: the caller knows what to do with a score of each head.

    Raises:
        RegistryError, ModelError, TemplateError: it cannot be had.
    """
    name, head = split_head(name)
    source = find_model(name, registry, role=("reward", "policy", "value"))
    options = options or ModelConfig(name=name)
    role = role_of(source, registry)
    if role != "reward" and head is not None:
        raise ModelError(f"{source.label}: a policy, which has no head {head!a}; leave #{head} out")
    tokenizer = load_tokenizer(source, options)
    limit = max_length or (_trained_length(source, registry) if role == "reward" else None)
    known = positions(source.config_path, options.trust_remote_code)
    if known is not None:
        limit = known[0] if limit is None or (limit > known[0] and not known[1]) else limit
    if role == "reward":
        model = load_reward_model(source, options, several_heads=several_heads, head=head)
        return RewardScorer(source, model, tokenizer, limit, head)
    return PolicyScorer(source, load_policy(source, options), tokenizer, limit)


def _trained_length(source: ModelSource, registry: Registry) -> int | None:
    """`data.max_length` of the run that made a version, which trimmed longer prompts."""
    if source.ref is None:
        return None
    data = (registry.resolve(source.ref).manifest.config or {}).get("data")
    length = data.get("max_length") if isinstance(data, dict) else None
    return length if isinstance(length, int) and length > 0 else None


def batches_by_length(lengths: Sequence[int], max_tokens: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Places of sequences in batches of at most so many tokens with padding, shortest first."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if batch and lengths[place] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class RewardScorer:
    """Scores of answers through their end token, by a reward model or an ensemble; of several heads a column each."""

    role: Role = "reward"

    def __init__(
        self,
        source: ModelSource,
        model: ScalarModel | RewardEnsemble,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        head: str | None = None,
    ) -> None:
        self.source, self.tokenizer, self.max_length, self.head = source, tokenizer, max_length, head
        self.device = start_processes().device
        self.model = model.to(self.device).eval()
        self.heads = model.heads if isinstance(model, ScalarModel) else ()

    def score(self, batch: Sequence[ScorableAnswers]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = [{} for _ in batch]
        rows: list[list[int]] = []
        owners: list[int] = []
        for number, answers in enumerate(batch):
            if answers.text is not None:
                lines[number] = {"error": "a plain text, and a reward model scores an answer to a prompt"}
                continue
            if answers.tools:
                lines[number] = {"error": "the reward model would not see the tools"}
                continue
            encoded = self._encoded(answers)
            if encoded is None:
                lines[number] = {"error": TOO_LONG.format(self.max_length)}
                continue
            rows += encoded
            owners += [number] * len(encoded)
        for number, (score, spread, length) in zip(owners, self._scores(rows), strict=True):
            if isinstance(score, list):
                for name, value in zip(self.heads, score, strict=True):
                    lines[number].setdefault(f"scores/{name}", []).append(value)
            else:
                lines[number].setdefault("scores", []).append(score)
            lines[number].setdefault("tokens", []).append(length)
            if spread is not None:
                lines[number].setdefault("disagreement", []).append(spread)
        return lines

    def _encoded(self, answers: ScorableAnswers) -> list[list[int]] | None:
        """The tokens of each answer with its prompt; None if the answers are too long."""

        def encode(prompt: Sequence[Any]) -> list[list[int]]:
            rows = [encode_to_score(self.tokenizer, with_answer(tuple(prompt), text)) for text in answers.completions]
            return [row[:-1] if place in answers.cut else row for place, row in enumerate(rows)]

        encoded = encode(answers.prompt)
        longest = max(map(len, encoded))
        if self.max_length is None or longest <= self.max_length:
            return encoded
        room = self.max_length - (longest - len(encode_prompt(self.tokenizer, answers.prompt)))
        shorter = trim_prompt(self.tokenizer, answers.prompt, room) if room > 0 else None
        return None if shorter is None else encode(shorter)

    @torch.no_grad()
    def _scores(self, rows: Sequence[Sequence[int]]) -> list[tuple[float | list[float], float | None, int]]:
        found: list[tuple[float | list[float], float | None, int]] = [(math.nan, None, 0)] * len(rows)
        for places in batches_by_length([len(row) for row in rows]):
            ids, mask = pad_rows([rows[place] for place in places], self.tokenizer.pad_token_id, "right")
            ids, mask = ids.to(self.device), mask.to(self.device)
            spreads: list[float | None] = [None] * len(places)
            if isinstance(self.model, RewardEnsemble):
                members = self.model.member_scores(ids, mask)
                scores, spreads = self.model.combined(members).tolist(), disagreement(members).tolist()
            else:
                scores = self.model.score(ids, mask).tolist()
            for place, score, spread in zip(places, scores, spreads, strict=True):
                found[place] = (score, spread, len(rows[place]))
        return found


@dataclass(frozen=True)
class _Piece:
    """Part of an answer or text for one forward pass: `ids[kept]` are counted, the others are only read."""

    owner: int
    ids: list[int]
    kept: list[bool]
    ends: list[bool]
    """Counted tokens that end the answer, whose bits are not of the text."""


class PolicyScorer:
    """Log-probabilities of answers, or of whole texts, under a policy (at temperature 1)."""

    role: Role = "policy"

    def __init__(
        self,
        source: ModelSource,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
    ) -> None:
        self.source, self.tokenizer, self.max_length = source, tokenizer, max_length
        self.device = start_processes().device
        self.model = model.to(self.device).eval()
        self._ends = set(end_token_ids(tokenizer))
        self._split, self._alone = False, False
        self._check()

    def _check(self) -> None:
        """Take the short cuts that this model allows: the head on the counted tokens alone, and padded batches."""
        words = [encode_text(self.tokenizer, text) for text in (*PROBE, PROBE[0] + PROBE[1])]
        rows = cut_rows(words)
        with undisturbed(self.model):
            expected = plain_logprobs(self.model, rows)

            def ours() -> list[Tensor]:
                pieces = [_Piece(n, row, [False] + [True] * (len(row) - 1), []) for n, row in enumerate(rows)]
                return self._logprobs(pieces)

            self._split = why_not_split(self.model, rows[0]) is None
            self._split = self._split and why_wrong(self.model, ours, expected) is None
            reason = None if self._split else why_wrong(self.model, ours, expected)
            if reason is not None:
                say(f"score: {self.source.label} is given one row at a time: {reason}")
                self._alone = True
                if reason := why_wrong(self.model, ours, expected):
                    raise CheckError(f"{self.source.label}: {reason}; name another model")

    def score(self, batch: Sequence[ScorableAnswers]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = [{} for _ in batch]
        pieces: list[_Piece] = []
        sizes: list[tuple[int, int, int]] = []  # the line, bytes and words of each answer
        for number, answers in enumerate(batch):
            found = self._pieces(answers, len(sizes))
            if isinstance(found, str):
                lines[number] = {"error": found}
                continue
            pieces += found
            if answers.text is not None:
                sizes.append((number, len(answers.text.encode()), len(answers.text.split())))
            else:
                sizes += [(number, _bytes_of(text), len(text.split())) for text in answers.completions]
        sums = [[0.0, 0.0, 0.0, 0.0] for _ in sizes]
        for piece, logprobs in zip(pieces, self._logprobs(pieces), strict=True):
            values = logprobs.double().tolist()
            mine = sums[piece.owner]
            mine[0] += math.fsum(values)
            mine[1] += math.fsum(value for value, ends in zip(values, piece.ends, strict=True) if not ends)
            mine[2] += len(values)
            mine[3] += len(values) - sum(piece.ends)
        for (number, size, words), (total, of_text, tokens, text_tokens) in zip(sizes, sums, strict=True):
            line = lines[number]
            line.setdefault("logprobs", []).append(total)
            line.setdefault("tokens", []).append(int(tokens))
            line.setdefault("logprobs_per_token", []).append(total / max(tokens, 1))
            line.setdefault("bytes", []).append(size)
            line.setdefault("words", []).append(words)
            line.setdefault("text_tokens", []).append(int(text_tokens))
            line.setdefault("bits_per_byte", []).append(-of_text / math.log(2) / max(size, 1))
        return lines

    def _pieces(self, answers: ScorableAnswers, owner: int) -> list[_Piece] | str:
        """The pieces of a row's answers, from `owner` on; or why it cannot be scored."""
        if answers.text is not None:
            try:
                return self._of_text(encode_text(self.tokenizer, answers.text), owner)
            except Unrenderable as error:
                return str(error)
        try:
            encoded = self._encoded(answers)
        except Unrenderable as error:
            return str(error)
        if encoded is None:
            return TOO_LONG.format(self.max_length)
        return [_piece(each, owner + place, self._ends) for place, each in enumerate(encoded)]

    def _encoded(self, answers: ScorableAnswers) -> list[Encoded] | None:
        def encode(prompt: Sequence[Any]) -> list[Encoded]:
            before = untrained(prompt)
            return [
                encode_conversation(self.tokenizer, with_answer(before, text), answers.tools)
                for text in answers.completions
            ]

        encoded = encode(answers.prompt)
        longest = max(len(each.input_ids) for each in encoded)
        if self.max_length is None or longest <= self.max_length:
            return encoded
        if answers.tools:
            return None
        room = self.max_length - (longest - len(encode_prompt(self.tokenizer, answers.prompt)))
        shorter = trim_prompt(self.tokenizer, answers.prompt, room) if room > 0 else None
        return None if shorter is None else encode(shorter)

    def _of_text(self, ids: list[int], owner: int) -> list[_Piece]:
        """A text in windows that each count what the ones before did not, with half a window to read before it.

        Without a BOS an end token stands before the text, as between documents, so that its first token counts too
        and tokenizers can be compared.
        """
        text = ids[:-1]  # the EOS that `encode_text` adds is not of the text
        if text[:1] != [self.tokenizer.bos_token_id]:
            text = [self.tokenizer.eos_token_id, *text]
        width = self.max_length or len(text)
        pieces, counted = [], 1
        while counted < len(text):
            stop = min(len(text), width) if counted == 1 else min(len(text), counted + max(1, width // 2))
            start = max(0, stop - width)
            kept = [place >= counted for place in range(start, stop)]
            pieces.append(_Piece(owner, text[start:stop], kept, [False] * sum(kept)))
            counted = stop
        return pieces

    def _batches(self, pieces: Sequence[_Piece]) -> Iterator[list[int]]:
        if self._alone:
            return iter([[place] for place in range(len(pieces))])
        return batches_by_length([len(piece.ids) for piece in pieces])

    @torch.no_grad()
    def _logprobs(self, pieces: Sequence[_Piece]) -> list[Tensor]:
        """The log-probabilities of each piece's counted tokens, float32."""
        found: list[Tensor] = [torch.zeros(0)] * len(pieces)
        compute: Callable[..., Tensor] = self._by_head if self._split else self._by_logits
        for places in self._batches(pieces):
            rows = [pieces[place].ids for place in places]
            ids, mask = (x.to(self.device) for x in pad_rows(rows, self.tokenizer.pad_token_id, "right"))
            kept = torch.zeros(ids.shape, dtype=torch.bool)
            for row, place in enumerate(places):
                kept[row, : len(rows[row])] = torch.tensor(pieces[place].kept)
            kept = kept[:, 1:].to(self.device)
            with eval_mode(self.model):
                logprobs = compute(ids, mask, kept).float().cpu()
            for place, part in zip(places, logprobs.split([sum(pieces[place].kept) for place in places]), strict=True):
                found[place] = part
        return found

    def _by_head(self, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        layers = body_and_head(self.model)
        assert layers is not None
        body, head = layers
        hidden = body(input_ids=ids, attention_mask=mask, **options_of(body)).last_hidden_state
        return token_logprobs(head, hidden[:, :-1][kept], ids[:, 1:][kept], 1.0).logprobs

    def _by_logits(self, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        padding = {} if self._alone else {"attention_mask": mask}
        logits = self.model(input_ids=ids, **padding, **options_of(self.model)).logits
        return logprobs_from_logits(logits[:, :-1][kept], ids[:, 1:][kept])


def _piece(encoded: Encoded, owner: int, ends: set[int]) -> _Piece:
    kept = [place > 0 and is_kept for place, is_kept in enumerate(encoded.loss_mask)]
    counted = [token for token, is_kept in zip(encoded.input_ids, kept, strict=True) if is_kept]
    return _Piece(owner, encoded.input_ids, kept, [token in ends for token in counted])


def _bytes_of(text: str) -> int:
    """UTF-8 bytes of an answer's assistant turns, without white space around them, which templates trim."""
    turns = answer_turns(text)
    return sum(len(turn["content"].strip().encode()) for turn in turns if turn["role"] == "assistant")
