"""Sampling by vLLM, in the training processes (`colocate`) or by a server on other nodes, through TRL's VLLMGeneration.

The policy's weights are sent to vLLM before each rollout. vLLM's distribution differs from the trained policy's by
rounding, so its log-probabilities are returned with the tokens, for `ppo.algorithm.truncated_importance_weights`. It
has its own random generator: the seeds of `Engine.generate` are ignored, and two runs with one seed differ.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed import processes, zero3
from alignment.generation.sampling import GenerationError, Sampled, Sampling
from alignment.proxies import through_proxy
from alignment.templates.ends import through_end

SERVER_SECONDS = 240.0
"""How long to wait for a server; TRL waits as long."""
LOGPROBS_MODE = "processed_logprobs"
"""The mode that a server must be started with, so that its log-probabilities are at the sampling temperature."""


def free_port() -> int:
    """A port of this machine that nobody listens on, for the weights that go to a server."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def check_installed() -> None:
    """Raise GenerationError if vLLM is not installed."""
    from trl.generation import vllm_generation

    if not vllm_generation.is_vllm_available():
        raise GenerationError(
            "rollout.engine=vllm needs vLLM, which is not installed here; pip install 'rlhf-alignment-suite[vllm]' or "
            "set rollout.engine=transformers"
        )


class VLLMEngine:
    """An `Engine` that samples with vLLM.

    Args:
        policy: the model whose weights are sent; a PEFT model's active adapter is merged into them.
        accelerator: the training's accelerator.
        sampling: the settings of every call, since TRL's class holds them.
        max_length: tokens of prompt and response together.
        dtype: dtype of a colocated vLLM, such as `float32`. By default it runs a float32 folder in bfloat16, whatever
            the policy is trained in.
        options: further arguments of `trl.generation.vllm_generation.VLLMGeneration`, by its names.

    Raises:
        GenerationError: vLLM is not installed, or does not start.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        accelerator: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        max_length: int,
        dtype: str,
        **options: Any,
    ) -> None:
        check_installed()
        if getattr(policy, "is_loaded_in_4bit", False):
            raise GenerationError("rollout.engine=vllm has no way to send 4-bit weights; set model.method=lora")
        self._sampling = sampling
        rows = policy.get_input_embeddings().num_embeddings
        if sampling.vocabulary is not None and rows > sampling.vocabulary:  # padding rows are no tokens
            excluded = dict.fromkeys(range(sampling.vocabulary, rows), -100.0)
            options["generation_kwargs"] = {"logit_bias": excluded}
        if options.get("mode") == "server":
            processes.on_main_process(lambda: wait_for_server(options["server_base_url"]))
        try:
            self._vllm = _generation_class(dtype)(
                model=policy,
                accelerator=accelerator,
                processing_class=tokenizer,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                max_completion_length=sampling.max_new_tokens,
                max_model_length=max_length,
                max_num_seqs=sampling.batch_size,
                logprobs=0,  # the sampled token's own
                generation_kwargs=_ends(sampling),
                **options,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise GenerationError(f"rollout.vllm: vLLM does not start: {_first_line(error)}") from error

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Sampled:
        """Sample one response per prompt; every rank must call this, with the same number of prompts.

        Raises:
            GenerationError: vLLM does not accept the weights, fails while sampling, or gives log-probabilities that
                are not finite.
        """
        assert sampling == self._sampling
        try:
            self._vllm.sync_weights()
        except Exception as error:  # whatever vLLM, its workers or its server raise
            raise GenerationError(
                f"rollout.engine=vllm: vLLM did not take the policy's weights: {_first_line(error)}; see "
                "docs/cluster/vllm.md, or sample by rollout.engine=transformers (without rollout.vllm)"
            ) from error
        try:
            outputs = self._vllm.generate(prompts=[list(prompt) for prompt in prompts], images=None, num_generations=1)
        except Exception as error:  # likewise
            raise GenerationError(f"rollout.engine=vllm: vLLM failed while it sampled: {_first_line(error)}") from error
        if outputs[2] is None:
            raise GenerationError("rollout.engine=vllm: vLLM gave no log-probabilities of what it sampled")
        responses, logprobs = [], []
        for ids, candidates in zip(outputs[1], outputs[2], strict=True):
            length = len(through_end(ids, sampling.end_token_ids))
            line = [token[0] for token in candidates[:length]]
            if any(value is None or not math.isfinite(value) for value in line):
                raise GenerationError("vLLM's log-probabilities are not finite; is the policy broken?")
            responses.append(list(ids[:length]))
            logprobs.append(line)
        return Sampled(responses, logprobs)


def _ends(sampling: Sampling) -> dict[str, Any]:
    """vLLM's SamplingParams for the ends beside the tokenizer's EOS."""
    stop: dict[str, Any] = {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
    return {"stop_token_ids": list(sampling.end_token_ids), **stop}


def _first_line(error: BaseException) -> str:
    """An error's type and first line; vLLM's assertions have no text."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def wait_for_server(url: str, seconds: float = SERVER_SECONDS) -> None:
    """Wait for a vLLM server; TRL waits on the main process only, and if it fails there the other ranks hang.

    Raises:
        GenerationError: the server does not answer in time, or was started without support for new weights.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            status = httpx.get(f"{url}/health", timeout=10).status_code
            if status == 200:
                break
            if status == 404:
                raise GenerationError(
                    f"rollout.vllm.server_base_url={url}: a server answers there that has no /health (404): it is no "
                    "vLLM server; expected the address of one, as http://HOST:8000"
                )
            reason = "it is not ready"
        except httpx.HTTPError as error:
            reason = type(error).__name__
        if time.monotonic() > end:
            raise GenerationError(
                f"rollout.vllm.server_base_url={url}: no vLLM server answers there after {seconds:.0f} s ({reason}); "
                f"docs/cluster/vllm.md says how it is started{through_proxy(url)}"
            )
        time.sleep(1.0)
    try:
        status = httpx.get(f"{url}/server_info", timeout=10).status_code
    except httpx.HTTPError as error:
        raise GenerationError(
            f"rollout.vllm.server_base_url={url}: {type(error).__name__}{through_proxy(url)}"
        ) from None
    if status == 404:
        raise GenerationError(
            f"rollout.vllm.server_base_url={url}: the server takes no weights; start it with VLLM_SERVER_DEV_MODE=1 "
            """and --weight-transfer-config '{"backend": "nccl"}' (docs/cluster/vllm.md)"""
        )


@contextmanager
def _computing_in(dtype: str) -> Iterator[None]:
    """Make vLLM's `LLM` compute in this dtype, since TRL's class has no argument for it."""
    from trl.generation import vllm_generation

    real = vllm_generation.LLM
    vllm_generation.LLM = partial(real, dtype=dtype)
    try:
        yield
    finally:
        vllm_generation.LLM = real


def _generation_class(dtype: str) -> type:
    """TRL's class in this dtype, which sends a PEFT model's merged weights without merging them in place.

    TRL merges and unmerges the adapter at each sync, which rounds the base a little more each time; the reference and
    the reward model, which share the base, would drift. Under ZeRO-3 it would gather the whole model to do so; here one
    layer is gathered at a time.
    """
    from trl.generation.vllm_generation import VLLMGeneration

    class Generation(VLLMGeneration):
        def _init_vllm(self) -> None:
            with _computing_in(dtype):
                super()._init_vllm()

        def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
            if isinstance(self.model, PeftModel):
                yield from merged_parameters(self.model)
            else:
                yield from _one_by_one(self.model.named_parameters())

    return Generation


@torch.no_grad()
def merged_parameters(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The base's parameters by name, each with the active adapters merged in; the model itself does not change."""
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        with zero3.gathered_parameters(*layer.parameters(), write_back=False):
            yield from _merged_layer(name, layer)
    others = (item for item in base.named_parameters() if not any(item[0].startswith(f"{layer}.") for layer in layers))
    yield from _one_by_one(others)


def _one_by_one(parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, each gathered until the next is asked for; every rank must go through them."""
    for name, parameter in parameters:
        with zero3.gathered_parameters(parameter, write_back=False):
            yield name, parameter.data


def _merged_layer(name: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
    inner: nn.Module = layer.get_base_layer()
    originals = {key: parameter.data for key, parameter in inner.named_parameters()}
    for key, parameter in inner.named_parameters():
        parameter.data = originals[key].clone()
    layer.merge(adapter_names=layer.active_adapters)
    try:
        for key, parameter in inner.named_parameters():
            yield f"{name}.{key}", parameter.data
    finally:
        layer.merged_adapters.clear()
        for key, parameter in inner.named_parameters():
            parameter.data = originals[key]
