"""`python -m ppo` that writes watched-RANK.json: what a sync holds of the policy at a time, and how vLLM divides it.

The weights that are held are those gathered from their shards, and those that vLLM still keeps of what it was given.
"""

import json
import os
import weakref

from alignment.generation import vllm
from alignment.training.stage import exit_process
from ppo.__main__ import main

real_weights, real_generate = vllm.policy_weights, vllm.VLLMEngine.generate
seen = {"whole": 0, "gathered": 0, "kept": 0, "heads": 0}


def watched_weights(model, every_name):
    kept, whole = [], 0
    for name, tensor in real_weights(model, every_name=every_name):
        kept = [each for each in kept if each() is not None] + [weakref.ref(tensor)]
        gathered = [p for p in model.parameters() if hasattr(p, "ds_id") and p.ds_status.name == "AVAILABLE"]
        whole += tensor.numel()
        seen["kept"] = max(seen["kept"], sum(each().numel() for each in kept))
        seen["gathered"] = max(seen["gathered"], sum(p.numel() for p in gathered))
        yield name, tensor
        del tensor
    seen["whole"] = whole


def watched_generate(self, *arguments):
    sampled = real_generate(self, *arguments)
    model = self._vllm.llm.llm_engine.model_executor.driver_worker.model_runner.model
    seen["heads"] = model.model.layers[0].self_attn.num_heads
    return sampled


vllm.policy_weights, vllm.VLLMEngine.generate = watched_weights, watched_generate

if __name__ == "__main__":
    code = main()
    with open(f"watched-{os.environ['RANK']}.json", "w") as file:
        json.dump(seen, file)
    exit_process(code)
