"""Judges that score each answer by itself: reward models, Python functions, and references."""

from __future__ import annotations

import hashlib
import importlib
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from alignment.data.records import Prompt
from alignment.errors import UserError, require_extra
from alignment.evaluation.answers import SideAnswer
from alignment.evaluation.judge_names import Metric
from alignment.evaluation.judgments import (
    AnsweredPrompts,
    JudgeIdentity,
    Judgment,
    KnownJudgments,
    Measure,
    Scores,
)
from alignment.evaluation.reward_functions import FunctionReward
from alignment.evaluation.scored_rows import ScorableAnswers
from alignment.evaluation.scorers import Scorer, load_scorer
from alignment.models.names import split_head
from alignment.models.sources import find_model
from alignment.registry import Registry
from alignment.terminal import one_line, progress

REFERENCE = "reference"
"""The column of a prompt with its reference answer."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerScorer(Protocol):
    """Gives each answer a number, by itself; higher is better."""

    identity: JudgeIdentity

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> Sequence[float | None]:
        """The scores; None for an answer of which it can say nothing, whose pairs are left out."""
        ...

    def measures(self, contest: AnsweredPrompts, scores: Scores) -> list[Measure]:
        """Figures of each side by itself, the one that decides first."""
        ...

    def remarks(self, contest: AnsweredPrompts) -> list[str]:
        """What a reader must know of the scores."""
        ...


class ScoreJudge:
    """Lets the higher score win; equal scores are a tie.

    Args:
        at_a_time: prompts that are scored together, whose judgments are on disk before the next are scored. None: all,
            which suits a fast scorer.
    """

    def __init__(self, scorer: AnswerScorer, at_a_time: int | None = None) -> None:
        self._scorer, self._at_a_time = scorer, at_a_time
        self.identity = scorer.identity
        self.notes: list[str] = []
        self.measures: list[Measure] = []

    def judge(self, contest: AnsweredPrompts, known: KnownJudgments) -> list[Judgment]:
        """The judgments of all pairs; each answer is scored once, and not again in a later run."""
        scores: dict[tuple[str, str], float] = {}
        missing: dict[str, list[str]] = {}
        for side in contest.sides:
            for key in contest.prompts:
                before = known.score(self.identity, key, contest.answers[side][key])
                if before is None:
                    missing.setdefault(key, []).append(side)
                else:
                    scores[side, key] = before
        keys = list(missing)
        step = self._at_a_time or max(1, len(keys))
        for start in range(0, len(keys), step):
            part = keys[start : start + step]
            places = [(side, key) for side in contest.sides for key in part if side in missing[key]]
            found = self._scorer.scores(
                [contest.prompts[key] for _, key in places], [contest.answers[side][key] for side, key in places]
            )
            scores.update({place: score for place, score in zip(places, found, strict=True) if score is not None})
            if self._at_a_time is not None:
                now = set(part)
                for judgment in self._judgments(contest, scores):
                    if judgment.prompt in now:
                        known.add(judgment)
        self.measures, self.notes = self._scorer.measures(contest, scores), self._scorer.remarks(contest)
        if unread := len(contest.sides) * len(contest.prompts) - len(scores):
            self.notes.append(f"{unread} answers have no score, since no reply about them could be read")
        return self._judgments(contest, scores)

    def _judgments(self, contest: AnsweredPrompts, scores: Scores) -> list[Judgment]:
        judgments = []
        for bout in contest.bouts():
            ours, theirs = scores.get((bout.a, bout.id)), scores.get((bout.b, bout.id))
            if ours is not None and theirs is not None:
                outcome = 1.0 if ours > theirs else 0.0 if ours < theirs else 0.5
                judgments.append(bout.judged(self.identity, outcome, (ours, theirs)))
        return judgments


class RewardModelScorer:
    """A reward model, one of its heads (`REF#HEAD`) or an ensemble, from the registry, a folder or the hub.

    Args:
        kept: it is called often: the model stays loaded, and no progress is shown.
    """

    def __init__(self, name: str, registry: Registry, batch_size: int = 32, kept: bool = False) -> None:
        self._keeps = kept
        self._kept: Scorer | None = None
        model, head = split_head(name)
        source = find_model(model, registry, role="reward")
        self._registry, self._batch_size = registry, batch_size
        self._name = source.label + ("" if head is None else f"#{head}")
        digest = source.digest or source.as_base().digest
        self.identity = JudgeIdentity(f"reward={self._name}", "reward model", digest)

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> list[float]:
        """An answer that its length limit cut off is scored without an end, as PPO scores it."""
        scorer = self._kept or load_scorer(self._name, self._registry)
        self._kept = scorer if self._keeps else None
        rows = [
            ScorableAnswers(prompt.messages, (answer.text,), cut=() if answer.ended else (0,))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        found: list[float] = []
        with progress(f"scores of {one_line(self._name)}", len(rows), not self._keeps) as line:
            for start in range(0, len(rows), self._batch_size):
                for scored in scorer.score(rows[start : start + self._batch_size]):
                    if "error" in scored:
                        raise UserError(f"{self.identity.name}: {scored['error']}; draw shorter answers")
                    found.append(scored["scores"][0])
                    line.advance()
        return found

    def measures(self, contest: AnsweredPrompts, scores: Scores) -> list[Measure]:
        return [contest.measure("score", scores, is_share=False)]

    def remarks(self, contest: AnsweredPrompts) -> list[str]:
        return []


class FunctionScorer:
    """A Python function with the contract of PPO's `rewards.others[].function`."""

    def __init__(self, path: str, prompts: Sequence[Prompt]) -> None:
        columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
        self._function = FunctionReward(path, "--by python", columns)
        self._function.check_columns("the prompts file", columns)
        self.identity = JudgeIdentity(f"python={path}", "function", _source_digest(path))

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> list[float]:
        return self._function.score(prompts, [answer.text for answer in answers])

    def measures(self, contest: AnsweredPrompts, scores: Scores) -> list[Measure]:
        return [contest.measure("score", scores, is_share=False)]

    def remarks(self, contest: AnsweredPrompts) -> list[str]:
        return []


