"""The reward model: judgements in, a scalar model in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward configs/reward/demo.yaml

Starts from a policy (the SFT model, whose lineage PPO's policy shares), reads the score at the last token, which is
EOS, in float32, with dropout off. Afterwards the saved model is loaded again and compared with the one in memory, its
scores are shifted to average 0 over SFT demonstrations, and it is judged on held-out prompts before it is published.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.data.check import Finding
from alignment.data.records import CHOICES, Comparison
from alignment.distributed import heartbeat, processes, zero3
from alignment.errors import UserError
from alignment.models.ensembles import member_name
from alignment.ratings.quality import as_metrics, journalled
from alignment.reports.verdicts import ENDED, Verdict, verdicts
from alignment.runs import resume
from alignment.runs.journal import NUM_SAMPLES, Journal
from alignment.runs.record import RunRecord
from alignment.runs.run import Run
from alignment.terminal import one_line
from alignment.training import callbacks, opening, publishing
from alignment.training.data_check import DATA_WATCHED, note_findings, write_report
from alignment.training.stage import write_bad_rows
from reward.config import EnsembleArguments, RewardStageConfig
from reward.evaluation import compact, evaluate, save_report
from reward.evaluation.findings import WATCHED, findings, unmeasured
from reward.evaluation.judged import Judged, judged_pairs, sides
from reward.finish import Finished, Trained, averaged, finish_all, summed_up, write_eval_pairs
from reward.labelers import resolved
from reward.members import Members, held_out_halves_of
from reward.prepare import Prepared, prepare

LABELS = "labels"


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    begun = resume.begin(config.run_dir)
    if published := publishing.published_before(config, publishing.open_registry(config), begun.run):
        return published
    heartbeat.enter("reading the data", patient=True)
    prepared = prepare(config, begun.run)
    publishing.pin_models(config, prepared.registry, begun.run)
    with opening.open_journal(config, "reward", begun) as journal:
        _note_data(journal, config, prepared)
        members = Members(config, prepared, journal, begun)
        trained = members.train()

        def judge_and_publish() -> tuple[str, dict[str, Any]]:
            with (
                zero3.unpartitioned_loading(),
                members.copied() as staging,
            ):  # ZeRO-3 would part them among all processes
                heartbeat.enter("checking what was saved", patient=True)
                finished = finish_all(staging, config, prepared, trained)
                last = sum(member.steps for member in trained[:-1]) + trained[-1].step
                judged = _judge(config, prepared, finished, journal, last, best_of(trained))
                metrics = summed_up(trained) | judged
                heartbeat.enter("publishing the model", patient=True)
                return _publish(finished, config, prepared, metrics, begun.run, journal), judged

        ref, judged = processes.on_main_process(judge_and_publish)
        metrics = summed_up(trained) | judged
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


def best_of(trained: Sequence[Trained]) -> int:
    """The largest number of evaluations among which a member was chosen; 1: nothing was chosen."""
    return max(int(member.metrics.get("best_of", 1)) for member in trained)


def _judge(
    config: RewardStageConfig, prepared: Prepared, finished: Finished, journal: Journal, step: int, evaluations: int
) -> dict[str, Any]:
    """What is known of the model: its zero point, and how well it does on what was held out.

    Args:
        evaluations: those among which it was chosen; 1: it was not, and nothing held out has an influence on it.
    """
    held_out = held_out_halves_of(config, prepared.held_out)[1] if evaluations > 1 else prepared.held_out
    metrics: dict[str, Any] = {"score_bias": finished.shift, **prepared.zero.summary()}
    if prepared.scale is not None:
        metrics |= {"rating_mean": prepared.scale.mean, "rating_std": prepared.scale.std}
    members = finished.member_scores(held_out)
    scores = averaged(members) if members else finished.score(held_out)
    found = evaluate(held_out, scores, finished.score, members=members, rating_offset=finished.shift)
    if evaluations > 1:
        prompts = len({tuple(question.prompt_ids) for question in prepared.held_out})
        choosing = prompts - len({tuple(question.prompt_ids) for question in held_out})
        found["chosen"] = {"evaluations": evaluations, "prompts": choosing}
        metrics["choosing_prompts"] = choosing
    if held_out:
        write_eval_pairs(config.run_dir, held_out, scores)
        metrics |= compact(found)
        flat = {f"eval/{name}": figure["value"] for name, figure in metrics.items() if isinstance(figure, dict)}
        journal.log(step, flat)
        _show(journal, step, judged_pairs(held_out, scores))
    for finding in findings(found):
        journal.finding(step, finding.kind.replace("_", " "), finding.level, _in_words(finding))
    for kind, why in unmeasured(found).items():
        journal.not_measured(step, kind.replace("_", " "), why)
    save_report(config.run_dir, config.name, found, _checks(config.run_dir))
    return metrics


def _checks(run_dir: Path) -> list[Verdict] | None:
    """The run's verdicts so far, which its report.html will show too; None where `train` was called without a run."""
    try:
        record = RunRecord.read(run_dir)
    except UserError:
        return None
    return [check for check in verdicts(record) if check.name != ENDED]


