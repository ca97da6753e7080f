"""The checks that `--by` names."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.data.records import Prompt
from alignment.evaluation.answer_checks.consistency import ConsistencyJudge
from alignment.evaluation.answer_checks.context_support import SupportScorer
from alignment.evaluation.answer_checks.json_answers import JsonScorer
from alignment.evaluation.answer_checks.model_verdicts import ModelVerdicts
from alignment.evaluation.answer_checks.refusals import RefusalScorer
from alignment.evaluation.judgments import BoutJudge
from alignment.evaluation.score_judges import ScoreJudge


def open_check(kind: str, what: str, prompts: Sequence[Prompt], model: ModelVerdicts | None) -> BoutJudge:
    """The check that `--by KIND=WHAT` names.

    Raises:
        UserError: the prompts or the schema do not have what it needs.
    """
    at_a_time = model.at_a_time if model else None
    if kind == "json":
        return ScoreJudge(JsonScorer(what or None))
    if kind == "refusals":
        return ScoreJudge(RefusalScorer(what or None, prompts, model), at_a_time)
    if kind == "support":
        return ScoreJudge(SupportScorer(what, prompts, model), at_a_time)
    assert kind == "consistency"  # the last of those that `check_judges` lets pass
    return ConsistencyJudge(what, prompts)
