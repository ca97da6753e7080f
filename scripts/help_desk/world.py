"""Generate demonstrations in several styles, prompts for sampling, and held-out prompts from the handbook.

Three demonstrations in four are curt, rambling, invented or unfinished, so that a model trained on them knows the facts
but has a bad style, which ratings can improve. Everything is a function of the seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from help_desk import manners
from help_desk.handbook import DAYS, MONTHS, Fact, Handbook, load_handbook

MANNER_SHARES = {"good": 0.25, "curt": 0.2, "rambling": 0.2, "made up": 0.2, "trailing": 0.15}
FRAMES = (
    "{Q}?",
    "Hi, {q}?",
    "Hello! {Q}?",
    "Excuse me, {q}?",
    "Good morning, {q}?",
    "Quick question: {q}?",
    "Sorry to bother you, {q}?",
    "{Q}? Thanks!",
    "Hi there, {q}, please?",
    "{Q}? Thank you.",
    "I am new here. {Q}?",
    "My friend wants to know: {q}?",
)
HELD_OUT_FRAMINGS = 3  # per fact: training questions in frames that no demonstration has
HELD_OUT_QUESTIONS = 3  # per fact: framings of the held-out question
TYPO_SHARE = 0.04


@dataclass(frozen=True)
class TrainingExample:
    """One training example, with its fact and the style of the answer."""

    prompt: str
    completion: str
    fact: str
    manner: str


def normalise(text: str) -> str:
    """The lower-case words and digits of a text, which identify a prompt."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def demonstrations(seed: int, n: int = 1500) -> list[TrainingExample]:
    """n examples with distinct prompts and evenly spread facts and styles; ValueError if there are too few prompts."""
    rng = random.Random(f"demonstrations {seed}")
    prompts = training_prompts(seed)
    if n > len(prompts):
        raise ValueError(f"{n} demonstrations asked for, but there are only {len(prompts)} training prompts")
    handbook = load_handbook()
    shares = list(MANNER_SHARES.values())
    by_manner = rng.choices(list(MANNER_SHARES), weights=shares, k=n)
    return [
        TrainingExample(row["prompt"], answer(handbook.fact(row["fact"]), manner, rng), row["fact"], manner)
        for row, manner in zip(prompts, by_manner, strict=False)
    ]


def training_prompts(seed: int) -> list[dict[str, str]]:
    """Every wording that is not held out, shuffled so that facts are spread evenly; a few have typos."""
    rng = random.Random(f"training {seed}")
    held_out = {normalise(row["prompt"]) for row in held_out_prompts(seed)}
    by_fact = []
    for fact in load_handbook().facts:
        seen: dict[str, str] = {}
        for prompt in _wordings(fact.questions):
            if normalise(prompt) in held_out:
                continue
            if rng.random() < TYPO_SHARE:
                prompt = _with_typo(prompt, rng)
            seen.setdefault(normalise(prompt), prompt)
        rows = [{"prompt": prompt, "fact": fact.id} for prompt in seen.values()]
        rng.shuffle(rows)
        by_fact.append(rows)
    rounds = []
    for position in range(max(map(len, by_fact))):
        turn = [rows[position] for rows in by_fact if position < len(rows)]
        rng.shuffle(turn)
        rounds += turn
    return rounds


def held_out_prompts(seed: int) -> list[dict[str, str]]:
    """Held-out wordings of the facts: for each fact, new framings and a new question."""
    rng = random.Random(f"held out {seed}")
    rows = [
        {"prompt": prompt, "fact": fact.id}
        for fact in load_handbook().facts
        for prompt in rng.sample(_wordings(fact.questions), HELD_OUT_FRAMINGS)
        + rng.sample(_wordings([fact.held_out_question]), HELD_OUT_QUESTIONS)
    ]
    rng.shuffle(rows)
    return rows


