"""A SLURM of one node on loopback, in its own folder: Debian's slurm-wlm and munge, as root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={port}
SlurmdPort={other_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why there can be none here; empty if there can."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root"
    found = [name for name in PROGRAMS if not shutil.which(name)]
    return f"apt-get install slurm-wlm munge ({', '.join(found)} missing)" if found else ""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts it; gives what the environment of its commands must have. Stopped at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = {"port": free_port(), "other_port": free_port()}
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(folder=folder, host=host, **ports))
    environment = os.environ | {"SLURM_CONF": str(config)}
    munge = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    try:
        for line in (munge, ["slurmctld", "-c"], ["slurmd", "-c"]):
            subprocess.run(line, env=environment, check=True, capture_output=True)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        time.sleep(2)
        for name in ("slurmd", "slurmctld", "munge"):
            file = folder / f"{name}.pid"
            if file.exists():
                os.kill(int(file.read_text()), 15)
        time.sleep(1)  # they write their state into the folder


class Job:
    """A job of `cluster`'s."""

    def __init__(self, environment: dict[str, str], *line: str) -> None:
        """`line`: sbatch's options, the script and its options."""
        self._environment = environment
        self.number = self._run("sbatch", "--parsable", *line).strip()

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        told = self._run("scontrol", "show", "job", self.number)
        return told.partition("JobState=")[2].split()[0]

    def signal(self, name: str) -> None:
        """Sends a signal to its tasks."""
        self._run("scancel", "--signal", name, self.number)

    def wait(self, seconds: float) -> str:
        """Its last state, at the end or when so many seconds are over.

        A job that was put into the queue again waits there for two minutes by default; here not.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (state := self.state()) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
                return state
            if state == "PENDING":
                self._run("scontrol", "update", f"jobid={self.number}", "StartTime=now")
            time.sleep(1)
        return self.state()

    def _run(self, *line: str) -> str:
        done = subprocess.run(
            line, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or line[1] == "update", done
        return done.stdout
