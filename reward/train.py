"""The reward model: comparisons in, a scalar model in the registry.

    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward configs/reward/demo.yaml

Starts from a policy (the SFT model, whose lineage PPO's policy shares), reads the score at the last token, which is
EOS, in float32, with dropout off. Afterwards the scores are shifted to average 0 over the training completions, and
the saved model is loaded again and judged on held-out prompts before it is published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig, RewardTrainer

from alignment import adapters, callbacks, distributed, methods, trainers
from alignment.best_model import finished_model, keep_best, published_step
from alignment.config import ADAPTERS, SCRATCH, ConfigError, trainer_arguments
from alignment.data import CHOICES, Comparison, Records
from alignment.inspection import Inspector, Report, check_before_training, write_report
from alignment.models import fit_embeddings
from alignment.positions import check_length
from alignment.registry import Registry
from alignment.scalar_models import load_scalar_model, set_score_bias
from alignment.stage import write_bad_rows
from alignment.tracking import Journal
from reward.config import DEFAULTS, RewardStageConfig
from reward.data import EncodedComparison, PairCollator, as_dataset, encode_comparisons, read_comparisons
from reward.evaluate import report, score_pairs
from reward.loss import pair_loss


class PairTrainer(RewardTrainer):
    """`RewardTrainer` with soft votes and weights, normalised over the whole optimizer batch on all processes."""

    loss_is_scaled_for_ga = True  # by _get_num_items_in_batch; the Trainer would otherwise divide once more

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "target", "weight"]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Total weight of an optimizer batch; the Trainer counts label tokens here, and pairs have none."""
        total = sum((batch["weight"].sum() for batch in batch_samples), torch.zeros(()))
        return distributed.all_reduce_sum(total.to(device))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        scores = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits.squeeze(-1)
        first, second = scores.chunk(2)
        target, weight = inputs["target"], inputs["weight"]
        assert num_items_in_batch is not None
        loss = pair_loss(first, second, target, weight, num_items_in_batch, self.args.center_rewards_coefficient or 0.0)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes, ours are to be summed
            loss = loss + methods.regularisation(self.model) / self.current_gradient_accumulation_steps
        with torch.no_grad():
            decided = target != 0.5
            right = (torch.sign(first - second) == torch.sign(target - 0.5)) & decided
            sums = torch.stack([right.sum(), decided.sum(), scores.sum(), torch.ones_like(scores).sum()]).float()
            right_sum, decided_sum, score_sum, count = distributed.all_reduce_sum(sums).tolist()
            if decided_sum:  # a batch of ties alone is no batch of mistakes
                self._metrics[mode]["accuracy"].append(right_sum / decided_sum)
            self._metrics[mode]["mean_reward"].append(score_sum / count)
        return (loss, {"logits": scores}) if return_outputs else loss


@dataclass(frozen=True)
class Prepared:
    """What a trainer is made of: the model to start from, the comparisons as token ids, and the arguments."""

    seed: int
    registry: Registry
    start: trainers.Start
    train_set: Records[Comparison]
    eval_set: Records[Comparison]
    train_pairs: list[EncodedComparison]
    eval_pairs: list[EncodedComparison]
    left_out: dict[str, int]
    arguments: RewardConfig
    report: Report
    """What the check of the data found."""


def prepare(config: RewardStageConfig) -> Prepared:
    """Read the data, find the model to start from, and encode the comparisons with its tokenizer; writes nothing."""
    _check(config)
    seed = trainer_arguments(RewardConfig, DEFAULTS, config.training).get("seed", 42)
    distributed.start_processes()
    registry = trainers.open_registry(config)
    train_set, eval_set = read_comparisons(config.data)
    start = trainers.start_model(config, registry, ())
    check_length(start.source.config_path, config.data.max_length, "data.max_length", config.model.trust_remote_code)
    inspector = Inspector(config.data, start.tokenizer) if distributed.is_main_process() else None
    train_pairs, left_out = _encode(config, train_set, start.tokenizer, inspector, held_out=False)
    eval_pairs, _ = _encode(config, eval_set, start.tokenizer, inspector, held_out=True)
    data_report = distributed.on_main_process(lambda: check_before_training(config, inspector))
    defaults = methods.with_learning_rate(DEFAULTS, config.model)
    arguments = trainers.make_arguments(RewardConfig, config, defaults, max_length=None, no_eval=not eval_pairs)
    return Prepared(
        seed, registry, start, train_set, eval_set, train_pairs, eval_pairs, left_out, arguments, data_report
    )


