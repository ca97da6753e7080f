"""The reward model: judgements in, a scalar model in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward configs/reward/demo.yaml

Starts from a policy (the SFT model, whose lineage PPO's policy shares), reads the score at the last token, which is
EOS, in float32, with dropout off. Afterwards the saved model is loaded again and compared with the one in memory, its
scores are shifted to average 0 over SFT demonstrations, and it is judged on held-out prompts before it is published.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig

from alignment import adapters, callbacks, distributed, methods, trainers
from alignment.best_model import finished_model, keep_best, published_step
from alignment.config import ADAPTERS, SCRATCH, ConfigError, trainer_arguments
from alignment.data import Records
from alignment.inspection import Inspector, Report, check_before_training, write_report
from alignment.models import fit_embeddings
from alignment.positions import check_length
from alignment.registry import Registry
from alignment.scalar_models import load_scalar_model
from alignment.stage import write_bad_rows
from alignment.terminal import one_line
from alignment.tracking import Journal
from reward.batches import Layout, QuestionCollator, choose_layout, score_questions
from reward.config import DEFAULTS, RewardStageConfig
from reward.data import Encoding, Judgement, encode, labeler_weights, read_judgements
from reward.demonstrations import Zero, find_zero
from reward.evaluation import compact, evaluate, save_report
from reward.finish import finish, write_eval_pairs
from reward.questions import Question, Scale, rating_scale, standardised
from reward.trainer import Probe, QuestionTrainer

PROBE = 8


@dataclass(frozen=True)
class Prepared:
    """What a trainer is made of: the model to start from, the judgements as token ids, and the arguments."""

    seed: int
    registry: Registry
    start: trainers.Start
    train_set: Records[Judgement]
    eval_set: Records[Judgement]
    train: list[Question]
    held_out: list[Question]
    left_out: dict[str, int]
    reliability: dict[str, float] | None
    """What a vote of each labeler counts; None: all alike."""
    scale: Scale | None
    """Of the ratings, for `objective: regression`: a score s says `mean + std * (s + score_bias)`."""
    zero: Zero
    arguments: RewardConfig
    report: Report
    """What the check of the data found."""

    @property
    def num_pairs(self) -> tuple[int, int]:
        """Pairs to learn from, and held out."""
        train, held_out = (sum(len(question.pairs) for question in part) for part in (self.train, self.held_out))
        return train, held_out

    @property
    def probe(self) -> list[Question]:
        """What is scored before and after saving: short questions, since it is done once more for each best model."""
        return sorted(self.train, key=lambda question: max(question.lengths))[:PROBE]


def prepare(config: RewardStageConfig) -> Prepared:
    """Read the data, find the model to start from, and encode the judgements with its tokenizer; writes nothing."""
    _check(config)
    seed = trainer_arguments(RewardConfig, DEFAULTS, config.training).get("seed", 42)
    distributed.start_processes()
    registry = trainers.open_registry(config)
    train_set, eval_set = read_judgements(config.data, config.reward)
    reliability = labeler_weights(train_set.items) if config.reward.use_reliability else None
    start = trainers.start_model(config, registry, ())
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    inspector = Inspector(config.data, start.tokenizer) if distributed.is_main_process() else None
    train, left_out = _encode(config, train_set, start.tokenizer, reliability, inspector, held_out=False)
    held_out, _ = _encode(config, eval_set, start.tokenizer, reliability, inspector, held_out=True)
    data_report = distributed.on_main_process(lambda: check_before_training(config, inspector))
    scale = rating_scale(train) if config.reward.objective == "regression" else None
    if scale is not None:
        train, held_out = standardised(train, scale), standardised(held_out, scale)
    zero = distributed.on_main_process(lambda: find_zero(config, registry, start.source, start.tokenizer, train))
    arguments = make_arguments(config, no_eval=not held_out)
    return Prepared(
        seed, registry, start, train_set, eval_set, train, held_out, left_out, reliability, scale, zero, arguments,
        data_report,
    )  # fmt: skip


def make_arguments(config: RewardStageConfig, no_eval: bool) -> RewardConfig:
    """TRL's arguments; `no_eval`: there is nothing to evaluate on."""
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    return trainers.make_arguments(RewardConfig, config, defaults, max_length=None, no_eval=no_eval)


