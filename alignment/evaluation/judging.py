"""The judges that `--by` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.evaluation.answer_checks.model_verdicts import ModelVerdicts
from alignment.evaluation.answer_checks.opening import CHECKS, READ_BY_MODEL, open_check
from alignment.evaluation.drawing import DrawOptions, open_endpoint
from alignment.evaluation.judgments import BoutJudge
from alignment.evaluation.model_judge import ModelJudge
from alignment.evaluation.people import PeopleJudge
from alignment.evaluation.score_judges import METRICS, FunctionScorer, ReferenceScorer, RewardModelScorer, ScoreJudge
from alignment.generation.chat_models import ChatModel, LocalModel
from alignment.registry import Registry

KINDS = f"people, reward=REF, python=FILE.py:FUNCTION, model=http://HOST/v1#NAME, references, {CHECKS}"


def open_judges(
    by: Sequence[str],
    prompts: Sequence[Prompt],
    labels: Mapping[str, str],
    registry: Registry,
    options: DrawOptions,
    db: Path | None = None,
    need: int = 1,
    judge_model: str | None = None,
) -> list[BoutJudge]:
    """The judges, found before anything is drawn or judged.

    Args:
        by: as the command line gives them.
        labels: the models' references by side, for the ratings file.
        db: the ratings file of `people`.
        judge_model: the model that reads refusals and support, in place of phrases and words.

    Raises:
        UserError: an unknown judge, one without what it needs, or the same one twice.
    """
    if db is not None and "people" not in by:
        raise UserError(f"--db {db}: read by --by people alone; add --by people")
    reader = _reader(judge_model, by, registry, options)
    judges: list[BoutJudge] = []
    for text in by:
        kind, _, what = text.partition("=")
        if kind == "people" and not what:
            if db is None:
                raise UserError("--by people: name the ratings file, as in --by people --db ratings.db")
            judges.append(PeopleJudge(db, dict(labels), need))
        elif kind == "references":
            if what and what not in METRICS:
                raise UserError(f"--by {text}: expected references, or references= one of {', '.join(METRICS)}")
            judges += [ScoreJudge(ReferenceScorer(metric, prompts)) for metric in METRICS if what in ("", metric)]
        elif kind == "reward" and what:
            judges.append(ScoreJudge(RewardModelScorer(what, registry, options.batch_size)))
        elif kind == "python" and ":" in what:
            judges.append(ScoreJudge(FunctionScorer(what, prompts)))
        elif kind == "model" and what:
            judges.append(ModelJudge(_chat_model(what, registry, options), what))
        elif (check := open_check(kind, what, prompts, reader if kind in READ_BY_MODEL else None)) is not None:
            judges.append(check)
        else:
            raise UserError(f"--by {text}: expected one of {KINDS}")
    names = [judge.identity.name for judge in judges]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--by {twice} stands twice; take one of them out")
    return judges


def _chat_model(name: str, registry: Registry, options: DrawOptions) -> ChatModel:
    if name.startswith(("http://", "https://")):
        return open_endpoint(name, options)
    return LocalModel(name, registry=registry)


def _reader(name: str | None, by: Sequence[str], registry: Registry, options: DrawOptions) -> ModelVerdicts | None:
    if name is None:
        return None
    if not any(text.partition("=")[0] in READ_BY_MODEL for text in by):
        raise UserError(f"--judge-model {name}: read by --by {' and --by '.join(READ_BY_MODEL)} alone; add one of them")
    return ModelVerdicts(_chat_model(name, registry, options), name)
