"""A SLURM in a folder of its own, on this machine or on those of tests/machines.py; needs root."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.machines import Machine, this_machine
from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol")

CONFIG = """
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
{nodes}
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why this machine cannot start it; empty if it can."""
    if os.geteuid() != 0:
        return "SLURM's daemons are started as root"
    found = [name for name in PROGRAMS if not shutil.which(name)]
    return f"apt-get install slurm-wlm munge ({', '.join(found)} missing)" if found else ""


class Cluster(NamedTuple):
    """The machine of the controller, where its commands run, and their environment."""

    machine: Machine
    environment: dict[str, str]


@contextmanager
def cluster(folder: Path, machines: Sequence[Machine] = (this_machine(),)) -> Iterator[Cluster]:
    """Starts it, with the controller on the first of its machines, and stops it at the end."""
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    values = {"folder": folder, "port": free_port(), "other_port": free_port()}
    values["controller"] = f"{machines[0].name}({machines[0].address})"
    values["nodes"] = "\n".join(
        f"NodeName={one.name if one.space else 'localhost'} NodeHostname={one.name} "
        f"NodeAddr={one.address} CPUs=2"
        for one in machines
    )
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(**values))
    made = Cluster(machines[0], os.environ | {"SLURM_CONF": str(config)})
    munge = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    daemons = [munge, machines[0].inside(["slurmctld", "-c"])]
    daemons += [one.inside(["slurmd", "-c"]) for one in machines]
    try:
        for line in daemons:
            subprocess.run(line, env=made.environment, check=True, capture_output=True)
        yield made
    finally:
        scancel = machines[0].inside(["scancel", "--user=root"])
        subprocess.run(scancel, env=made.environment, check=False)
        time.sleep(2)
        for name in ("slurmd", "slurmctld", "munge"):
            for file in folder.glob(f"{name}*.pid"):
                os.kill(int(file.read_text()), 15)
        time.sleep(1)  # they write their state into the folder


class Job:
    """A job in the queue of a cluster."""

    def __init__(self, cluster: Cluster, *line: str) -> None:
        """Submits it; `line` has the options of sbatch, the script and its options."""
        self._cluster = cluster
        self.number = self._run("sbatch", "--parsable", *line).strip()

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        text = self._run("scontrol", "show", "job", self.number)
        return text.partition("JobState=")[2].split()[0]

    def signal(self, name: str) -> None:
        """Sends a signal to its tasks."""
        self._run("scancel", "--signal", name, self.number)

    def wait(self, seconds: float) -> str:
        """Waits until it ends, at most so many seconds; returns its state.

        A job that returned to the queue waits there for two minutes by default. Here it waits for
        ten seconds, which the node needs to forget that it had to end this job.
        """
        now = time.monotonic()
        end, pending_since = now + seconds, now
        while time.monotonic() < end:
            if (state := self.state()) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
                return state
            if state != "PENDING":
                pending_since = time.monotonic()
            elif time.monotonic() > pending_since + 10:
                self._run("scontrol", "update", f"jobid={self.number}", "StartTime=now")
            time.sleep(1)
        return self.state()

    def _run(self, *line: str) -> str:
        machine, environment = self._cluster
        done = subprocess.run(
            machine.inside(line), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or line[1] == "update", done
        return done.stdout
