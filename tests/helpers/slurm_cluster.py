"""A real Slurm of one controller and two nodes on this machine, in a folder of its own: nothing outside it changes.

Debian's `slurm-wlm` and `munge`, run as root. Two partitions over the same nodes: a job in `urgent` preempts one in
`batch`, which gets its own warning signal (`--signal`) and two minutes, as on real clusters.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
WHY_NOT = (
    f"no {', '.join(MISSING)} (apt-get install slurm-wlm munge)" if MISSING else "" if os.geteuid() == 0 else "not root"
)
NODES = ("n1", "n2")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=5,default_queue_depth=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
MinJobAge=3600
KillWait=10

NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000
PartitionName=batch Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=120 MaxTime=60 State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""


class SlurmCluster:
    """Started with `with`; all its daemons are gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir()
        conf = CONF.format(host=socket.gethostname(), folder=self.folder, ports=_free_ports(3))
        (self.folder / "slurm.conf").write_text(conf, encoding="utf-8")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        named = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid"}
        named |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munged.seed"}
        try:
            # It refuses a folder that others may write to, as /tmp is, unless forced.
            self._start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in named.items()))
            self.wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for node in NODES:
                (self.folder / f"spool-{node}").mkdir()
                self._start("slurmd", "-D", "-N", node)
            self.wait(lambda: set(self.run("sinfo", "-hN", "-o", "%T").split()) == {"idle"}, "the nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every job, then the daemons."""
        subprocess.run(["scancel", "--full", "--user=root"], env=self.environment, check=False, capture_output=True)
        self._patiently(lambda: not self.run("squeue", "-h"), 30)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []

    def run(self, *command: str, **options: Any) -> str:
        """Output of one of Slurm's commands, "" where it fails."""
        done = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True, **options)
        return done.stdout.strip()

    def submit(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
        """`sbatch`; the job's id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env={**self.environment, **(env or {})}, cwd=cwd, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def state(self, job: str) -> dict[str, str]:
        """What the controller knows of a job, by Slurm's names: JobState, ExitCode, Restarts, ..."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Until the job is in one of these states."""
        self.wait(lambda: self.state(job).get("JobState") in states, f"job {job} in {states}", seconds)
        return self.state(job)

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}-{len(self._daemons)}.out").open("wb")
        self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def wait(self, met: Any, what: str, seconds: float = 60) -> None:
        """Until `met()` is true; an AssertionError that says what was waited for."""
        assert self._patiently(met, seconds), f"waited {seconds:.0f} s for {what}; the logs are in {self.folder}"

    @staticmethod
    def _patiently(met: Any, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not met():
            if time.monotonic() > end:
                return False
            time.sleep(0.25)
        return True


def _free_ports(count: int) -> list[int]:
    holders = [socket.socket() for _ in range(count)]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [int(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    return ports
