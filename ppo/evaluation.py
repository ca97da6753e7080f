"""Answers to the held-out prompts, their metrics, and which evaluation was the best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignment.distributed import heartbeat, zero3
from alignment.distributed import processes as distributed
from alignment.distributed.processes import all_reduce_sum
from alignment.intervals import choosing_half, win_rate
from alignment.runs.journal import NUM_SAMPLES, Journal
from ppo import best_of_n
from ppo.algorithm import ScoreStats
from ppo.best_policy import BestPolicy
from ppo.config import PPOStageConfig
from ppo.controllers import RewardScaler
from ppo.ema import EMA
from ppo.models import Models
from ppo.prompts import EncodedPrompt, Task, make_tasks, share_of_process
from ppo.rollout import Collector, Rollout
from ppo.stats import explained_variance
from ppo.targets import TargetBuilder

EVAL_SEED = 1_000_000_007
T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutAnswers:
    """One answer to each held-out prompt, in the prompts' order; the same on every process.

    Args:
        scores, held_out_scores: by what is trained for, and by `model.held_out_reward` (None without one); with what
            unfinished answers cost, in standard deviations of its own judge's scores.
        raw_scores: what is trained for, without these costs.
        parts: what the raw scores are made of, by name.
        kl: from the reference, in nats per response.
        lengths: in tokens, with EOS.
    """

    scores: list[float]
    raw_scores: list[float]
    parts: dict[str, list[float]]
    held_out_scores: list[float] | None
    kl: list[float]
    lengths: list[float]
    ended: list[bool]
    texts: list[str]

    @property
    def deciding_scores(self) -> list[float]:
        """The scores that choose: those of the model that training never saw, if there is one."""
        return self.scores if self.held_out_scores is None else self.held_out_scores

    def only(self, rows: Sequence[int]) -> HeldOutAnswers:
        """The answers to some of the prompts."""

        def of(column: Sequence[T]) -> list[T]:
            return [column[row] for row in rows]

        held_out = None if self.held_out_scores is None else of(self.held_out_scores)
        parts = {name: of(column) for name, column in self.parts.items()}
        return HeldOutAnswers(
            of(self.scores), of(self.raw_scores), parts, held_out, of(self.kl), of(self.lengths), of(self.ended),
            of(self.texts),
        )  # fmt: skip


def answer_metrics(now: HeldOutAnswers, start: HeldOutAnswers | None, groups: Sequence[Hashable]) -> dict[str, float]:
    """Means, with standard errors over answers (`_se`) of the scores; and against the answers of the policy as it
    started the fraction that is better, ties one half, with a 95% interval over prompts.

    Args:
        groups: the prompt of each answer.
    """
    metrics = {"score": fmean(now.scores), "score_se": _standard_error(now.scores)}
    metrics |= {"raw_score": fmean(now.raw_scores), "raw_score_se": _standard_error(now.raw_scores)}
    if any(now.ended):
        metrics["finished_raw_score"] = fmean(
            score for score, ended in zip(now.raw_scores, now.ended, strict=True) if ended
        )
    for name, column in now.parts.items():
        metrics |= {f"reward/{name}": fmean(column), f"reward_se/{name}": _standard_error(column)}
    if now.held_out_scores is not None:
        metrics["held_out_score"] = fmean(now.held_out_scores)
    metrics |= {"kl": fmean(now.kl), "length": fmean(now.lengths), "ended": fmean(now.ended)}
    if start is not None:
        share = win_rate(now.deciding_scores, start.deciding_scores, groups)
        metrics |= {"win_rate": share["value"], "win_rate_low": share["ci"][0], "win_rate_high": share["ci"][1]}
    return metrics


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def halves(groups: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The answers that the best policy is chosen by, and those that its metrics are reported on (`choosing_half`).
    All of them for both where there is a single prompt."""
    chooses = choosing_half(groups)
    if all(chooses):
        return list(range(len(groups))), list(range(len(groups)))
    choosing = [row for row, is_chooser in enumerate(chooses) if is_chooser]
    return choosing, [row for row, is_chooser in enumerate(chooses) if not is_chooser]


