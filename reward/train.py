"""The reward model: judgements in, a scalar model in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward configs/reward/demo.yaml

Starts from a policy (the SFT model, whose lineage PPO's policy shares), reads the score at the last token, which is
EOS, in float32, with dropout off. Afterwards the saved model is loaded again and compared with the one in memory, its
scores are shifted to average 0 over SFT demonstrations, and it is judged on held-out prompts before it is published.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig

from alignment import callbacks, distributed, methods, trainers
from alignment.best_model import finished_model, keep_best, published_step
from alignment.config import trainer_arguments
from alignment.ensembles import member_name
from alignment.inspection import write_report
from alignment.stage import write_bad_rows
from alignment.terminal import one_line
from alignment.tracking import Journal
from reward.batches import Layout, QuestionCollator, choose_layout
from reward.config import DEFAULTS, EnsembleArguments, RewardStageConfig
from reward.evaluation import compact, evaluate, save_report
from reward.finish import Finished, Trained, averaged, finish_all, summed_up, write_eval_pairs
from reward.prepare import Prepared, make_arguments, prepare, untrained
from reward.trainer import QuestionTrainer

PADDED_ROWS = ("neftune_noise_alpha", "pad_to_multiple_of", "torch_compile")


class MemberJournal(Journal):
    """The run's journal for a further member of an ensemble: its figures under its name, its steps after the others'.

    W&B takes no steps that go back.
    """

    def __init__(self, journal: Journal, number: int, start: int) -> None:
        super().__init__(journal.run_dir, enabled=False)
        self._journal, self._number, self._start = journal, number, start

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        own = {f"{member_name(self._number)}/{name}": value for name, value in metrics.items()}
        self._journal.log(self._start + step, own)

    def event(self, kind: str, **fields: Any) -> None:
        self._journal.event(kind, member=self._number, **fields)


def build_trainer(config: RewardStageConfig, prepared: Prepared, journal: Journal) -> QuestionTrainer:
    """Load the model and wrap it in the trainer; how its batches are laid out is written down."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    model = methods.apply_method(untrained(config, prepared), config.model)
    layout, _ = lay_out(config, prepared, model, journal)
    with trainers.refused_arguments():
        trainer = QuestionTrainer(
            model=model,
            args=prepared.arguments,
            settings=config.reward,
            collate=QuestionCollator(layout, tokenizer.pad_token_id, prepared.arguments.pad_to_multiple_of or 1),
            train=prepared.train,
            held_out=prepared.held_out,
            probe=prepared.probe,
            processing_class=tokenizer,
        )
    methods.attach(trainer, config.model)
    return trainer


def lay_out(
    config: RewardStageConfig, prepared: Prepared, model: nn.Module, journal: Journal
) -> tuple[Layout, str | None]:
    """How batches are laid out, and why their rows are padded where they are, in which case rows of like length come
    together unless the user wants another order."""
    against = ["reward.shared_prefix=off"] if config.reward.shared_prefix == "off" else []
    against += [f"training.{name} is for padded rows" for name in PADDED_ROWS if getattr(prepared.arguments, name)]
    if distributed.under_fsdp():
        against.append("FSDP gathers the weights for the model's own forward alone")
    longest = max(max(question.lengths) for question in (*prepared.train, *prepared.held_out))
    layout, reason = ("padded", against[0]) if against else choose_layout(model, longest)
    if layout == "padded" and "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    if reason and distributed.is_main_process():
        print(one_line(f"reward: each prompt is computed once for each completion: {reason}"), file=sys.stderr)
    journal.event("batches", layout=layout, reason=reason)
    return layout, reason


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    prepared = prepare(config)
    size = EnsembleArguments.of(config.training).members
    with trainers.open_journal(config, "reward") as journal, tempfile.TemporaryDirectory(dir=config.run_dir) as staging:
        _note_data(journal, config, prepared)
        trained: list[Trained] = []
        for number in range(size):
            single, own, notes = config.of_member(number, prepared.seed), prepared, journal
            if number:
                distributed.forget_accelerator()
                arguments = make_arguments(single, no_eval=not prepared.held_out)
                own = replace(prepared, seed=prepared.seed + number, arguments=arguments)
                notes = MemberJournal(journal, number, sum(member.steps for member in trained))
            trained.append(_train_one(single, own, notes, Path(staging, member_name(number))))

        def judge_and_publish() -> tuple[str, dict[str, Any]]:
            with distributed.whole_models():  # ZeRO-3 would part them among processes that are not here
                finished = finish_all(Path(staging), config, prepared, trained)
                last = sum(member.steps for member in trained[:-1]) + trained[-1].step
                judged = _judge(config, prepared, finished, journal, last)
            return _publish(finished, config, prepared, summed_up(trained) | judged, journal), judged

        ref, judged = distributed.on_main_process(judge_and_publish)
        metrics = summed_up(trained) | judged
        journal.event("published", model=ref, **metrics)
    return {"model": ref, "metrics": metrics}


