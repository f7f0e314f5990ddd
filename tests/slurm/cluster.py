"""A real SLURM of two nodes on this machine: loopback only, its own folder and processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")

CONF = """\
ClusterName=mini
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=2
MinJobAge=600
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=127.0.0.1[1-2] NodeHostname=localhost Port=[{node_port_1}-{node_port_2}] CPUs=8 \
RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def like_a_site(conf: str) -> str:
    """Tasks bound to the cores that they asked for, of which there are two, and no requeueing of
    what is preempted: it is cancelled, after five seconds of grace.
    """
    changes = {
        "TaskPlugin=task/none": "TaskPlugin=task/affinity",
        "SlurmdParameters=config_overrides\n": "",
        "CPUs=8 RealMemory=16000": "CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 "
        "ThreadsPerCore=1 RealMemory=1000",
        "PreemptMode=REQUEUE\nReturn": "PreemptMode=CANCEL\nReturn",
        "PreemptMode=REQUEUE GraceTime=10": "PreemptMode=CANCEL GraceTime=5",
    }
    for old, new in changes.items():
        assert old in conf, old
        conf = conf.replace(old, new)
    return conf


def why_not() -> str | None:
    """Why no SLURM can be started here; None if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None and not _sbin(name)]
    if absent:
        return f"SLURM is not installed: no {', '.join(absent)} (apt-get install slurmctld slurmd)"
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root here"
    return None


def _sbin(name: str) -> str | None:
    return shutil.which(name, path="/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    """Consecutive free ports."""
    for first in range(26800 + os.getpid() % 500, 60000, count):
        ports = range(first, first + count)
        try:
            for port in ports:
                with closing(socket.socket()) as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return list(ports)
    raise RuntimeError("no free ports")


class Cluster:
    """Starts the daemons in the foreground, keeps them by process, and stops them in order."""

    def __init__(self, root: Path, conf: str = CONF) -> None:
        self.root = root
        for name in ("run", "state", "spool", "log"):
            (root / name).mkdir(parents=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(3)
        names = ("ctld_port", "node_port_1", "node_port_2")
        text = conf.format(root=root, **dict(zip(names, ports, strict=True)))
        (root / "slurm.conf").write_text(text)
        (root / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null,/dev/zero\n")

    def environment(self) -> dict[str, str]:
        """For processes that talk to this cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return {**kept, "SLURM_CONF": str(self.root / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """From nothing to two idle nodes."""
        key = self.root / "run" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        run, log = self.root / "run", self.root / "log"
        run.chmod(0o755)
        self._start(
            "munged",
            "-F",
            f"--socket={run}/munge.sock",
            f"--key-file={key}",
            f"--pid-file={run}/munge.pid",
            f"--log-file={log}/munge.log",
            f"--seed-file={run}/munge.seed",
            "--force",
        )
        self._wait(lambda: (run / "munge.sock").exists(), "munged")
        self._start("slurmctld", "-D")
        for node in ("127.0.0.11", "127.0.0.12"):
            self.start_node(node)
        self._wait(
            lambda: self.run("scontrol", "show", "node", "-o").count("State=IDLE") == 2, "nodes"
        )

    def start_node(self, node: str) -> None:
        """Starts a node's daemon; one that was lost takes jobs again."""
        self._start("slurmd", "-D", "-N", node)
        self._nodes[node] = self._processes[-1]

    def lose_node(self, node: str, job: str) -> None:
        """Ends a node as a loss of power would, and tells the controller what it would find out.

        Args:
            node: its name.
            job: that runs there alone.
        """
        daemon = self._nodes.pop(node)
        self._processes.remove(daemon)
        daemon.kill()
        daemon.wait()
        while found := list(self._processes_of(job)):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost", check=True)

    def _processes_of(self, job: str) -> Iterator[int]:
        """By what SLURM sets in the environment of all that it starts for a job, and its daemon."""
        marks = f"SLURM_JOB_ID={job}".encode(), f"SLURM_CONF={self.root}/slurm.conf".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "environ").read_bytes().split(b"\0")
                title = (folder / "cmdline").read_bytes()
                if all(mark in words for mark in marks) or title.startswith(
                    f"slurmstepd: [{job}.".encode()
                ):
                    yield int(folder.name)

    def _start(self, name: str, *arguments: str) -> None:
        program = shutil.which(name) or _sbin(name)
        assert program is not None
        with open(self.root / "log" / f"{name}.out", "ab") as out:
            self._processes.append(
                subprocess.Popen(
                    [program, *arguments], env=self.environment(), stdout=out, stderr=out
                )
            )

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [file.read_text()[-800:] for file in (self.root / "log").iterdir()]
                raise RuntimeError(f"{what} did not come up\n" + "\n".join(logs))
            time.sleep(0.05)

    def run(self, *command: str, check: bool = False) -> str:
        """Runs a client; its standard output."""
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=60, check=check
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """A job's state, as ``squeue`` has it: PENDING, RUNNING, COMPLETED, ..."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", job).splitlines()
        return lines[0] if lines else "UNKNOWN"

    def wait_for(self, job: str, *states: str, seconds: float = 300) -> str:
        """Waits until a job is in one of some states; returns it."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is {state} after {seconds} s, not {states}")
            time.sleep(0.1)
        return state

    def stop(self) -> None:
        """Jobs first: a daemon stopped under a job leaves the job's processes behind."""
        self.run("scancel", "--user=root")
        deadline = time.monotonic() + 20
        while self.run("squeue", "-h") and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def addressed(cluster: Cluster, monkeypatch: Any) -> Cluster:
    """Makes this process talk to a cluster, whatever it was started in."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(cluster.root / "slurm.conf"))
    return cluster