class Evaluation:
    """Evaluates the policy on the held-out prompts, and remembers the start, the last and the best evaluation."""

    def __init__(
        self,
        config: PPOStageConfig,
        models: Models,
        collector: Collector,
        target_builder: TargetBuilder,
        ema: EMA | None,
        journal: Journal,
        prompts: Sequence[EncodedPrompt],
    ) -> None:
        self.config, self.models, self.collector, self.target_builder = config, models, collector, target_builder
        self.ema, self.journal, self.prompts = ema, journal, list(prompts)
        self.accelerator = collector.accelerator
        self._groups = [prompt.group for prompt, _ in self.prompts]
        self.choosing, self.reporting = halves(self._groups)
        """The prompts that choose the best policy, and those that it is reported on."""
        self.held_out_scaler = RewardScaler("reference")
        """Statistics of the scores of `model.held_out_reward`, which have another scale."""
        self.best = BestPolicy(config.training, config.run_dir, config.rewards.bounds)
        self._best_answers: HeldOutAnswers | None = None
        self.start: HeldOutAnswers | None = None
        """The answers of the policy as it started."""
        self.start_metrics: dict[str, float] = {}
        self.start_reported: dict[str, float] = {}
        """The same on the prompts that the best policy is reported on."""
        self.last_metrics: dict[str, float] = {}
        self.best_of_n: best_of_n.StartDraws | None = None
        self.best_of_n_rows: list[dict[str, Any]] = []
        """What the best of n answers of the policy as it started scores, for n = 1, 2, 4, ..."""
        self._explained: float | None = None
        """The fraction that the critic explains of the variance of what the last answers earned."""

    def is_due(self, step: int) -> bool:
        """True if the policy is evaluated after so many iterations."""
        every, last = self.config.training.eval_steps, self.config.training.max_steps
        return step == last or (every > 0 and step % every == 0)

    def run(self, step: int) -> dict[str, float] | None:
        """Answer every held-out prompt once, always with the same seed; journal the metrics and a few answers, and
        keep the policy if it is the best so far."""
        if not self.prompts:
            return None
        heartbeat.enter(f"the evaluation after iteration {step}")
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
            answers = self.answer(step)
            if self.start is None:
                self.start = answers
            metrics, choosing, reported = self._metrics(answers)
            if step == 0:
                self.start_metrics, self.start_reported = metrics, reported
                self._draw_best_of_n(answers)
            if self._explained is not None:
                metrics["explained_variance"] = self._explained
            if self.best.consider(step, choosing, reported, self._policy_weights):
                self._best_answers = answers
        self.last_metrics = metrics
        named = {f"eval/{name}": value for name, value in (metrics | best_of_n.line(self.best_of_n_rows)).items()}
        self.journal.log(step, named)
        for name, values in (("score", answers.scores), ("kl", answers.kl), ("length", answers.lengths)):
            self.journal.histogram(step, f"eval/{name}", values)
        return named

    def answer(self, step: int) -> HeldOutAnswers:
        """Answer and score every held-out prompt. Every process answers as many, since a shorter share would leave the
        others waiting in a collective; prompts repeated for that are dropped."""
        tasks = make_tasks(self.prompts, range(len(self.prompts)), 1)
        rollout = self._collect(tasks)
        held_out_scores: list[float] | None = None
        if self.models.held_out_reward is not None:
            held_out_scores = self._by_held_out_reward(rollout, step).tolist()
        columns: dict[str, list[Any]] = {
            "score": self.target_builder.scores(rollout).tolist(),
            "raw_score": rollout.scores.tolist(),
            "kl": rollout.kl.sum(1).tolist(),
            "length": rollout.lengths.tolist(),
            "ended": rollout.ended.tolist(),
            "text": rollout.texts,
            **{f"reward/{name}": part.tolist() for name, part in rollout.parts.items()},
        }
        if held_out_scores is not None:
            columns["held_out_score"] = held_out_scores
        local = [{name: column[row] for name, column in columns.items()} for row in range(len(rollout))]
        rows = [row for share in distributed.gather_lists(local) for row in share][: len(tasks)]
        shown = list(enumerate(zip(tasks, rows, strict=True)))[:NUM_SAMPLES]
        self.journal.samples(step, [_sample(number, task, row) for number, (task, row) in shown])
        if self.models.critic is not None:
            critic = self.target_builder.critic_targets(rollout, self.target_builder.rewards(rollout))
            self._explained = explained_variance(critic.outcomes, critic.old_values, rollout.response_mask)
        everywhere = {name: [row[name] for row in rows] for name in columns}
        return HeldOutAnswers(
            scores=everywhere["score"],
            raw_scores=everywhere["raw_score"],
            parts={name: everywhere[f"reward/{name}"] for name in rollout.parts},
            held_out_scores=everywhere.get("held_out_score"),
            kl=everywhere["kl"],
            lengths=everywhere["length"],
            ended=everywhere["ended"],
            texts=everywhere["text"],
        )

    def _collect(self, tasks: Sequence[Task]) -> Rollout:
        """This process's share of the answers to these tasks."""
        world_size = self.accelerator.num_processes
        padded = (list(tasks) * world_size)[: len(tasks) + -len(tasks) % world_size]
        return self.collector.collect(share_of_process(padded, self.accelerator), EVAL_SEED)

    def _draw_best_of_n(self, start: HeldOutAnswers) -> None:
        """Further answers of the policy as it starts, one round after the other, so that none is larger than an
        evaluation; and the line that they give."""
        count = best_of_n.number_of_draws(self.config, len(self.prompts))
        if not count:
            return
        rounds = [(start.raw_scores, start.ended, start.scores, start.held_out_scores)]
        for repeat in range(1, count):
            heartbeat.enter(f"best of {count}, round {repeat + 1}")
            tasks = [task._replace(repeat=repeat) for task in make_tasks(self.prompts, range(len(self.prompts)), 1)]
            rollout = self._collect(tasks)
            held_out = None if self.models.held_out_reward is None else self._by_held_out_reward(rollout, 1).tolist()
            columns = (
                rollout.scores.tolist(), rollout.ended.tolist(), self.target_builder.scores(rollout).tolist(), held_out,
            )  # fmt: skip
            shares = distributed.gather_lists([columns])
            joined = [
                None if part[0] is None else [value for each in part for value in each][: len(tasks)]
                for part in zip(*(share[0] for share in shares), strict=True)
            ]
            rounds.append(tuple(joined))  # type: ignore[arg-type]
        by_prompt = [
            None if column[0] is None else [list(each) for each in zip(*column, strict=True)]
            for column in zip(*rounds, strict=True)
        ]
        self.best_of_n = best_of_n.StartDraws(*by_prompt)  # type: ignore[arg-type]
        self._note_best_of_n(0)

    def _note_best_of_n(self, step: int) -> None:
        assert self.best_of_n is not None
        self.best_of_n_rows = best_of_n.table(self.best_of_n, self._groups)
        self.journal.event(
            "best_of_n", step=step, prompts=len(self._groups), temperature=self.config.rollout.temperature,
            rows=self.best_of_n_rows,
        )  # fmt: skip

    def _by_held_out_reward(self, rollout: Rollout, step: int) -> Tensor:
        """Scores of the model that training never sees, with the penalty of unfinished answers on its scale."""
        model, scaler = self.models.held_out_reward, self.target_builder.reward_scaler
        assert model is not None
        raw, _ = self.collector.score_with(model, rollout.tasks, rollout.rows, rollout.texts)
        if step == 0:
            self.held_out_scaler.observe(raw, all_reduce_sum)
        stats = self.held_out_scaler.stats
        if self.config.rewards.normalize is None:
            # Costs are in points of the training score: as many standard deviations of these are as many of its own.
            std = stats.std / scaler.start.std
            stats = ScoreStats(stats.mean - scaler.start.mean * std, std)
        return self.target_builder.with_penalty(raw, rollout.ended, stats)

    def _metrics(self, answers: HeldOutAnswers) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Metrics on all held-out prompts, on those that choose the best, and on those that it is reported on."""
        before = self._with_costs(self.start) if self.start is not None and answers is not self.start else None

        def on(rows: Sequence[int]) -> dict[str, float]:
            start = before.only(rows) if before is not None else None
            return answer_metrics(answers.only(rows), start, [self._groups[row] for row in rows])

        return on(range(len(self._groups))), on(self.choosing), on(self.reporting)

    def _with_costs(self, answers: HeldOutAnswers) -> HeldOutAnswers:
        """Earlier answers, penalised by today's score statistics, which come later if all scores were equal then."""
        raw, ended = torch.tensor(answers.raw_scores), torch.tensor(answers.ended)
        costed = self.target_builder.with_penalty(raw, ended, self.target_builder.reward_scaler.penalty_stats)
        return replace(answers, scores=costed.tolist())

    def restate(self) -> dict[str, float] | None:
        """The start's metrics anew, where the score statistics are found after the start (its scores were all equal):
        this changes what unfinished answers cost, so that a policy that stayed as it is would look better or worse."""
        if self.start is None:
            return None
        self.start = self._with_costs(self.start)
        if self.best_of_n is not None:
            raw, ended = (torch.tensor(self.best_of_n[place]) for place in (0, 1))
            stats = self.target_builder.reward_scaler.penalty_stats
            costed = self.target_builder.with_penalty(raw.flatten(), ended.flatten(), stats)
            self.best_of_n = self.best_of_n._replace(scores=costed.view(raw.shape).tolist())
            self._note_best_of_n(0)
        self.start_metrics, _, self.start_reported = self._metrics(self.start)
        if self._best_answers is not None:
            best = self.start if self.best.step == 0 else self._with_costs(self._best_answers)
            _, choosing, reported = self._metrics(best)
            self.best.restate(choosing, reported)
        return {f"eval/{name}": value for name, value in self.start_metrics.items()}

    def _policy_weights(self) -> dict[str, Tensor]:
        """The trained parameters of the policy, on the main process."""
        return zero3.gather_weights(self.models.trained.trained_parameters("policy"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best.state_dict(),
            "held_out_unit": self.held_out_scaler.state_dict(),
            "first_figures": self.start_metrics,
            "first_reported": self.start_reported,
            "last_figures": self.last_metrics,
            "start": self.start and asdict(self.start),
            "best_judged": self._best_answers and asdict(self._best_answers),
            "best_of_n": self.best_of_n and self.best_of_n._asdict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.load_state_dict(state["best"])
        self.held_out_scaler.load_state_dict(state["held_out_unit"])
        self.start_metrics, self.start_reported = state["first_figures"], state["first_reported"]
        self.last_metrics = state["last_figures"]
        self.start = state["start"] and HeldOutAnswers(**state["start"])
        self._best_answers = state["best_judged"] and HeldOutAnswers(**state["best_judged"])
        if drawn := state.get("best_of_n"):  # a checkpoint of an earlier version has none
            self.best_of_n = best_of_n.StartDraws(**drawn)
            self.best_of_n_rows = best_of_n.table(self.best_of_n, self._groups)


def _sample(number: int, task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples.jsonl."""
    sample = {"id": number, "prompt": list(task.prompt.messages), "response": row["text"], "score": row["score"]}
    sample |= {"kl": row["kl"], "length": int(row["length"]), "ended": bool(row["ended"])}
    return sample | ({"held_out_score": row["held_out_score"]} if "held_out_score" in row else {})