def build_trainer(config: RewardStageConfig, prepared: Prepared) -> PairTrainer:
    """Load the model and wrap it in the trainer."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    model = methods.apply_method(_untrained(config, prepared), config.model)
    with trainers.refused_arguments():
        trainer = PairTrainer(
            model=model,
            args=prepared.arguments,
            data_collator=PairCollator(tokenizer.pad_token_id, prepared.arguments.pad_to_multiple_of or 1),
            train_dataset=as_dataset(prepared.train_pairs),
            eval_dataset=as_dataset(prepared.eval_pairs) if prepared.eval_pairs else None,
            processing_class=tokenizer,
        )
    methods.attach(trainer, config.model)
    return trainer


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    prepared = prepare(config)
    trainer = build_trainer(config, prepared)
    with trainers.open_journal(config, "reward") as journal:
        _note_data(journal, config, prepared)
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

            def judge_and_publish() -> tuple[str, dict[str, Any]]:
                pad = prepared.start.tokenizer.pad_token_id
                pairs = prepared.train_pairs, prepared.eval_pairs
                if config.model.method in ADAPTERS:
                    _merge_in_place(folder, _untrained(config, prepared), config.model.quantized)
                judged = _finish(folder, config, journal, *pairs, pad, step)
                version = trainers.publish(
                    config,
                    prepared.registry,
                    folder,
                    stage="reward",
                    role="reward",
                    parents=[prepared.start.source.parent("init")],
                    data=[*prepared.train_set.fingerprints, *prepared.eval_set.fingerprints],
                    metrics=metrics | judged,
                    seed=prepared.seed,
                )
                return version.ref, judged

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


def _note_data(journal: Journal, config: RewardStageConfig, prepared: Prepared) -> None:
    train_set, eval_set = prepared.train_set, prepared.eval_set
    if distributed.is_main_process():
        write_bad_rows(config.run_dir, train_set.bad, train_set.notes)
        write_report(config.run_dir, prepared.report)
    journal.event(
        "data",
        train=train_set.fingerprints,
        eval=eval_set.fingerprints,
        notes=train_set.notes,
        pairs=len(prepared.train_pairs),
        held_out=len(prepared.eval_pairs),
        **prepared.left_out,
    )
    journal.event("data_check", **prepared.report.summary())


def _encode(
    config: RewardStageConfig,
    records: Records[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    inspector: Inspector | None,
    held_out: bool,
) -> tuple[list[EncodedComparison], dict[str, int]]:
    limits = config.data.max_length, config.data.too_long
    if inspector is None:
        return encode_comparisons(records.items, tokenizer, *limits)
    for where, reason in records.bad:
        inspector.add_bad(where, reason)
    return encode_comparisons(records.items, tokenizer, *limits, partial(inspector.look, held_out=held_out))


def _check(config: RewardStageConfig) -> None:
    distributed.on_main_process(lambda: methods.check(config.model, distributed.launched_zero_stage()))
    if config.model.name.startswith(SCRATCH):
        raise ConfigError(
            "model.name: a reward model starts from a trained policy, not from scratch; "
            "train one with python -m sft and name it here"
        )


def _finish(
    folder: Path,
    config: RewardStageConfig,
    journal: Journal,
    train_pairs: Sequence[EncodedComparison],
    eval_pairs: Sequence[EncodedComparison],
    pad_token_id: int,
    step: int,
) -> dict[str, Any]:
    """Load what was saved, shift its scores to average 0 over the training completions, save, and judge it."""
    (folder / "training_args.bin").unlink(missing_ok=True)
    scalar = load_scalar_model(str(folder)).to("cuda" if torch.cuda.is_available() else "cpu")
    trained_on = score_pairs(scalar, train_pairs, pad_token_id)
    # On top of the bias that these scores were shifted by already, where the run went on from a reward model.
    bias = scalar.model.score.score_bias + fmean(score for pair in trained_on for score in pair)
    set_score_bias(scalar.model, bias)
    scalar.model.save_pretrained(folder)
    metrics: dict[str, Any] = {"score_bias": bias}
    if eval_pairs:
        scores = score_pairs(scalar, eval_pairs, pad_token_id)
        metrics |= report(eval_pairs, scores)
        _write_eval_pairs(config.run_dir, eval_pairs, scores)
        flat = {f"eval/{name}": figure["value"] for name, figure in metrics.items() if isinstance(figure, dict)}
        journal.log(step, flat)
    return metrics


def _write_eval_pairs(run_dir: Path, pairs: Sequence[EncodedComparison], scores: Sequence[tuple[float, float]]) -> None:
    """`RUN/eval_pairs.jsonl`: each held-out comparison with its votes and scores, for whoever wants to look."""
    with (run_dir / "eval_pairs.jsonl").open("w", encoding="utf-8") as file:
        for pair, (first_score, second_score) in zip(pairs, scores, strict=True):
            row = pair.comparison
            record = {
                "prompt": list(row.prompt),
                "first": row.first,
                "second": row.second,
                "votes": {choice: row.count(choice) for choice in CHOICES},
                "first_score": first_score,
                "second_score": second_score,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def plan(config: RewardStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
    merged = trainer_arguments(RewardConfig, DEFAULTS, config.training)
    rows = {
        "train_pairs": len(prepared.train_pairs),
        "eval_pairs": len(prepared.eval_pairs),
        "bad_rows": len(prepared.train_set.bad),
        **prepared.left_out,
        "data_check": prepared.report.summary(),
    }
    kind = AutoModelForSequenceClassification
    return rows | trainers.batch_plan(merged, world_size, prepared.start.source, config.model, kind)