def _source_digest(path: str) -> str | None:
    """A hash of the file that has the function: an edited judge judges again."""
    name = path.rpartition(":")[0]
    module = sys.modules.get(name)
    file = Path(name).expanduser() if name.endswith(".py") else module and Path(str(module.__file__))
    if file is None:
        file = Path(*name.split(".")).with_suffix(".py")
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" if file.is_file() else None


class ReferenceScorer:
    """Likeness with the reference answer of the prompt's row."""

    def __init__(self, metric: Metric, prompts: Sequence[Prompt]) -> None:
        if metric == "chrf":
            require_extra("evaluation", "sacrebleu", purpose="--by references=chrf")
        if missing := [prompt for prompt in prompts if not isinstance(prompt.columns.get(REFERENCE), str)]:
            raise UserError(
                f"--by references: {missing[0].place or 'a row'} of the prompts has no reference answer; give rows "
                "with `prompt` and `completion`, chats that end with the answer, or a column `reference`"
            )
        self._metric = metric
        self.identity = JudgeIdentity(f"references={metric}", "references")

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[SideAnswer]) -> list[float]:
        likeness = likeness_by(self._metric)
        texts = [str(prompt.columns[REFERENCE]) for prompt in prompts]
        return [likeness(answer.text, text) for answer, text in zip(answers, texts, strict=True)]

    def measures(self, contest: AnsweredPrompts, scores: Scores) -> list[Measure]:
        return [contest.measure({"exact": "exact match", "f1": "F1", "chrf": "chrF"}[self._metric], scores)]

    def remarks(self, contest: AnsweredPrompts) -> list[str]:
        return []


def likeness_by(metric: Metric) -> Callable[[str, str], float]:
    """The function (answer, reference) -> [0, 1] of a metric; words as SQuAD's evaluation normalizes them.

    chrF: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation", in sacrebleu's implementation.
    """
    if metric == "exact":
        return lambda answer, reference: float(_words(answer) == _words(reference))
    if metric == "f1":
        return _word_f1
    sacrebleu = importlib.import_module("sacrebleu")
    chrf = sacrebleu.CHRF()
    return lambda answer, reference: float(chrf.sentence_score(answer, [reference]).score) / 100


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _word_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words (Rajpurkar et al. 2016, SQuAD)."""
    ours, theirs = _words(answer), _words(reference)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * shared / (len(ours) + len(theirs))
