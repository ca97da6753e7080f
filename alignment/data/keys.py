"""Keys of known meaning. A row that holds one which its shape does not read is refused by name, never read without it.

`alignment.data.shapes` says which shape reads which key. A key that stands in neither table means nothing to us: it is
listed once as "not used".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeGuard

from alignment.data.row_files import BadRow

Changes = Literal["prompt", "answer", "media"]


@dataclass(frozen=True)
class KnownKey:
    """A meaning and the names that it has in files; the first is ours.

    `changes` says what is learned otherwise without it: the prompt, how an answer counts, or (media) both, and no shape
    reads it. `may_repeat`: data sets repeat it beside the conversation that holds it already, which is harmless.
    `by_format`: naming another format (`data.format`) says that it is not meant. `pattern` matches further names.
    `fix`: what to do about it where no shape reads it, instead of a new name. `only_in`: the shapes in which it has
    this meaning, none for all. `at_least`: how many of such keys a row must have. `false_is_plain`: false says nothing.
    """

    names: tuple[str, ...]
    about: str
    changes: Changes
    may_repeat: bool = False
    by_format: bool = False
    pattern: str = ""
    fix: str = "rename it"
    only_in: tuple[str, ...] = ()
    at_least: int = 1
    false_is_plain: bool = False


ANSWERED = ("completion", "alpaca", "faq", "rag", "chat", "sharegpt")
"""Shapes of one answer or one conversation that SFT learns."""
_ASKED_ALONE = ("completion", "alpaca", "faq", "rag", "prompt")
VOTED = ("arena", "strength", "safety", "webgpt", "vote")
"""Shapes of two answers of which somebody chose one."""
_CORRECTED = "corrected|edited|revised|fixed|improved|rewritten|amended|reworked|proofread|post_?edited|reworded"
_TEXTS = "answer|response|output|completion|reply|text|message|generation|content"
_IMPORT = "`alignment rate import` reads such votes into a ratings database"
KEYS = (
    KnownKey(
        (
            *("system", "system_prompt", "system_message", "sys", "sys_prompt", "system_instruction"),
            *(
                "system_instructions",
                "systemInstruction",
                "systemPrompt",
                "systemprompt",
                "preamble",
                "developer",
                "developer_message",
                "instructions",
            ),
        ),
        "the system turn",
        "prompt",
        True,
        fix="rename it (--column system=NAME the system turn, --column instruction=NAME the task)",
    ),
    KnownKey(
        ("persona",),
        "whom the assistant or the user plays",
        "prompt",
        True,
        fix="--column system=persona reads it as the system turn",
    ),
    KnownKey(("tools", "functions"), "what the assistant may call", "prompt"),
    KnownKey(("prompt", "query"), "the question, or the turns before the answer", "prompt", True, True),
    KnownKey(("instruction",), "the task", "prompt", True, True),
    KnownKey(("question",), "the question", "prompt", True, True),
    KnownKey(("input",), "what the task is applied to", "prompt", True),
    KnownKey(
        ("context", "documents", "passages"),
        "texts to answer from",
        "prompt",
        True,
        fix="rename it (--column system=NAME reads it as the system turn)",
    ),
    KnownKey(
        ("full_chosen", "full_rejected", "initial_reason_steps"),
        "the whole answers, of which `chosen` and `rejected` are parts, or their beginning",
        "answer",
        True,
        fix="--column chosen=full_chosen --column rejected=full_rejected reads the whole answers",
        only_in=("pair",),
        pattern="full_chosen|full_rejected|initial_reason_steps",
    ),
    KnownKey(("distractors",), "documents that do not help", "prompt", True),
    KnownKey(("messages", "conversations", "conversation"), "a conversation", "prompt", True, True),
    KnownKey(
        ("history", "chat_history", "conversation_history", "previous_messages"),
        "earlier turns, or exchanges of [question, answer]",
        "prompt",
        True,
    ),
    KnownKey(("unanswerable", "is_impossible"), "the documents do not answer the question", "answer"),
    KnownKey(
        (
            *("reasoning_content", "thinking", "reasoning", "complex_cot", "cot", "chain_of_thought", "thought"),
            *("thoughts", "reasoning_trace"),
        ),
        "the reasoning before the answer",
        "answer",
        True,
    ),
    KnownKey(
        ("choices", "options"),
        "the choices of a question",
        "prompt",
        True,
        fix="write them into the question, and the right one as the answer",
    ),
    KnownKey(
        ("answer_key", "answerkey", "answer_index", "answer_idx", "correct_option"),
        "which choice is right",
        "answer",
        fix="write the right choice as the answer",
    ),
    KnownKey(
        ("option_a", "choice_a", "opa", "A"),
        "one choice of a question",
        "prompt",
        True,
        pattern=r"(option|choice)_?([a-f]|[1-6])|op[a-d]|[a-f]",
        fix="write the choices into the question, and the right one as the answer",
        only_in=_ASKED_ALONE,
        at_least=2,
    ),
    KnownKey(
        ("corrected_answer", "edited_response", "correction"),
        "an answer that somebody corrected",
        "answer",
        pattern=(
            rf"((human|expert|manually|final|user)_)?({_CORRECTED})_(model_|human_)?({_TEXTS})|({_TEXTS})_({_CORRECTED})"
            rf"|(final|ideal|improved)_({_TEXTS.removeprefix('answer|')})|(human_|post_|user_|suggested_)?(edit|correction|rewrite|revision)"
        ),
        fix="write it as the answer",
    ),
    KnownKey(
        ("displayed_left", "display_order", "swapped"),
        "in which order the answers were shown",
        "answer",
        pattern=(
            r"(displayed|shown|presented|screen)_(left|right|first|second|a|b|order|on_left)|(left|right)_(is|was|answer_is|model)"
            r"|(display|presentation|shown|screen|answer|response)_order|order_shown|order_(was_)?(swapped|flipped|reversed)"
            r"|(is_|was_|sides_|answers_|responses_|positions?_)?(swapped|flipped|reversed)"
        ),
        fix="write who won by the name of its answer (response_a)",
        only_in=VOTED,
        false_is_plain=True,
    ),
    KnownKey(
        ("final_preference", "human_override", "is_flipped"),
        "that the pair was judged otherwise later",
        "answer",
        pattern=(
            r"(final|human|expert|corrected|true|adjudicated|revised|gold|override|overridden)_(preference|choice|label|winner"
            r"|verdict|override|decision)|override|overridden|adjudicated|adjudication"
            r"|(is_|was_|label_|labels_|preference_|pair_)?(swapped|flipped|reversed|inverted)"
        ),
        fix="swap `chosen` and `rejected` where it says so, and take the key out",
        only_in=("pair", *VOTED),
        false_is_plain=True,
    ),
    KnownKey(("chosen",), "the preferred answer", "answer", True),
    KnownKey(
        ("rejected", "rejected_response"),
        "the other answer",
        "answer",
        fix="write the conversation twice, as `chosen` and `rejected`, each with its answer",
    ),
    KnownKey(("margin",), "by how much the chosen answer must lead", "answer"),
    KnownKey(("ranks", "rank", "ranking"), "the place of each answer, 1 is the best", "answer"),
    KnownKey(("scores", "ratings", "rewards"), "the score of each answer, higher is better", "answer"),
    KnownKey(("rating", "score", "reward"), "how good the answer is", "answer", by_format=True),
    KnownKey(
        (
            "label",
            "quality",
            "kto_tag",
            "desirable",
            "is_desirable",
            "is_good",
            "thumbs_up",
            "liked",
            "labels",
            "is_safe",
            "accepted",
            "is_accepted",
            "is_correct",
            "approved",
        ),
        "whether the answer is a good one, true or false",
        "answer",
    ),
    KnownKey(("winner", "vote", "verdict"), "which answer won", "answer"),
    KnownKey(("best", "worst"), "which answer is the best, or the worst", "answer", fix=_IMPORT),
    KnownKey(
        ("completion", "response", "output", "answer"),
        "an answer",
        "answer",
        True,
        True,
        fix="rename it (beside messages that end with the user's, --column prompt=messages --column completion=NAME)",
    ),
    KnownKey(
        ("answer_a", "answer_b", "answer_0", "answer_1"),
        "one of several answers",
        "answer",
        True,
        True,
        r"(answer|response|output|completion)_?([a-i]|\d)",
        _IMPORT,
    ),
    KnownKey(
        ("score_chosen", "score_rejected"),
        "the score of the chosen or the rejected answer",
        "answer",
        pattern=r"(score|rating|reward)[_-](chosen|rejected)|(chosen|rejected)[_-](score|rating|reward)",
    ),
    KnownKey(
        ("rater1", "rater_1", "annotator_1"),
        "what one of several raters said",
        "answer",
        pattern=r"(rater|annotator|labell?er|judge|worker|evaluator|reviewer)[_ -]?\d+",
        fix=_IMPORT,
    ),
    KnownKey(
        (
            *("train", "loss", "trainable", "training", "loss_mask", "train_on_turn", "should_train"),
            *("train_on", "need_loss", "output_with_loss", "loss_scale"),
        ),
        "false: do not train on it",
        "answer",
    ),
    KnownKey(("weight", "loss_weight", "sample_weight"), "how much it counts in the loss", "answer"),
    KnownKey(
        ("mask", "masked", "ignore", "train_detail", "no_loss", "ignore_loss"),
        "which parts are not trained on",
        "answer",
    ),
    KnownKey(
        (
            *("labeler", "annotator", "annotator_id", "rater", "judge", "worker", "rated_by", "rater_id", "labeler_id"),
            *("worker_id", "evaluator", "reviewer", "annotated_by", "judged_by", "labeled_by"),
        ),
        "who judged",
        "answer",
        True,
    ),
    KnownKey(
        ("images", "image", "image_url", "image_path", "pixel_values", "videos", "video", "audios", "audio"),
        "images, films and sound",
        "media",
    ),
    KnownKey(("chat_template_kwargs",), "arguments of a chat template", "media"),
)
BY_NAME: dict[str, KnownKey] = {name: key for key in KEYS for name in key.names}
_PATTERNS = [(re.compile(key.pattern), key) for key in KEYS if key.pattern]


@lru_cache(maxsize=1 << 14)
def plain_key(name: str) -> str:
    """A key in lower case with `_` between its words: `use_for_training` of `Use for training?` or `useForTraining`."""
    apart = re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")


def known_key(name: Any, shape: str = "") -> KnownKey | None:
    """The meaning of a key in rows of a shape; None if it means nothing to us."""
    if name in BY_NAME and not BY_NAME[name].only_in:
        return BY_NAME[name]
    if not isinstance(name, str):
        return None
    plain = plain_key(name)
    found = (
        key
        for pattern, key in _PATTERNS
        if (not key.only_in or shape in key.only_in) and (pattern.fullmatch(name) or pattern.fullmatch(plain))
    )
    return next(found, None)


PASSAGE_NAMES = ("source_id", "passage_id")
"""They name the passage that a row was made of, and `alignment data split` keeps rows of one passage together."""
HARMLESS_ELSEWHERE = frozenset(BY_NAME["labeler"].names)
"""They change an answer only where it is judged; who wrote a demonstration does not."""
YES = ("true", "1", "1.0", "yes", "y", "x", "t", "on", "ja", "oui", "si", "sí", "sim", "да", "是", "✓", "✔", "✅")
NO = ("false", "0", "0.0", "no", "n", "f", "off", "nein", "non", "não", "нет", "否", "✗", "✘", "❌")
"""Words for true and false in lower case."""


def is_empty(value: Any) -> bool:
    """Whether a key with this value says nothing."""
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def refuse_unread(
    row: Mapping[str, Any], names: Collection[str], read: Collection[str], shape: str, changes: Collection[Changes]
) -> None:
    """Refuse a row that says something which its shape does not read.

    Args:
        names: the keys of known meaning that the shape does not read.
        read: those which it reads; a text that these hold already may be repeated.
        changes: what matters to the reader; PPO learns from no answer of the file.

    Raises:
        BadRow: names the key, its meaning and what to do.
    """
    for name in names:
        key, value = known_key(name, shape), row.get(name)
        if key is None or key.changes not in changes or is_empty(value) or _says_nothing(key, value):
            continue
        if key.may_repeat and repeats(value, [row.get(other) for other in read]):
            continue
        if key.changes == "media":
            raise BadRow(f"'{name}': {key.about} are not supported; take such rows out, or {_leave_out(name)}")
        reads_label = key is BY_NAME["label"] and shape in ANSWERED and not isinstance(value, list | dict)
        rename = f"--column label={name} reads it" if reads_label else key.fix.replace("=NAME", f"={name}")
        if key is BY_NAME["choices"] and is_api_answer(value):
            rename = f"--column prompt=messages --column completion={name} reads it as the answer"
        raise BadRow(f"'{name}' ({key.about}) is not read in {shape} rows; {rename}, or {_leave_out(name)}")


def _leave_out(name: str) -> str:
    return f"{without(name)} reads the rows without it"


def is_api_answer(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a value is OpenAI's `choices`: answers of a model, each with its `message`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and "message" in each for each in value)
    )


def without(name: str) -> str:
    """The two ways to read rows without a key, as a command takes them."""
    option = f"--column {name}=" if re.fullmatch(r"[\w.:-]+", name) else f"--column {shlex.quote(name + '=')}"
    quoted = name if re.fullmatch(r"[\w -]+", name) else '"' + name.replace('"', '\\"') + '"'
    return f"data.columns='{{{quoted}: null}}' ({option})"


def _says_nothing(key: KnownKey, value: Any) -> bool:
    """Whether the key asks for what happens anyway."""
    if key.false_is_plain and isinstance(value, bool | int | str):
        return str(value).strip().lower() in (*NO, "chosen")
    return key.names[0] in ("train", "weight") and value in (True, 1)


def repeats(value: Any, others: list[Any]) -> bool:
    """Whether each string in a value stands in the row's other keys too."""
    held = [text for other in others for text in strings(other)]
    texts = [text.strip() for text in strings(value)]
    return bool(texts) and all(any(text in other for other in held) for text in texts)


def strings(value: Any, depth: int = 8) -> Iterator[str]:
    """Yield the strings in a value; numbers and what lies deeper than `depth` are left out."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from strings(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from strings(item, depth - 1)
