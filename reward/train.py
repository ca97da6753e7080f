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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, TrainerCallback, set_seed

from alignment.config.loading import BestModelArguments, CheckpointArguments
from alignment.data.check import Finding
from alignment.data.reading import CHOICES, Comparison
from alignment.distributed import heartbeat, processes, zero3
from alignment.errors import UserError
from alignment.models import methods
from alignment.models.ensembles import member_name
from alignment.models.selfcheck import say
from alignment.ratings.quality import as_metrics, journalled
from alignment.reports.verdicts import ENDED, Verdict, verdicts
from alignment.runs import resume
from alignment.runs.journal import Journal, Level
from alignment.runs.record import RunRecord
from alignment.runs.run import Run
from alignment.runs.signals import Wanted
from alignment.terminal import one_line
from alignment.training import callbacks, publishing
from alignment.training.best_model import finished_model, held_out_halves, keep_best, published_step
from alignment.training.data_check import DATA_WATCHED, note_findings, write_report
from alignment.training.stage import write_bad_rows
from reward.batches import Layout, QuestionCollator, choose_layout
from reward.config import EnsembleArguments, RewardStageConfig
from reward.evaluation import compact, evaluate, save_report
from reward.evaluation.findings import WATCHED, findings, unmeasured
from reward.evaluation.judged import Judged, judged_pairs, sides
from reward.finish import Finished, Trained, averaged, finish_all, summed_up, write_eval_pairs
from reward.labelers import resolved
from reward.plan import arguments, workload
from reward.prepare import Prepared, make_arguments, prepare, untrained
from reward.questions import Question
from reward.trainer import QuestionTrainer

RECORD = "trained.json"
LABELS = "labels"
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

    def finding(self, step: int, name: str, level: Level, text: str) -> None:
        self._journal.finding(self._start + step, f"{member_name(self._number)} {name}", level, text)

    def cleared(self, step: int, name: str) -> None:
        self._journal.cleared(self._start + step, f"{member_name(self._number)} {name}")


def build_trainer(config: RewardStageConfig, prepared: Prepared, journal: Journal) -> QuestionTrainer:
    """Load the model and wrap it in the trainer; how its batches are laid out is written down."""
    set_seed(prepared.seed)
    tokenizer = prepared.start.tokenizer
    model = methods.apply_method(untrained(config, prepared), config.model)
    layout, reason = lay_out(config, prepared, model)
    with publishing.refused_arguments():
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

    def check() -> None:
        found = trainer.check()
        note_layout(config, prepared, reason or found, journal)

    if zero3.is_parted(trainer.model):  # only its engine can put the weights together
        trainer.add_callback(_AtTheStart(check))
    else:
        trainer.model.to(prepared.arguments.device)
        check()
    return trainer


