"""What TRL's VLLMGeneration uses of vLLM, by transformers: a copy of the policy of its own, with its own generator.

It counts what was asked of it; the class around it is TRL's real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from trl.generation import vllm_generation


@dataclass
class SamplingParams:
    n: int
    temperature: float
    max_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


class LLM:
    """`noise`: standard deviation of what its logits are off by, as another kernel's rounding would put them.

    With `enable_sleep_mode` it forgets its weights in its sleep (level 2), and takes none and samples nothing before
    what it needs is awake.
    """

    noise = 0.0
    made: list[LLM] = []

    def __init__(self, model: str, max_model_len: int, **options: Any) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        self.options, self.max_model_len, self.syncs = options, max_model_len, 0
        self.awake = {"weights", "kv_cache"}
        self.generator = torch.Generator().manual_seed(0)
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        LLM.made.append(self)

    def sleep(self, level: int) -> None:
        assert level == 2 and self.options["enable_sleep_mode"] and self.awake == {"weights", "kv_cache"}
        self.awake = set()
        for parameter in self.model.parameters():
            parameter.data.fill_(math.nan)

    def wake_up(self, tags: list[str]) -> None:
        assert not self.awake & set(tags)
        self.awake |= set(tags)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights" and "weights" in self.awake
        self.load_weights(kwargs["weights_iterator"])

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in weights:
            own[name].data.copy_(tensor)  # KeyError is vLLM's too, for a name that it does not know

    def reset_prefix_cache(self) -> None:
        self.syncs += 1

    @torch.no_grad()
    def generate(self, prompts: list[dict[str, Any]], sampling_params: SamplingParams, use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        return [self._answer(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        ids, logprobs = list(prompt), []
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1] / params.temperature
            logits = logits + self.noise * torch.randn(logits.shape, generator=self.generator)
            spread = logits.double().log_softmax(-1)
            token = int(torch.multinomial(spread.exp(), 1, generator=self.generator))
            ids.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(spread[token]), rank=1)})
            if token == self.model.config.eos_token_id or token in params.stop_token_ids:
                break
        assert len(ids) <= self.max_model_len and all(math.isfinite(x.logprob) for y in logprobs for x in y.values())
        output = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=logprobs)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[output])


class VLLMClient:
    """A server in this process: the client that TRL talks to it with. It takes no weights while it samples."""

    made: list[VLLMClient] = []

    def __init__(self, base_url: str, group_port: int, connection_timeout: float) -> None:
        self.base_url, self.group_port, self.weights = base_url, group_port, dict[str, torch.Tensor]()
        self.llm: LLM | None = None
        self.sampling = False
        VLLMClient.made.append(self)

    def init_communicator(self, device: Any) -> None:
        assert self.llm is None

    def update_named_params(self, metadata: list[tuple[str, str, list[int]]], named: Any) -> None:
        assert self.llm is not None and not self.sampling
        found = [(name, tensor.clone()) for name, tensor in named]
        assert [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in found] == metadata
        self.llm.load_weights(found)

    def reset_prefix_cache(self) -> None:
        assert self.llm is not None and not self.sampling
        self.llm.reset_prefix_cache()

    def generate(self, prompts: list[list[int]], **how: Any) -> dict[str, Any]:
        assert self.llm is not None and how["n"] == 1
        params = SamplingParams(1, how["temperature"], how["max_tokens"], **how["generation_kwargs"])
        self.sampling = True
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        self.sampling = False
        logprobs, ids = vllm_generation.extract_logprobs(outputs)
        answers = [output.outputs[0].token_ids for output in outputs]
        return {"prompt_ids": prompts, "completion_ids": answers, "logprobs": logprobs, "logprob_token_ids": ids}


def install(monkeypatch: Any) -> None:
    """Put it where TRL looks for vLLM."""
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", VLLMClient)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(VLLMClient, "made", [])
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # which TRL sets
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
