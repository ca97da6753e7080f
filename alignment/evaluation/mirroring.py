"""A comparison's result in Weights & Biases: figures in the summary, a table of the judged answers, and the page."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

from alignment.config.sections import TrackingConfig
from alignment.evaluation.comparison import JUDGMENTS
from alignment.evaluation.figures import Figures
from alignment.evaluation.judgments import AnsweredPrompts, KnownJudgments
from alignment.evaluation.page_bouts import JudgedBout, judged_bouts
from alignment.evaluation.result_text import sentences
from alignment.terminal import clean, one_line
from alignment.tracking.wandb_names import WandbNames
from alignment.tracking.wandb_sink import WandbSink

STAGE = "compare"
TABLE = "pairs"
PAGE = "page"


def mirror_result(
    folder: Path, result: Figures, contest: AnsweredPrompts, page: Path | None, *, text: bool = False
) -> bool:
    """Write the result to a new W&B run, in `folder` where it is offline; a failure is only a warning.

    Args:
        page: the comparison's page, which holds answers.
        text: whether prompts, answers and the page are sent, as with `tracking.wandb_text`.

    Returns:
        Whether all of it was taken.
    """
    names = WandbNames.of(TrackingConfig(), folder.name or STAGE, uuid.uuid4().hex)
    if names.mode == "disabled":
        print("W&B is off (WANDB_MODE=disabled): nothing was sent", file=sys.stderr)
        return False
    sink = WandbSink(
        folder,
        mode=names.mode,
        project=names.project,
        name=names.name,
        group=names.group,
        run_id=names.run_id,
        stage=STAGE,
        config=_config(result),
        text=text,
        patient=True,
    )
    if not sink.is_open:
        print("warning: W&B cannot be started; log in with `wandb login`, or set WANDB_MODE=offline", file=sys.stderr)
        return False
    url = sink.url
    sink.summary(lambda: summary_of(result))
    bouts = judged_bouts(result, contest, KnownJudgments(folder / JUDGMENTS).rows)
    sink.samples(0, [_row(each) for each in bouts if each.said], TABLE)
    if page is not None:
        sink.page(page.read_text(encoding="utf-8"), PAGE)
    sink.finish()
    if sink.lost:
        print(one_line(f"warning: W&B's copy is incomplete ({sink.last_error})"), file=sys.stderr)
        return False
    print(clean(f"W&B: {url or f'wandb sync {folder}/wandb/offline-run-*'}"), file=sys.stderr)
    return True


def _config(result: Figures) -> dict[str, Any]:
    """What was compared, without texts: a system prompt is one."""
    sides = {
        name: {key: side.get(key) for key in ("kind", "model", "digest")} for name, side in result["sides"].items()
    }
    judges = {judge["name"]: {key: judge[key] for key in ("kind", "digest")} for judge in result["judges"]}
    return {"sides": sides, "judges": judges, "prompts": result["prompts"], "settings": result["settings"]}


def summary_of(result: Figures) -> dict[str, str | float]:
    """The sentences, and each pair's and judge's win rates with the ends of their intervals, in W&B's manner."""
    found: dict[str, str | float] = {"result": " ".join(sentences(result))}
    for pair in result["pairs"]:
        for row in pair["judges"]:
            name = f"{pair['a']} against {pair['b']}/{row['judge']}"
            if "win_rate" not in row:
                continue
            found |= {f"{name}/prompts": row["prompts"], f"{name}/ties": row["ties"]}
            rates = {"win_rate": row["win_rate"], "win_rate_at_equal_length": row["length_controlled"]}
            rates["win_rate_with_help"] = (row.get("with_people") or {}).get("powered")
            rates["kappa"] = row.get("agreement")
            for key, rate in rates.items():
                if rate is not None:
                    low, high = rate["ci"]
                    found |= {f"{name}/{key}": rate["value"], f"{name}/{key}_low": low, f"{name}/{key}_high": high}
    for judge, measures in result["scores"].items():
        for measure in measures:
            for side, mean in measure["sides"].items():
                if mean is not None:
                    name = f"{side}/{judge}/{measure['measure']}"
                    found |= {name: mean["value"], f"{name}_low": mean["ci"][0], f"{name}_high": mean["ci"][1]}
    for judge, strengths in (result.get("strengths") or {}).items():
        found |= {f"strength/{judge}/{side}": estimate["value"] for side, estimate in strengths.items()}
    return found


def _row(each: JudgedBout) -> dict[str, Any]:
    bout = each.bout
    return {
        "a": bout.a,
        "b": bout.b,
        "prompt id": bout.id,
        "prompt": [dict(turn) for turn in bout.prompt.messages],
        "first": bout.first.text,
        "second": bout.second.text,
        "outcome": {judge: each.mean(judge) for judge in each.said},
    }
