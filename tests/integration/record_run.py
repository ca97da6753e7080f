"""What a run did, written to `$ROWS`: the rows of each process (`record_rows.py`), and of PPO more.

`responses-RANK.jsonl`: each call of the sampling engine as {seed: response}. `steps.jsonl`: figures of each optimizer
step. `weights.safetensors`: all that is trained, the critic too, at the end. `parted.json`: how many numbers of
weights this process holds outside of use, but for the heads of reward models.

`REPLAY` names a folder that was written so: after its first call the engine answers what is on record there.
"""

import json
import os
from pathlib import Path

import record_rows
from safetensors.torch import save_file

import ppo.publish
import ppo.rollout
import ppo.sampler
import ppo.update
from alignment.distributed import fsdp
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import Sampled


class RecordedEngine:
    def __init__(self, policy, tokenizer):
        self.engine, self.calls, self.known = TransformersEngine(policy, tokenizer), 0, {}
        self.file = folder() / f"responses-{os.environ['RANK']}.jsonl"
        if "REPLAY" in os.environ:
            for line in Path(os.environ["REPLAY"], "responses-0.jsonl").read_text().splitlines():
                self.known |= json.loads(line)

    def generate(self, prompts, seeds, sampling):
        if self.calls and self.known:
            found = Sampled([self.known[str(seed)] for seed in seeds], None)
        else:
            found = self.engine.generate(prompts, seeds, sampling)
        self.calls += 1
        with self.file.open("a") as file:
            file.write(json.dumps(dict(zip(map(str, seeds), found.responses, strict=True))) + "\n")
        return found


def folder():
    return Path(os.environ["ROWS"])


def recorded_step(original):
    def step(self, *args, **kwargs):
        sums, norms = original(self, *args, **kwargs)
        if os.environ["RANK"] == "0":
            metrics = sums.means() | {"norm": list(norms.values())}
            with (folder() / "steps.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        return sums, norms

    return step


def recorded_publish(original):
    def publish(publisher, loop, metrics):
        models = publisher.models
        modules = [models.trained, *models.frozen()]
        heads = [member.head for scorer in models.scorers() for member in scorer.members]
        whole = {id(parameter) for head in heads for parameter in head.parameters()}  # few numbers each
        parameters = [parameter for module in modules for parameter in module.parameters()]
        held = sum(fsdp.local(parameter).numel() for parameter in parameters if id(parameter) not in whole)
        (folder() / f"parted-{os.environ['RANK']}.json").write_text(json.dumps(held))
        weights = loop.engine.full_state_dict()
        if os.environ["RANK"] == "0":
            trained = [name for name, parameter in models.trained.named_parameters() if parameter.requires_grad]
            save_file({name: weights[name].clone() for name in trained}, folder() / "weights.safetensors")
        return original(publisher, loop, metrics)

    return publish


def install():
    record_rows.install()
    ppo.sampler.TransformersEngine = ppo.rollout.TransformersEngine = RecordedEngine
    ppo.update.Updater._optimizer_step = recorded_step(ppo.update.Updater._optimizer_step)
    ppo.publish.Publisher.publish = recorded_publish(ppo.publish.Publisher.publish)