class _AtTheStart(TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._call()


def note_layout(config: RewardStageConfig, prepared: Prepared, padded: str | None, journal: Journal) -> None:
    """Write the layout down; padded rows of like length come together unless the user wants another order.

    Args:
        padded: why rows are padded; None: they are not.
    """
    journal.event("batches", layout="padded" if padded else "shared_prefix", reason=padded)
    if padded is None:
        return
    if "train_sampling_strategy" not in config.training:
        prepared.arguments.train_sampling_strategy = "group_by_length"
    say(f"reward: each prompt is computed once for each completion: {padded}")


def lay_out(config: RewardStageConfig, prepared: Prepared, model: nn.Module) -> tuple[Layout, str | None]:
    """How batches are laid out, and why their rows are padded where they are."""
    against = ["reward.shared_prefix=off"] if config.reward.shared_prefix == "off" else []
    against += [f"training.{name} is for padded rows" for name in PADDED_ROWS if getattr(prepared.arguments, name)]
    longest = max(max(question.lengths) for question in (*prepared.train, *prepared.held_out))
    return ("padded", against[0]) if against else choose_layout(model, longest)


def train(config: RewardStageConfig) -> dict[str, Any]:
    """Run the stage; returns the published reference and the held-out report."""
    begun = resume.begin(config.run_dir)
    if published := publishing.published_before(config, publishing.open_registry(config), begun.run):
        return published
    heartbeat.enter("reading the data", patient=True)
    prepared = prepare(config, begun.run)
    publishing.pin_models(config, prepared.registry, begun.run)
    with publishing.open_journal(config, "reward", begun) as journal:
        _note_data(journal, config, prepared)
        members = Members(config, prepared, journal, begun)
        trained = members.train()

        def judge_and_publish() -> tuple[str, dict[str, Any]]:
            with zero3.whole_models(), members.copied() as staging:  # ZeRO-3 would part them among all processes
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


class Members:
    """Trains one model, or those of an ensemble one after the other, each into a folder of `RUN/members`.

    A run that goes on takes the members that were finished before its checkpoint from there.
    """

    def __init__(self, config: RewardStageConfig, prepared: Prepared, journal: Journal, begun: resume.Start) -> None:
        self.config, self.prepared, self.journal, self.begun = config, prepared, journal, begun
        self.size, self.stopped = EnsembleArguments.of(config.training).members, False
        self.folder = config.run_dir / "members"
        checkpoint = begun.checkpoint
        part = checkpoint.manifest.part if checkpoint else None
        self.first = int((part or member_name(0)).rpartition("-")[2])
        """The member that the run goes on with."""
        if processes.is_main_process():
            for number in range(self.first, self.size):
                shutil.rmtree(self.folder / member_name(number), ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> list[Trained]:
        trained: list[Trained] = []
        for number in range(self.size):
            record = self.folder / member_name(number) / RECORD
            if number < self.first:
                trained.append(processes.on_main_process(partial(Trained.read, record, self.prepared.probe)))
            else:
                trained.append(self._train(number, sum(member.steps for member in trained)))
                if processes.is_main_process():
                    trained[-1].write(record)
                if self.stopped:  # those that are there are the ensemble
                    self.size = len(trained)
                    break
        return trained

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """The folders of all members, to be changed for publishing. Where that is interrupted, the originals stand but
        for the last one's, which a resumed run trains to its end once more."""
        with tempfile.TemporaryDirectory(dir=self.config.run_dir) as staging:
            for number in range(self.size):
                folder = self.folder / member_name(number)
                (shutil.move if number == self.size - 1 else shutil.copytree)(folder, Path(staging, folder.name))
                Path(staging, folder.name, RECORD).unlink()
            yield Path(staging)
        shutil.rmtree(self.folder)

    def _train(self, number: int, first_step: int) -> Trained:
        """Train one model and leave its files in its folder.

        Args:
            first_step: steps of the members before it.
        """
        config, own, journal = self.config.of_member(number, self.prepared.seed), self.prepared, self.journal
        if number:
            if number > self.first:
                processes.forget_accelerator()
            arguments = make_arguments(config, no_eval=not own.held_out)
            own = replace(own, seed=own.seed + number, arguments=arguments)
            journal = MemberJournal(journal, number, first_step)
        heartbeat.enter("loading the model", patient=True)
        start = self.begun if number == self.first else replace(self.begun, checkpoint=None)
        trainer = build_trainer(config, replace(own, held_out=_halves(config, own.held_out)[0]), journal)
        callbacks.attach(trainer, journal, f"reward {config.name}", BestModelArguments.of(config.training).wanted)
        journal.event("method", method=config.model.method, **methods.describe(trainer.model))
        best = keep_best(trainer, config.training, config.run_dir, journal)
        saving = CheckpointArguments.of(config.training)
        checkpoints = publishing.open_checkpoints(
            config, start, self.journal, keep=saving.save_total_limit, part=member_name(number),
            data=[*own.train_set.fingerprints, *own.eval_set.fingerprints],
        )  # fmt: skip
        trainer.first_step = first_step
        trainer.use_checkpoints(checkpoints, saving.save_steps, start.checkpoint, best, self.journal)
        outcome = trainer.train_on()
        self.stopped = trainer.wanted is Wanted.STOP
        publishing.backend_event(journal, trainer)
        step = published_step(trainer, best)
        metrics: dict[str, Any] = {"train_loss": outcome.training_loss, "steps": outcome.global_step}
        if best is not None:
            metrics |= {"best_step": step, "best_of": best.evaluations if best.is_chosen else 1}
        folder = self.folder / member_name(number)
        with finished_model(trainer, best, config.run_dir) as saved:
            if processes.is_main_process():
                folder.mkdir()
                for file in saved.iterdir():
                    shutil.move(file, folder / file.name)
        assert trainer.probe is not None  # made when the folder was
        return Trained(own.seed, step, metrics, trainer.probe)


def best_of(trained: Sequence[Trained]) -> int:
    """The largest number of evaluations among which a member was chosen; 1: nothing was chosen."""
    return max(int(member.metrics.get("best_of", 1)) for member in trained)


def _halves(config: RewardStageConfig, held_out: list[Question]) -> tuple[list[Question], list[Question]]:
    """Held-out questions that are evaluated in training, and those that a chosen model is reported on."""
    halves = held_out_halves(config.training, [tuple(question.prompt_ids) for question in held_out])
    evaluated, reported = ([held_out[row] for row in half] for half in halves)
    return evaluated, reported


def _judge(
    config: RewardStageConfig, prepared: Prepared, finished: Finished, journal: Journal, step: int, evaluations: int
) -> dict[str, Any]:
    """What is known of the model: its zero point, and how well it does on what was held out.

    Args:
        evaluations: those among which it was chosen; 1: it was not, and nothing held out has an influence on it.
    """
    held_out = _halves(config, prepared.held_out)[1] if evaluations > 1 else prepared.held_out
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
        _show(journal, step, judged_pairs(held_out, scores), config.tracking.num_samples)
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


def _show(journal: Journal, step: int, pairs: Sequence[Judged], num_samples: int) -> None:
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
        for number, pair in enumerate(pairs[:num_samples])
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


def plan(config: RewardStageConfig, world_size: int) -> dict[str, Any]:
    """What `--dry-run` prints beside the config."""
    prepared = prepare(config)
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
    source, bf16 = prepared.start.source, prepared.arguments.bf16
    shape = AutoConfig.from_pretrained(source.config_path, trust_remote_code=config.model.trust_remote_code)
    memory = publishing.memory_plan(lambda: workload(config, shape, bf16), {"init": source}, world_size)
    return rows | publishing.batch_plan(arguments(config), world_size) | memory