def _show(journal: Journal, step: int, pairs: Sequence[Judged]) -> None:
    """The first held-out pairs with votes and scores, and how the scores of both sides spread."""
    rows = [
        {
            "id": number,
            "prompt": list(pair.comparison.prompt),
            "first": pair.comparison.first,
            "second": pair.comparison.second,
            "first_score": pair.scores[0],
            "second_score": pair.scores[1],
            "votes": {choice: pair.comparison.count(choice) for choice in CHOICES},
        }
        for number, pair in enumerate(pairs[:NUM_SAMPLES])
    ]
    journal.samples(step, rows)
    chosen, rejected = sides(pairs)
    journal.histogram(step, "eval/chosen_score", chosen)
    journal.histogram(step, "eval/rejected_score", rejected)


def _in_words(finding: Finding) -> str:
    return f"{finding.text}; {finding.advice}" if finding.advice else finding.text


def _publish(
    finished: Finished,
    config: RewardStageConfig,
    prepared: Prepared,
    metrics: dict[str, Any],
    run: Run,
    journal: Journal,
) -> str:
    source = prepared.start.source
    return publishing.publish(
        config,
        prepared.registry,
        finished.folder,
        stage="reward",
        role="reward",
        parents=[source.parent("init")],
        base=source.as_base() if finished.adapted else None,
        data=[*prepared.train_set.fingerprints, *prepared.eval_set.fingerprints],
        metrics=metrics,
        seed=finished.seed,
        run=run,
        journal=journal,
    ).ref


def _note_data(journal: Journal, config: RewardStageConfig, prepared: Prepared) -> None:
    train_set, eval_set, zero = prepared.train_set, prepared.eval_set, prepared.zero
    if processes.is_main_process():
        write_bad_rows(config.run_dir, train_set.bad, train_set.notes)
        write_report(config.run_dir, prepared.report)
        if zero.over != "demonstrations":
            print(one_line(f"reward: scores will average 0 over the {zero.over}: {zero.where}"), file=sys.stderr)
    train, held_out = prepared.num_pairs
    journal.event(
        "data",
        train=train_set.fingerprints,
        eval=eval_set.fingerprints,
        notes=train_set.notes,
        questions=len(prepared.train),
        pairs=train,
        held_out=held_out,
        **prepared.left_out,
        **zero.summary(),
    )
    if prepared.reliability is not None:
        journal.event("reliability", weights=sorted(prepared.reliability.values()))
    journal.event("data_check", **prepared.report.summary())
    size = EnsembleArguments.of(config.training).members
    overfitted = [callbacks.OVERFITTING, *(f"{member_name(n)} {callbacks.OVERFITTING}" for n in range(1, size))]
    judged = [kind.replace("_", " ") for kind in WATCHED]
    journal.watching([*DATA_WATCHED, LABELS, *overfitted, *judged])
    note_findings(journal, prepared.report)
    if processes.is_main_process():
        rows = [row for row in train_set.items if isinstance(row, Comparison)]
        every = list(journalled(config.data, rows, resolved(config.reward.labelers, config.data)))
        for found in every:
            journal.event(LABELS, **found)
        if not every:
            journal.not_measured(0, LABELS, "the data does not say who voted, or no two people voted on one pair")
        if every:  # several databases have an event each, and the dashboards one set of figures
            journal.log(0, as_metrics(every[0]))
        if any(found.get("warnings") for found in every):
            said = {found["source"]: " ".join(found["warnings"]) for found in every if found.get("warnings")}
            text = " ".join(f"{source}: {text}" if len(every) > 1 else text for source, text in said.items())
            journal.finding(0, LABELS, "warning", text)