def _train_one(config: RewardStageConfig, prepared: Prepared, journal: Journal, folder: Path) -> Trained:
    """Train one model and leave its files in a folder."""
    trainer = build_trainer(config, prepared, journal)
    callbacks.attach(trainer, journal, f"reward {config.name}")
    journal.event("method", method=config.model.method, **methods.describe(trainer.model))
    best = keep_best(trainer, config.training, config.run_dir, journal)
    outcome = trainer.train()
    trainers.backend_event(journal, trainer)
    step = published_step(trainer, best)
    metrics: dict[str, Any] = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
    if best is not None:
        metrics["best_step"] = step
    with finished_model(trainer, best, config.run_dir) as saved:
        if distributed.is_main_process():
            folder.mkdir()
            for file in saved.iterdir():
                shutil.move(file, folder / file.name)
    assert trainer.probe is not None  # made when the folder was
    return Trained(prepared.seed, step, metrics, trainer.probe)


def _judge(
    config: RewardStageConfig, prepared: Prepared, finished: Finished, journal: Journal, step: int
) -> dict[str, Any]:
    """What is known of the model: its zero point, and how well it does on what was held out."""
    metrics: dict[str, Any] = {"score_bias": finished.shift, **prepared.zero.summary()}
    if prepared.scale is not None:
        metrics |= {"rating_mean": prepared.scale.mean, "rating_std": prepared.scale.std}
    members = finished.member_scores(prepared.held_out)
    scores = averaged(members) if members else finished.score(prepared.held_out)
    found = evaluate(prepared.held_out, scores, finished.score, members=members, rating_offset=finished.shift)
    save_report(config.run_dir, config.name, found)
    if prepared.held_out:
        write_eval_pairs(config.run_dir, prepared.held_out, scores)
        metrics |= compact(found)
        flat = {f"eval/{name}": figure["value"] for name, figure in metrics.items() if isinstance(figure, dict)}
        journal.log(step, flat)
    return metrics


def _publish(
    finished: Finished, config: RewardStageConfig, prepared: Prepared, metrics: dict[str, Any], journal: Journal
) -> str:
    source = prepared.start.source
    return trainers.publish(
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
        journal=journal,
    ).ref


def _note_data(journal: Journal, config: RewardStageConfig, prepared: Prepared) -> None:
    train_set, eval_set, zero = prepared.train_set, prepared.eval_set, prepared.zero
    if distributed.is_main_process():
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


def plan(config: RewardStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
    merged = trainer_arguments(RewardConfig, DEFAULTS, config.of_member().training)
    train, held_out = prepared.num_pairs
    rows = {
        "members": EnsembleArguments.of(config.training).members,
        "train_questions": len(prepared.train),
        "train_pairs": train,
        "eval_pairs": held_out,
        "bad_rows": len(prepared.train_set.bad),
        **prepared.left_out,
        **prepared.zero.summary(),
        "data_check": prepared.report.summary(),
    }
    kind = AutoModelForSequenceClassification
    return rows | trainers.batch_plan(merged, world_size, prepared.start.source, config.model, kind)
