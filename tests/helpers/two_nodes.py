"""Two nodes on one machine: network namespaces with a cable between them that can be cut. Needs root and `ip`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import launching

WHY_NOT = "" if shutil.which("ip") and os.geteuid() == 0 else "no ip (iproute2)" if os.geteuid() == 0 else "not root"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


class TwoNodes:
    """Gone when its `with` ends, with every process in them."""

    def __init__(self) -> None:
        self.names = tuple(f"node{number}-{os.getpid()}" for number in (1, 2))
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            for name in self.names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            one, other = self.names
            ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", other)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            self.mend()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", "cable", "down")

    def mend(self) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", "cable", "up")

    def launch(self, config: Path, target: list[str], folder: Path, **variables: str) -> list[subprocess.Popen[str]]:
        """`accelerate launch` on each node, one process on each; what they print goes to FOLDER/node-N.log."""
        port = str(launching.free_port())
        started = []
        for rank, name in enumerate(self.names):
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch"]
            command += ["--config_file", str(config), "--num_machines", "2", "--num_processes", "2"]
            command += ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0], "--main_process_port", port]
            with (folder / f"node-{rank}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        [*command, *target], cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True,
                        # The machine's name leads to an address that no namespace has.
                        env=launching.environment(GLOO_SOCKET_IFNAME="cable", **variables), start_new_session=True,
                    )
                )  # fmt: skip
        self._processes += started
        return started

    def pids(self) -> list[int]:
        """Every process in the namespaces."""
        listed = [ip("netns", "pids", name) for name in self.names]
        return [int(pid) for part in listed for pid in part.split()]

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def last_words(folder: Path, length: int = 3000) -> Any:
    """The end of each node's log."""
    return [path.read_text(errors="replace")[-length:] for path in sorted(folder.glob("node-*.log"))]
