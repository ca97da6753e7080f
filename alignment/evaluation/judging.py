"""The judges that `--by` names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.data.records import Prompt
from alignment.errors import UserError
from alignment.evaluation.answer_checks.model_verdicts import ModelVerdicts
from alignment.evaluation.answer_checks.opening import open_check
from alignment.evaluation.drawing import DrawOptions, open_endpoint
from alignment.evaluation.judge_names import METRICS, READ_BY_MODEL, check_judges
from alignment.evaluation.judgments import BoutJudge
from alignment.evaluation.model_judge import ModelJudge
from alignment.evaluation.people import PeopleJudge
from alignment.evaluation.score_judges import FunctionScorer, ReferenceScorer, RewardModelScorer, ScoreJudge
from alignment.generation.chat_models import ChatModel, LocalModel
from alignment.registry import Registry


def open_judges(
    by: Sequence[str],
    prompts: Sequence[Prompt],
    labels: Mapping[str, str],
    registry: Registry,
    options: DrawOptions,
    db: Path | None = None,
    need: int = 1,
    judge_model: str | None = None,
    command: str = "",
) -> list[BoutJudge]:
    """The judges, found before anything is drawn or judged.

    Args:
        by: as the command line gives them.
        labels: the models' references by side, for the ratings file.
        db: the ratings file of `people`.
        judge_model: the model that reads refusals and support, in place of phrases and words.
        command: the command that compares, for the ratings file of `people`.

    Raises:
        UserError: an unknown judge, one without what it needs, or the same one twice.
    """
    check_judges(by, registry, db, judge_model)
    reader = None if judge_model is None else ModelVerdicts(_chat_model(judge_model, registry, options), judge_model)
    judges: list[BoutJudge] = []
    for text in by:
        kind, _, what = text.partition("=")
        if kind == "people":
            assert db is not None  # it was checked
            judges.append(PeopleJudge(db, dict(labels), need, command))
        elif kind == "references":
            judges += [ScoreJudge(ReferenceScorer(metric, prompts)) for metric in METRICS if what in ("", metric)]
        elif kind == "reward":
            judges.append(ScoreJudge(RewardModelScorer(what, registry, options.batch_size)))
        elif kind == "python":
            judges.append(ScoreJudge(FunctionScorer(what, prompts)))
        elif kind == "model":
            judges.append(ModelJudge(_chat_model(what, registry, options), what))
        else:
            judges.append(open_check(kind, what, prompts, reader if kind in READ_BY_MODEL else None))
    names = [judge.identity.name for judge in judges]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--by {twice} stands twice; take one of them out")
    return judges


def _chat_model(name: str, registry: Registry, options: DrawOptions) -> ChatModel:
    if name.startswith(("http://", "https://")):
        return open_endpoint(name, options)
    return LocalModel(name, registry=registry)