def build_trainer(config: RewardStageConfig, prepared: Prepared, journal: Journal) -> QuestionTrainer:
    """Load the model and wrap it in the trainer; how its batches are laid out is written down."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    model = methods.apply_method(_untrained(config, prepared), config.model)
    layout: Layout = "padded"
    reason: str | None = "reward.shared_prefix=off"
    if config.reward.shared_prefix == "auto":
        longest = max(max(question.lengths) for question in (*prepared.train, *prepared.held_out))
        layout, reason = choose_layout(model, longest)
        if reason and distributed.is_main_process():
            print(one_line(f"reward: each prompt is computed once for each completion: {reason}"), file=sys.stderr)
    journal.event("batches", layout=layout, reason=reason)
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


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    prepared = prepare(config)
    with trainers.open_journal(config, "reward") as journal:
        _note_data(journal, config, prepared)
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
        with finished_model(trainer, best, config.run_dir) as folder:
            probe = trainer.probe
            assert probe is not None  # made when the folder was

            def judge_and_publish() -> tuple[str, dict[str, Any]]:
                with distributed.whole_models():  # ZeRO-3 would part them among processes that are not here
                    judged = _finish(folder, config, prepared, probe, journal, step)
                return _publish(folder, config, prepared, metrics | judged), judged

            ref, judged = distributed.on_main_process(judge_and_publish)
        journal.event("published", model=ref, **metrics, **judged)
    return {"model": ref, "metrics": metrics | judged}


def _untrained(config: RewardStageConfig, prepared: Prepared) -> PreTrainedModel:
    """The body of the starting model with its new head: the same each time, since an adapter is merged onto it."""
    model = load_scalar_model(prepared.start.source, config.model, prepared.seed).model
    fit_embeddings(model, prepared.start.tokenizer)
    return model


def _merge_in_place(folder: Path, base: PreTrainedModel, quantized: bool) -> None:
    """A saved adapter and its trained head as a whole reward model: PPO scores every rollout with it."""
    merged = adapters.merge(adapters.dequantize(base) if quantized else base, str(folder))
    for name in (adapters.CONFIG, adapters.WEIGHTS, "README.md"):
        (folder / name).unlink(missing_ok=True)
    merged.save_pretrained(folder)


def _finish(
    folder: Path, config: RewardStageConfig, prepared: Prepared, probe: Probe, journal: Journal, step: int
) -> dict[str, Any]:
    """Check the saved model, set its zero point, and judge it on what was held out."""
    pad = prepared.start.tokenizer.pad_token_id
    if config.model.method in ADAPTERS:
        _merge_in_place(folder, _untrained(config, prepared), config.model.quantized)
    scalar, shift = finish(folder, probe, prepared.zero, pad)
    metrics: dict[str, Any] = {"score_bias": shift, **prepared.zero.summary()}
    if prepared.scale is not None:
        metrics |= {"rating_mean": prepared.scale.mean, "rating_std": prepared.scale.std}
    score = partial(score_questions, scalar, pad_token_id=pad)
    scores = score(prepared.held_out)
    report = evaluate(prepared.held_out, scores, score, rating_offset=shift)
    save_report(config.run_dir, config.name, report)
    if prepared.held_out:
        write_eval_pairs(config.run_dir, prepared.held_out, scores)
        metrics |= compact(report)
        flat = {f"eval/{name}": figure["value"] for name, figure in metrics.items() if isinstance(figure, dict)}
        journal.log(step, flat)
    return metrics


def _publish(folder: Path, config: RewardStageConfig, prepared: Prepared, metrics: dict[str, Any]) -> str:
    return trainers.publish(
        config,
        prepared.registry,
        folder,
        stage="reward",
        role="reward",
        parents=[prepared.start.source.parent("init")],
        data=[*prepared.train_set.fingerprints, *prepared.eval_set.fingerprints],
        metrics=metrics,
        seed=prepared.seed,
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


def _encode(
    config: RewardStageConfig,
    records: Records[Judgement],
    tokenizer: PreTrainedTokenizerBase,
    reliability: dict[str, float] | None,
    inspector: Inspector | None,
    held_out: bool,
) -> Encoding:
    if inspector is None:
        return encode(records.items, tokenizer, config.data, config.reward, reliability)
    for where, reason in records.bad:
        inspector.add_bad(where, reason)
    note = partial(inspector.look, held_out=held_out)
    return encode(records.items, tokenizer, config.data, config.reward, reliability, note)


def _check(config: RewardStageConfig) -> None:
    distributed.on_main_process(lambda: methods.check(config.model, distributed.launched_zero_stage()))
    if config.model.name.startswith(SCRATCH):
        raise ConfigError(
            "model.name: a reward model starts from a trained policy, not from scratch; "
            "train one with python -m sft and name it here"
        )
    if config.reward.objective != "pairs" and config.training.get("center_rewards_coefficient"):
        raise ConfigError(
            "training.center_rewards_coefficient is only for reward.objective=pairs: ratings are centered already"
        )


def plan(config: RewardStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
    merged = trainer_arguments(RewardConfig, DEFAULTS, config.training)
    train, held_out = prepared.num_pairs
    rows = {
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
