"""Train a reward model from human judgements and publish it to the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward configs/reward/demo.yaml

Training starts from a policy (usually the SFT model, an ancestor of PPO's policy). The score is read at the last token,
which is EOS, in float32, without dropout. After training, the saved model is loaded again and compared with the one in
memory, its scores are shifted to average 0 over SFT demonstrations, and it is evaluated on held-out prompts. Then it is
published.
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
from alignment.models.reward_files import biases, member_name
from alignment.ratings.quality import label_events, label_metrics
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
from reward.evaluation.findings import WATCHED
from reward.evaluation.heads import Scores, all_findings, all_unmeasured, evaluate_heads, of_head
from reward.evaluation.judged import ScoredPair, scored_pairs, sides
from reward.finish import Finished, Trained, averaged, finish_all, mean_metrics, write_eval_pairs
from reward.labelers import reader_of, resolved
from reward.members import Members, split_held_out
from reward.prepare import PreparedReward, prepare
from reward.questions import Question
from reward.saved_model import SavedModel, is_checked_in_shards

LABELS = "labels"


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    start = resume.begin(config.run_dir)
    if published := publishing.published_before(config, "reward", opening.open_registry(config), start.run):
        return published
    heartbeat.enter("reading the data", patient=True)
    prepared = prepare(config, start.run)
    publishing.pin_models(config, prepared.registry, start.run)
    with opening.open_journal(config, "reward", start) as journal:
        _note_data(journal, config, prepared)
        members = Members(config, prepared, journal, start)
        trained = members.train()

        saved = SavedModel(is_checked_in_shards(prepared.start.source.config_path, config.model.trust_remote_code))

        def evaluate_and_publish() -> tuple[str, dict[str, Any]]:
            with (
                zero3.unpartitioned_loading(),
                members.copied() as staging,
            ):  # ZeRO-3 would partition them over all ranks
                heartbeat.enter("checking the reward model", patient=True)
                finished = finish_all(saved, staging, config, prepared, trained)
                last = sum(member.steps for member in trained[:-1]) + trained[-1].step
                held_out = _evaluate(config, prepared, finished, journal, last, best_of(trained))
                metrics = mean_metrics(trained) | held_out
                heartbeat.enter("publishing the model", patient=True)
                return publish(finished, config, prepared, metrics, start.run, journal), held_out

        ref, held_out = saved.run(evaluate_and_publish)
        metrics = mean_metrics(trained) | held_out
        publishing.announce(journal, prepared.registry, ref, metrics)
    return {"model": ref, "metrics": metrics}


def best_of(trained: Sequence[Trained]) -> int:
    """The largest number of evaluations from which a member was chosen; 1: nothing was chosen."""
    return max(int(member.metrics.get("best_of", 1)) for member in trained)


def _evaluate(
    config: RewardStageConfig,
    prepared: PreparedReward,
    finished: Finished,
    journal: Journal,
    step: int,
    evaluations: int,
) -> dict[str, Any]:
    """Evaluate the model on held-out questions; returns its metrics and its score offset.

    Args:
        evaluations: number of evaluations from which the model was chosen; 1: held-out data had no influence on it.
    """
    held_out = split_held_out(config, prepared.held_out)[1] if evaluations > 1 else prepared.held_out
    names = config.reward.score_names
    shifts = biases(finished.shifts[0]) if names else [finished.shift]
    metrics: dict[str, Any] = {
        f"score_bias/{name}" if name else "score_bias": shift
        for name, shift in zip(names or ("",), shifts, strict=True)
    } | prepared.normalization.summary()
    if prepared.scale is not None:
        metrics |= {"rating_mean": prepared.scale.mean, "rating_std": prepared.scale.std}
    members = finished.member_scores(held_out)
    scores = [averaged(members)] if members else finished.score(held_out)
    reports = (
        evaluate_heads(names, held_out, scores, finished.score)
        if names
        else {"": _whole_report(finished, held_out, scores, members)}
    )
    if evaluations > 1:
        prompts = len({tuple(question.prompt_ids) for question in prepared.held_out})
        choosing = prompts - len({tuple(question.prompt_ids) for question in held_out})
        for report in reports.values():
            report["chosen"] = {"evaluations": evaluations, "prompts": choosing}
        metrics["choosing_prompts"] = choosing
    if held_out:
        write_eval_pairs(config.run_dir, held_out, scores)
        for name, report in reports.items():
            metrics |= {f"{metric}/{name}" if name else metric: value for metric, value in compact(report).items()}
        flat = {f"eval/{name}": figure["value"] for name, figure in metrics.items() if isinstance(figure, dict)}
        journal.log(step, flat)
        for head, name in enumerate(reports):
            judged, places = of_head(held_out, head)
            pairs = scored_pairs(judged, [scores[head][place] for place in places])
            _log_samples(journal, step, pairs, NUM_SAMPLES // len(reports), f"/{name}" if name else "")
    for finding in all_findings(reports):
        journal.finding(step, finding.kind.replace("_", " "), finding.level, _finding_text(finding))
    for kind, why in all_unmeasured(reports).items():
        journal.not_measured(step, kind.replace("_", " "), why)
    save_report(config.run_dir, config.name, reports, _checks(config.run_dir))
    return metrics


def _whole_report(
    finished: Finished,
    held_out: Sequence[Question],
    scores: Scores,
    members: Sequence[Sequence[Sequence[float]]],
) -> dict[str, Any]:
    """The report of a model with one head."""

    def score(questions: Sequence[Question]) -> Sequence[Sequence[float]]:
        return finished.score(questions)[0] if questions else []

    of_completions = scores[0] if held_out else []
    return evaluate(held_out, of_completions, score, members=members, rating_offset=finished.shift)


def _checks(run_dir: Path) -> list[Verdict] | None:
    """The run's verdicts so far, which report.html shows too; None if there is no run folder."""
    try:
        record = RunRecord.read(run_dir)
    except UserError:
        return None
    return [check for check in verdicts(record) if check.name != ENDED]


