"""A vLLM server on other nodes: wait for it, ask how it takes weights, and send them in files where it has no NCCL."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from alignment.distributed import processes
from alignment.generation.sampling import GenerationError
from alignment.proxies import through_proxy

T = TypeVar("T")
SERVER_SECONDS = 240.0
"""How long to wait for a server; TRL waits as long."""
LOGPROBS_MODE = "processed_logprobs"
"""The mode that a server must be started with, so that its log-probabilities are at the sampling temperature."""
SHARD_BYTES = 2_000_000_000
"""Weights that the main process holds in host memory before it writes them."""


def free_port() -> int:
    """A port of this machine that nobody listens on, for the weights that go to a server by NCCL."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def in_background(call: Callable[[], T]) -> Callable[[], T]:
    """Begin a call in a thread; the call that is returned waits for its result, or raises what it raised. A run that
    ends meanwhile does not wait for it."""
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def result() -> T:
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    return result


@dataclass(frozen=True)
class Server:
    """A vLLM server, as it was started.

    Args:
        by_nccl: whether it takes weights by NCCL; else from files.
        on_cpu: whether it computes on a CPU.
        dtype: type of its weights.
    """

    url: str
    by_nccl: bool
    on_cpu: bool
    dtype: torch.dtype


def find_server(url: str, seconds: float = SERVER_SECONDS) -> Server:
    """Wait for a server, on the main process: TRL waits there alone, and if it fails the other ranks hang.

    Raises:
        GenerationError: the server does not answer in time, or was not started as docs/cluster/vllm.md says.
    """
    _wait(url, seconds)
    key = f"rollout.vllm.server_base_url={url}"
    try:
        answer = httpx.get(f"{url}/server_info", params={"config_format": "json"}, timeout=60)
    except httpx.HTTPError as error:
        raise GenerationError(f"{key}: {type(error).__name__}{through_proxy(url)}") from None
    if answer.status_code == 404:
        raise GenerationError(
            f"{key}: the server takes no weights; start it with VLLM_SERVER_DEV_MODE=1 (docs/cluster/vllm.md)"
        )
    try:
        config = answer.json()["vllm_config"]
        model, transfer = config["model_config"], config["weight_transfer_config"]
        device, mode = str(config["device_config"]["device"]), model["logprobs_mode"]
        dtype = getattr(torch, str(model["dtype"]).removeprefix("torch."))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GenerationError(
            f"{key}: its /server_info ({answer.status_code}) is not that of a vLLM that this version knows; "
            "constraints-vllm.txt has one"
        ) from None
    if mode != LOGPROBS_MODE:
        raise GenerationError(
            f"{key}: the server gives {mode}, which are not at the sampling temperature; start it with "
            f"--logprobs-mode {LOGPROBS_MODE}"
        )
    if transfer is not None and (transfer.get("backend") != "nccl" or processes.on_cpu()):
        raise GenerationError(
            f"{key}: the server waits for weights by {transfer.get('backend')}, and this run "
            f"{'has no GPU' if processes.on_cpu() else 'sends by nccl'}; start it without --weight-transfer-config: "
            "it then reads the weights from files in the run's folder"
        )
    return Server(url, by_nccl=transfer is not None, on_cpu=device == "cpu", dtype=dtype)


def _wait(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            status = httpx.get(f"{url}/health", timeout=10).status_code
            if status == 200:
                return
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


class FileTransfer:
    """Sends weights in files: the main process writes them, and the server reads them before they are removed.

    Args:
        folder: where to write, on a filesystem that the server sees under the same path.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder, self._sent = server, folder.resolve(), 0
        if processes.is_main_process():  # what a run that was killed has left
            shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write the weights, and have the server load them; every rank must call this.

        Raises:
            GenerationError: on every rank: the disk is full, or the server cannot read the files.
        """
        self._sent += 1
        folder = self._folder / f"{self._sent:06d}"  # a new name: NFS remembers what was in a folder of the same name
        writer = _ShardWriter(folder, self._server.dtype) if processes.is_main_process() else None
        failed: Exception | None = None
        for name, tensor in weights:  # also where nothing is written: the other ranks take part in gathering
            if writer is not None and failed is None:
                failed = _failure(writer.add, name, tensor)
        if writer is not None and failed is None:
            failed = _failure(writer.write)
        try:
            processes.on_main_process(lambda: self._load(folder, failed))
        finally:
            if processes.is_main_process():
                shutil.rmtree(self._folder, ignore_errors=True)

    def _load(self, folder: Path, failed: Exception | None) -> None:
        if failed is not None:
            raise GenerationError(f"{folder}: the policy's weights for vLLM cannot be written: {failed}")
        request = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        key = f"rollout.vllm.server_base_url={self._server.url}"
        try:
            patient = httpx.Timeout(60, read=None)  # a large model takes minutes
            answer = httpx.post(f"{self._server.url}/collective_rpc", json=request, timeout=patient)
        except httpx.HTTPError as error:
            raise GenerationError(f"{key}: {type(error).__name__} while it loaded the policy's weights") from None
        if answer.status_code != 200:
            raise GenerationError(
                f"{key}: the server did not load the policy's weights from {folder}: {_reason(answer)}; does it see "
                "that folder, under the same path? Let tracking.runs be on a shared filesystem, and start the server "
                "anew"
            )


def _failure(call: Any, *arguments: Any) -> Exception | None:
    """Why a call could not write, if it could not."""
    try:
        call(*arguments)
    except (OSError, SafetensorError) as error:
        return error
    return None


def _reason(answer: httpx.Response) -> str:
    try:
        text = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = answer.text
    return " ".join(text.split())[:300] or f"status {answer.status_code}"


class _ShardWriter:
    """Writes tensors into files of about `SHARD_BYTES`."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder, self._dtype, self._files = folder, dtype, 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        # A copy: what is gathered is released, and safetensors refuses two names of one memory.
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        self._tensors[name] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if sum(held.nbytes for held in self._tensors.values()) >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        if self._tensors:
            self._files += 1
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"model-{self._files:05d}.safetensors"
            save_file(self._tensors, file, metadata={"format": "pt"})
            # safetensors lets its owner alone read it; the server may be another user, so the umask decides.
            file.chmod(self._folder.stat().st_mode & 0o666)
            self._tensors = {}
