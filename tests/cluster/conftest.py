"""A real Slurm cluster with two nodes on this machine, for tests."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS_TO_START = 60
SECONDS_TO_END = 20
# An unprivileged user's PATH may lack the folders of Slurm's daemons.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# The path of a Unix socket has at most 107 bytes, and Slurm creates sockets below this folder.
LONGEST_PATH = 60
NODES = ("127.0.0.1", "127.0.0.2")

# One host plays both nodes. The nodes' names are addresses that every process can reach, because
# the first node's name is used as the coordinator's host. Unnecessary waiting times are short.
CONFIGURATION = """
ClusterName=clozemill
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
SlurmdTimeout=20
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
      root: the folder with its configuration, logs and sockets.
      environment: the variables with which Slurm's commands, and the jobs they start, reach it.
      daemons: its daemon processes.
    """

    root: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen]

    def start(self, name, *arguments):
        """Starts a daemon that ends with the cluster."""
        with (self.root / f"{name}.log").open("a") as output:
            daemon = subprocess.Popen(
                [shutil.which(name, path=PATH), *arguments],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.daemons.append(daemon)

    def start_node(self, node):
        """Starts a node; also restarts one that was lost."""
        self.start("slurmd", "-D", "-N", node)

    def lose_node(self, node):
        """Kills all processes of a node at once, as a power failure does."""
        tasks = [pid for pid in _processes_of(self.root) if _runs_on(pid, node)]
        (daemon,) = (daemon for daemon in self.daemons if daemon.args[-1] == node)
        # Includes the step's manager, which is the parent of its tasks.
        for pid in (daemon.pid, *{_parent(pid) for pid in tasks}, *tasks):
            os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def run(self, *command):
        """Runs one of Slurm's commands and returns what it prints."""
        result = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def fact(self, job, name):
        """Returns a fact about a job, by the name that `scontrol show job` uses."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait_for(self, condition, log, seconds=120):
        """Waits until the condition is true and returns its value; on failure, shows the log."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            text = log.read_text() if log.exists() else "no log"
            assert time.monotonic() < deadline, f"{self.run('squeue')}\n{text}"
            time.sleep(0.2)
        return found

    def wait_for_end(self, job, log, seconds=120):
        """Waits for a job's end; returns its state and exit code as Slurm does: COMPLETED, 0:0."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait_for(lambda: self.fact(job, "JobState") in ended, log, seconds)
        return self.fact(job, "JobState"), self.fact(job, "ExitCode")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Slurm cluster; all of its processes are ended after the tests."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    if missing := [name for name in programs if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"needs Slurm ({', '.join(missing)})")
    root = tmp_path_factory.mktemp("slurm")
    assert len(str(root)) <= LONGEST_PATH, "Unix sockets need a shorter path: --basetemp=/tmp/…"
    _write_configuration(root)
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(root / "slurm.conf")}
    with ExitStack() as stack:
        stack.callback(_show_logs, root)
        daemons: list[subprocess.Popen] = []
        stack.callback(_end_all, root, daemons)
        cluster = Cluster(root, environment, daemons)
        _start_munge(cluster)
        cluster.start("slurmctld", "-D")
        for node in NODES:
            cluster.start_node(node)
        _wait_until(lambda: _idle_nodes(environment) == "2")
        yield cluster


def _write_configuration(root):
    for name in ("state", "spool/127.0.0.1", "spool/127.0.0.2"):
        (root / name).mkdir(mode=0o700, parents=True)
    (root / "munge.key").touch(mode=0o600)
    (root / "munge.key").write_bytes(secrets.token_bytes(128))
    (root / "slurm.conf").write_text(
        CONFIGURATION.format(user=getpass.getuser(), root=root, ports=_free_ports(3))
    )


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [held.getsockname()[1] for held in sockets]


def _start_munge(cluster):
    root = cluster.root
    cluster.start(
        "munged",
        "--foreground",
        # Other users cannot reach its socket, which it would otherwise refuse as a mistake.
        "--force",
        f"--key-file={root}/munge.key",
        f"--socket={root}/munge.sock",
        f"--pid-file={root}/munged.pid",
        f"--seed-file={root}/munge.seed",
    )
    _wait_until((root / "munge.sock").exists)


def _idle_nodes(environment):
    command = ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _wait_until(condition):
    deadline = time.monotonic() + SECONDS_TO_START
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _show_logs(root):
    """Prints the logs, which pytest shows if the cluster did not start or a test failed."""
    for path in sorted(root.glob("*.log")):
        print(f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:], sep="\n")


def _end_all(root, daemons):
    """Ends the daemons and all processes that they started, because they do not end these."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + SECONDS_TO_END
        for pid in _processes_of(root):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while _processes_of(root) and time.monotonic() < deadline:
            time.sleep(0.1)
    for daemon in daemons:
        daemon.wait()


def _runs_on(pid, node):
    with suppress(OSError):
        return f"SLURMD_NODENAME={node}".encode() in _environment(pid)
    return False


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _environment(pid):
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _processes_of(root):
    """Finds all processes of this cluster by its configuration's path in their environment."""
    mark = f"SLURM_CONF={root}/slurm.conf".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(directory.name)
            if pid != os.getpid() and mark in _environment(pid):
                found.append(pid)
    return found
