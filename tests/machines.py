"""Two machines with a cable between them, made of namespaces of Linux: networks, host names."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.processes import ROOT, environment

PORT = 8476  # free, because the network is our own
NAMES = ("node-a", "node-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of a network that is connected to nothing else
# With a hosts file of its own, because its own name must lead to the cable.
ON_IT = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'


def missing() -> str:
    """Why this test machine cannot make them; empty if it can."""
    if os.geteuid() != 0:
        return "only root can make networks"
    return "" if shutil.which("ip") else "apt-get install iproute2"


class Machine(NamedTuple):
    """One of the two, which share only the file system; or this one."""

    name: str
    address: str
    space: str = ""  # its namespace; empty for this machine
    hosts: Path | None = None

    @property
    def cable(self) -> str:
        """Its end of the cable."""
        return f"{self.space}v"

    def inside(self, line: Sequence[str]) -> list[str]:
        """The command that runs `line` on it."""
        if not self.space:
            return list(line)
        own = ["unshare", "--uts", "--mount", "sh", "-c", ON_IT, str(self.hosts), self.name]
        return ["nsenter", f"--net=/run/netns/{self.space}", *own, *line]

    def start(self, line: Sequence[str], number: int, count: int) -> subprocess.Popen:
        """Starts `line` as process `number` of `count`; process 0 must be on the first machine."""
        place = {"JAX_COORDINATOR_ADDRESS": f"{ADDRESSES[0]}:{PORT}"}
        place |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
        return subprocess.Popen(
            self.inside(line),
            cwd=ROOT,
            env=environment(**place),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sent(self) -> int:
        """How many bytes it has sent to the other."""
        counter = f"/sys/class/net/{self.cable}/statistics/tx_bytes"
        return int(_run("ip", "netns", "exec", self.space, "cat", counter))

    def plug(self, state: str) -> None:
        """Connects its end of the cable, or disconnects it: 'up' or 'down'."""
        _run("ip", "-n", self.space, "link", "set", self.cable, state)


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Makes them, and removes them at the end; `folder` gets their hosts file."""
    hosts = folder / "hosts"
    known = zip(ADDRESSES, NAMES, strict=True)
    hosts.write_text("".join(f"{address} {name}\n" for address, name in known))
    first, second = (
        Machine(name, address, f"ax{os.getpid()}{letter}", hosts)
        for letter, name, address in zip("ab", NAMES, ADDRESSES, strict=True)
    )
    try:
        for one in (first, second):
            _run("ip", "netns", "add", one.space)
        ends = ["type", "veth", "peer", "name", second.cable, "netns", second.space]
        _run("ip", "link", "add", first.cable, "netns", first.space, *ends)
        for one in (first, second):
            _run("ip", "-n", one.space, "addr", "add", f"{one.address}/24", "dev", one.cable)
            _run("ip", "-n", one.space, "link", "set", "lo", "up")
            one.plug("up")
        yield first, second
    finally:
        for one in (first, second):
            subprocess.run(["ip", "netns", "del", one.space], check=False, capture_output=True)


def this_machine() -> Machine:
    """The machine that runs the test."""
    return Machine(socket.gethostname().partition(".")[0], "127.0.0.1")


def _run(*line: str) -> str:
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout
