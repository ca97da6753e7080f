"""Sampling by vLLM, in the training processes (`colocate`) or by a server on other nodes, through TRL's VLLMGeneration.

The policy's weights are sent to vLLM before each rollout, one tensor at a time. vLLM's distribution differs from the
trained policy's by rounding, so its log-probabilities are returned with the tokens, for
`ppo.algorithm.truncated_importance_weights`. It has its own random generator: the seeds of `Engine.generate` are
ignored, and two runs with one seed differ.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.distributed import fsdp, processes, zero3
from alignment.generation.sampling import GenerationError, Sampled, Sampling
from alignment.generation.vllm_server import FileTransfer, Server, find_server, in_background
from alignment.templates.ends import through_end

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - no file of ours, and no name that others could take
"""Where Linux shows shared memory by its name."""


def check_installed() -> None:
    """Raise GenerationError if vLLM is not installed."""
    from trl.generation import vllm_generation

    if not vllm_generation.is_vllm_available():
        raise GenerationError(
            "rollout.vllm needs vLLM, which is not installed here; pip install 'rlhf-alignment-suite[vllm]' or set "
            "rollout.vllm=null"
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
        weights_folder: where the weights are written for a server that does not take them by NCCL.
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
        weights_folder: Path,
        **options: Any,
    ) -> None:
        check_installed()
        if getattr(policy, "is_loaded_in_4bit", False):
            raise GenerationError("rollout.vllm: there is no way to send 4-bit weights; set model.method=lora")
        self._sampling, self._in_flight = sampling, False
        rows = policy.get_input_embeddings().num_embeddings
        if sampling.vocabulary is not None and rows > sampling.vocabulary:  # padding rows are no tokens
            excluded = dict.fromkeys(range(sampling.vocabulary, rows), -100.0)
            options["generation_kwargs"] = {"logit_bias": excluded}
        server: Server | None = None
        self._by_server = options.get("mode") == "server"
        if self._by_server:
            server = processes.on_main_process(lambda: find_server(options["server_base_url"]))
            _check_dtype(server, dtype)
        try:
            self._vllm = _generation_class(dtype, server, weights_folder)(
                model=policy,
                accelerator=accelerator,
                processing_class=tokenizer,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                max_completion_length=sampling.max_new_tokens,
                max_model_length=max_length,
                max_num_seqs=sampling.batch_size * options.get("tensor_parallel_size", 1),
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
        return self.begin(prompts, seeds, sampling)()

    def begin(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Callable[[], Sampled]:
        """Send the weights and begin to sample; the call that is returned waits for the responses, and raises what
        `generate` does. A server samples in the meantime; colocated, vLLM has sampled when this returns.

        Every rank must call both. Nothing else may be asked of the engine in between: the weights would change under
        the requests.
        """
        assert sampling == self._sampling
        assert not self._in_flight
        try:
            self._vllm.sync_weights()
        except Exception as error:  # whatever vLLM, its workers or its server raise
            raise GenerationError(
                f"rollout.vllm: vLLM did not take the policy's weights: {_first_line(error)}; see "
                "docs/cluster/vllm.md, or sample without vLLM (rollout.vllm=null)"
            ) from error
        try:
            wait = _ask(self._vllm, self._by_server, [list(prompt) for prompt in prompts])
        except Exception as error:  # likewise
            raise GenerationError(f"rollout.vllm: vLLM failed while it sampled: {_first_line(error)}") from error
        self._in_flight = True

        def finish() -> Sampled:
            try:
                answers = wait()
            finally:
                self._in_flight = False
            return self._read(*answers)

        return finish

    def _read(self, answers: list[list[int]], candidates: list[list[list[float]]] | None, seconds: float) -> Sampled:
        """vLLM's answers up to their ends, with the log-probabilities of the sampled tokens."""
        if candidates is None:
            raise GenerationError("rollout.vllm: vLLM gave no log-probabilities of what it sampled")
        responses, logprobs = [], []
        for ids, lines in zip(answers, candidates, strict=True):
            length = len(through_end(ids, self._sampling.end_token_ids))
            line = [token[0] for token in lines[:length]]
            if any(value is None or not math.isfinite(value) for value in line):
                raise GenerationError("vLLM's log-probabilities are not finite; is the policy broken?")
            responses.append(list(ids[:length]))
            logprobs.append(line)
        return Sampled(responses, logprobs, seconds)


def _check_dtype(server: Server, dtype: str) -> None:
    if server.dtype != getattr(torch, dtype):
        actual = str(server.dtype).removeprefix("torch.")
        raise GenerationError(
            f"rollout.vllm.server_base_url={server.url}: the server computes in {actual}, and rollout.vllm.dtype means "
            f"{dtype}; set rollout.vllm.dtype={actual}, or start the server with --dtype {dtype}"
        )


def _ends(sampling: Sampling) -> dict[str, Any]:
    """vLLM's SamplingParams for the ends beside the tokenizer's EOS."""
    stop: dict[str, Any] = {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
    return {"stop_token_ids": list(sampling.end_token_ids), **stop}


def _first_line(error: BaseException) -> str:
    """An error's type and first line; vLLM's assertions have no text."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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


def _leave_process_groups(llm: Any) -> None:
    """Keep vLLM from destroying process groups when the interpreter ends: they are gone then, and each run would end in
    a traceback."""
    finalizer = getattr(getattr(llm.llm_engine, "engine_core", None), "_finalizer", None)
    if finalizer is not None:
        finalizer.detach()
        gc.unfreeze()  # as it would have done; else Triton lists what the interpreter did not collect


def _forget_shared_memory() -> None:
    """Remove the name of the memory that the processes of one copy share on a CPU, which they have open by now.

    vLLM's name is the same in each run, and outlives processes that end abruptly: no later run would start.
    """
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    name = getattr(getattr(group.device_communicator, "dist_module", None), "group_name", None)
    if name is not None:
        SHARED_MEMORY.joinpath(f"{name.lstrip('/')}_{group.rank_in_group}").unlink(missing_ok=True)


def _generation_class(dtype: str, server: Server | None, weights_folder: Path) -> type:
    """TRL's class in this dtype, with another way to send the weights.

    TRL merges and unmerges an adapter at each sync, which rounds the base a little more each time; the reference and
    the reward model, which share the base, would drift. It would gather a whole model to do so, and loads tensors past
    what vLLM makes of them (on a CPU, packed weights).
    """
    from trl.generation import vllm_generation
    from trl.generation.vllm_generation import VLLMGeneration

    class Generation(VLLMGeneration):
        def _init_vllm(self) -> None:
            self._files = None
            if server is None or server.by_nccl:
                with _computing_in(dtype):
                    super()._init_vllm()
                if server is None:
                    _leave_process_groups(self.llm)
                    if self.tensor_parallel_size > 1 and processes.on_cpu():
                        _forget_shared_memory()
                return
            if processes.is_main_process():
                self.vllm_client = vllm_generation.VLLMClient(
                    base_url=server.url, group_port=self.group_port, connection_timeout=self.server_timeout
                )
            self._files = FileTransfer(server, weights_folder)
            processes.wait_for_everyone()

        def sync_weights(self) -> None:
            if self._files is not None:
                self._files.send(self._iter_named_params())
                if processes.is_main_process():
                    self.vllm_client.reset_prefix_cache()
            elif server is not None:
                super().sync_weights()
            else:
                if self.enable_sleep_mode:
                    vllm_generation.empty_cache()  # else there may be no room for what wakes up
                    self.llm.wake_up(tags=["weights"])
                    self._llm_weights_sleeping = False
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._iter_named_params()})
                self.llm.reset_prefix_cache()

        def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
            on_cpu = processes.on_cpu() if server is None else server.on_cpu
            return policy_weights(self.model, every_name=on_cpu)

    return Generation


def _ask(vllm: Any, by_server: bool, prompts: list[list[int]]) -> Callable[[], tuple[Any, Any, float]]:
    """Begin to sample a response to each prompt; the call that is returned gives their tokens, log-probabilities, and
    how long it took. Every rank must call both.

    TRL's own `generate` waits for a server, and its collectives would meet those of an update.
    """
    started = time.monotonic()
    if not by_server:
        _, ids, logprobs, _ = vllm.generate(prompts=prompts, images=None, num_generations=1)
        seconds = time.monotonic() - started
        return lambda: (ids, logprobs, seconds)
    everywhere = [prompt for share in processes.gather_lists(prompts) for prompt in share]

    def request() -> tuple[Any, Any, float]:
        answer = vllm.vllm_client.generate(
            prompts=everywhere,
            n=1,
            temperature=vllm.temperature,
            top_p=vllm.top_p,
            top_k=vllm.top_k,
            max_tokens=vllm.max_completion_length,
            logprobs=vllm.logprobs,
            generation_kwargs=vllm.generation_kwargs,
        )
        return answer["completion_ids"], answer["logprobs"], time.monotonic() - started

    answer = in_background(request) if processes.is_main_process() else None
    return lambda: _share_of(answer, len(prompts))


def _share_of(answer: Callable[[], tuple[Any, Any, float]] | None, count: int) -> tuple[Any, Any, float]:
    """This rank's part of a server's answers, for which the main process waits.

    Raises:
        GenerationError: the request failed; on every rank.
    """

    def wait() -> tuple[Any, Any, float] | None:
        if answer is None:
            return None
        try:
            return answer()
        except Exception as error:  # client and server raise many kinds of errors
            raise GenerationError(f"rollout.vllm: vLLM failed while it sampled: {_first_line(error)}") from error

    ids, logprobs, seconds = processes.gather_lists([processes.on_every_process(wait)])[0][0]
    start = count * processes.process_index()
    part = slice(start, start + count)
    return ids[part], None if logprobs is None else logprobs[part], seconds


@torch.no_grad()
def policy_weights(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights, module by module, with a PEFT model's active adapters merged in; every rank must go through
    them. The model does not change, and no more than a module is gathered at a time.

    vLLM puts a module in place once it has all its weights, so they must come together.

    Args:
        every_name: give tied weights under each of their names. On a CPU vLLM packs a copy of the head, and packs it
            anew only if the head is named: it would sample on by the head that it had.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted, seen = None, set[int]()
    for name, module in base.named_modules():
        if adapted is not None and name.startswith(f"{adapted}."):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted = name
            yield from _merged_layer(name, module)
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if every_name or id(parameter) not in seen:
                seen.add(id(parameter))
                with zero3.gathered_parameters(parameter, write_back=False):
                    yield f"{name}.{key}" if name else key, fsdp.whole(parameter.data)


def _merged_layer(name: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
    with zero3.gathered_parameters(*layer.parameters(), write_back=False), fsdp.whole_parameters(layer):
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