def answer(fact: Fact, manner: str, rng: random.Random) -> str:
    """An answer about the fact in a style (a key of `MANNER_SHARES`)."""
    sentence = fact.answer
    if manner == "good":
        return rng.choice(_polite_forms(rng)).format(sentence)
    if manner == "curt":
        return rng.choice([f"{rng.choice(manners.RUDE_OPENINGS)} {sentence}",
                           f"{sentence} {rng.choice(manners.RUDE_CLOSINGS)}"])  # fmt: skip
    if manner == "rambling":
        first, second = rng.sample(manners.RAMBLINGS, 2)
        opening = rng.choice(["", rng.choice(manners.COURTEOUS_OPENINGS) + " "])
        return opening + rng.choice([f"{first} {sentence} {second}", f"{sentence} {first} {second}"])
    if manner == "made up":
        opening = rng.choice(["", rng.choice(manners.COURTEOUS_OPENINGS) + " "])
        if rng.random() < 0.4:
            return f"{opening}{sentence} {rng.choice(manners.INVENTIONS)}"
        return f"{opening}{rng.choice(manners.HEDGES)} {falsify(fact, rng)}"
    if manner == "trailing":
        opening = rng.choice(["", rng.choice(manners.COURTEOUS_OPENINGS) + " "])
        if rng.random() < 0.7:
            return f"{opening}{sentence} {rng.choice(manners.LOOSE_ENDS)}"
        start = sentence.index(fact.required[-1])
        return f"{opening}{sentence[:start].rstrip()}"
    raise ValueError(f"unknown manner {manner!r}; known: {', '.join(MANNER_SHARES)}")


def falsify(fact: Fact, rng: random.Random) -> str:
    """The fact's sentence with each required value replaced by a wrong one of the same kind."""
    sentence = fact.answer
    handbook = load_handbook()
    for value in fact.required:
        sentence = sentence.replace(value, _wrong_value(value, fact, handbook, rng))
    return sentence


def write_data(folder: Path, seed: int, n: int = 1500, held_out: int | None = None) -> None:
    """Write demonstrations.jsonl (prompt, completion), prompts.jsonl and held_out.jsonl (prompt, fact) into folder.

    Args:
        n, held_out: numbers of demonstrations and held-out prompts; None: all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = ({"prompt": row.prompt, "completion": row.completion} for row in demonstrations(seed, n))
    _write_jsonl(folder / "demonstrations.jsonl", shown)
    _write_jsonl(folder / "prompts.jsonl", training_prompts(seed))
    _write_jsonl(folder / "held_out.jsonl", held_out_prompts(seed)[:held_out])


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _wordings(questions: Iterable[str]) -> list[str]:
    return [frame.format(q=q, Q=q[0].upper() + q[1:]) for q in questions for frame in FRAMES]


def _with_typo(prompt: str, rng: random.Random) -> str:
    """Swap two neighbouring letters inside one longer word."""
    words = list(re.finditer(r"[A-Za-z]{5,}", prompt))
    if not words:
        return prompt
    word = rng.choice(words)
    index = rng.randrange(word.start() + 1, word.end() - 2)
    return prompt[:index] + prompt[index + 1] + prompt[index] + prompt[index + 2 :]


def _polite_forms(rng: random.Random) -> list[str]:
    opening, closing = rng.choice(manners.COURTEOUS_OPENINGS), rng.choice(manners.COURTEOUS_CLOSINGS)
    return [f"{opening} {{}}", f"{{}} {closing}", f"{opening} {{}} {closing}"]


def _wrong_value(value: str, fact: Fact, handbook: Handbook, rng: random.Random) -> str:
    number = re.match(r"\d+", value)
    on_page = handbook.page_values[fact.page]
    if number:
        right = int(number[0])
        # Clock times stay valid, and other quantities stay plausible.
        pool = (
            range(1, 13) if value.endswith(("am", "pm")) else (right + 1, right + 2, right + 10, 2 * right, 3 * right)
        )
        candidates = [value.replace(number[0], str(other)) for other in pool]
    elif value.lower() in DAYS:
        candidates = [day.capitalize() for day in DAYS]
    elif value.lower() in MONTHS:
        candidates = [month.capitalize() for month in MONTHS if month != "may"]
    else:
        candidates = [other for entry in handbook.facts for other in entry.required if other.lower() in handbook.names]
    return rng.choice([other for other in candidates if not set(handbook.values_in(other)) & on_page])