def _log_samples(journal: Journal, step: int, pairs: Sequence[ScoredPair], count: int, suffix: str) -> None:
    """Journal the first held-out pairs with votes and scores, and histograms of the scores of both sides."""
    rows = [
        {
            "id": index,
            "prompt": list(pair.comparison.prompt),
            "first": pair.comparison.first,
            "second": pair.comparison.second,
            "first_score": pair.scores[0],
            "second_score": pair.scores[1],
            "votes": {choice: pair.comparison.count(choice) for choice in CHOICES},
        }
        | ({"attribute": pair.comparison.attribute} if pair.comparison.attribute else {})
        for index, pair in enumerate(pairs[:count])
    ]
    journal.samples(step, rows)
    chosen, rejected = sides(pairs)
    journal.histogram(step, f"eval/chosen_score{suffix}", chosen)
    journal.histogram(step, f"eval/rejected_score{suffix}", rejected)


def _finding_text(finding: Finding) -> str:
    return f"{finding.text}; {finding.advice}" if finding.advice else finding.text


def publish(
    finished: Finished,
    config: RewardStageConfig,
    prepared: PreparedReward,
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


def _note_data(journal: Journal, config: RewardStageConfig, prepared: PreparedReward) -> None:
    train_set, eval_set, normalization = prepared.train_set, prepared.eval_set, prepared.normalization
    if processes.is_main_process():
        write_bad_rows(config.run_dir, train_set.bad, train_set.notes)
        write_report(config.run_dir, prepared.report)
        if normalization.over != "demonstrations":
            print(
                one_line(f"reward: scores will average 0 over the {normalization.over}: {normalization.where}"),
                file=sys.stderr,
            )
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
        **normalization.summary(),
    )
    if prepared.reliability is not None:
        journal.event("reliability", weights=sorted(prepared.reliability.values()))
    journal.event("data_check", **prepared.report.summary())
    size = EnsembleArguments.of(config.training).members
    overfitted = [callbacks.OVERFITTING, *(f"{member_name(index)} {callbacks.OVERFITTING}" for index in range(1, size))]
    judged = [kind.replace("_", " ") for kind in WATCHED]
    journal.watching([*DATA_WATCHED, LABELS, *overfitted, *judged])
    note_findings(journal, prepared.report)
    if processes.is_main_process():
        rows = [row for row in train_set.items if isinstance(row, Comparison)]
        labelers = resolved(config.reward.labelers, config.data, reader_of(config.reward))
        label_reports = list(label_events(config.data, rows, labelers))
        for event in label_reports:
            journal.event(LABELS, **event)
        if not label_reports:
            journal.not_measured(0, LABELS, "the data does not name voters, or no two people voted on the same pair")
        if label_reports:  # each ratings file has an event, but dashboards show one set of metrics
            journal.log(0, label_metrics(label_reports[0]))
        if any(event.get("warnings") for event in label_reports):
            warnings = {
                event["source"]: " ".join(event["warnings"]) for event in label_reports if event.get("warnings")
            }
            text = " ".join(
                f"{source}: {text}" if len(label_reports) > 1 else text for source, text in warnings.items()
            )
            journal.finding(0, LABELS, "warning", text)
