"""How long a GPU takes at least to issue a kernel's instructions, counted in its machine code.

Bytes are half of the truth: a kernel whose loads find the cache may be bound by its instructions.
The count is of a warp, 32 threads that run together, on its longest way through the kernel: of
branches the longer one, each loop once. So it is exact for kernels without branches, as XLA's
elementwise ones are, and too low for those with loops. The time assumes that every core is always
busy, and that no two ways of a branch run one after the other: it is a bound, not a forecast.
"""

import importlib.util
import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_jax.benchmark.gpu.targets import Target
from alexnet_jax.runtime.errors import UserError

EXTRA = 'run pip install "alexnet-jax[gpu-program]"'
LANES = 32  # threads of a warp

# What a core does in a clock, in lanes (CUDA C++ Programming Guide, arithmetic instructions): of
# float32 operations `Target.lanes`, of others as many as here for all `TARGETS`.
_INTEGER, _SPECIAL, _MEMORY, _ISSUED = 64, 16, 32, 4 * LANES

_UNITS = {
    "integer": r"IADD|LOP|ISETP|SEL|PRMT|SHF|LEA|IABS|IMNMX|VIADD|VIMNMX|PLOP|I2F|F2I|F2F|I2I"
    r"|FLO|POPC|SGXT|FMNMX|FSEL|FSETP|P2R|R2P|BREV",
    "float": r"FADD|FMUL|FFMA|IMAD",
    "special": r"MUFU",
    "memory": r"LD|ST|ATOM|RED",
}
"""The unit of a core that does an instruction, by the beginning of the instruction's name."""


class Code(NamedTuple):
    """A kernel in machine code."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that do not fit the registers: written and read again
    counts: Mapping[str, int]  # instructions of a warp: of each unit, and 'all'

    def seconds(self, warps: int, target: Target) -> float:
        """The time in which a GPU can issue the instructions of so many warps."""
        rates = {"all": _ISSUED, "integer": _INTEGER, "float": target.lanes}
        rates |= {"special": _SPECIAL, "memory": _MEMORY}
        clocks = max(self.counts.get(unit, 0) * LANES / rate for unit, rate in rates.items())
        return warps * clocks / (target.cores * target.clock)


def read_code(dump: Path) -> dict[str, Code]:
    """The kernels that XLA has written to its dump as PTX, by name, assembled and counted.

    Raises:
      UserError: there are none; or NVIDIA's assembler or disassembler fails.
    """
    files = [file for file in sorted(dump.glob("*.ptx")) if file.stat().st_size]
    if not files:
        raise UserError(f"program: XLA has written no PTX to {dump}")
    binary = dump / "kernels.cubin"
    target = re.search(r"^\.target (\w+)", files[0].read_text(), re.MULTILINE)
    arch = f"-arch={target[1] if target else ''}"
    said = _run("ptxas", "-v", arch, *map(str, files), "-o", str(binary)).stderr
    found = json.loads(_run("nvdisasm", "-json", str(binary)).stdout)
    sizes = _registers(said)
    return {
        one["function-name"]: Code(
            *sizes[one["function-name"]], count_longest(one["sass-instructions"])
        )
        for one in found[1]
        if one["function-name"] in sizes
    }


def tool(name: str) -> Path:
    """A program of NVIDIA's packages. Raises UserError if it is missing."""
    spec = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder, "bin", name)).is_file():
            return path
    raise UserError(f"program: {name} is missing; {EXTRA}")


def _run(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [str(tool(name)), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"program: {name} failed: {done.stderr.strip()[-300:]}")
    return done


def _registers(said: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes by kernel, from what the assembler says."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = re.findall(pattern, said, re.DOTALL)
    return {name: (int(used), int(out) + int(back)) for name, out, back, used in found}


def count_longest(code: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """A warp's instructions on the longest way through a kernel: of each unit, and 'all'.

    Args:
      code: the instructions as nvdisasm lists them, each of 16 bytes.
    """
    ways = [_next(i, one) for i, one in enumerate(code)]
    length = [0] * (len(code) + 1)
    for i in reversed(range(len(code))):
        length[i] = 1 + max((length[after] for after in ways[i]), default=0)
    counts: Counter[str] = Counter()
    i = 0
    while True:
        name = code[i]["opcode"]
        counts["all"] += 1
        for unit, pattern in _UNITS.items():
            if re.match(pattern, name):
                counts[unit] += _width(name) if unit == "memory" else 1
        if not ways[i]:
            return dict(counts)
        i = max(ways[i], key=length.__getitem__)


def _next(i: int, one: Mapping[str, Any]) -> list[int]:
    """The numbers of the instructions that can follow; a jump back, which makes a loop, is none."""
    name, always = one["opcode"].split(".")[0], "predicate" not in one
    if name == "EXIT":
        return [] if always else [i + 1]
    if name == "BRA":
        to = int(one["operands"].split(",")[-1], 16) // 16
        return ([to] if to > i else []) + ([] if always else [i + 1])
    return [i + 1]


def _width(name: str) -> int:
    """Words of four bytes that a load or store moves for each thread."""
    return 4 if ".128" in name else 2 if ".64" in name else 1


class Launch(NamedTuple):
    """What an instruction of the program starts; several may start the same code."""

    code: str  # the kernel's name
    warps: int


def launches(dump: Path) -> dict[str, Launch]:
    """What is started, by the name of the instruction, from the lists in XLA's dump."""
    numbers = r"\[(\d+), (\d+), (\d+)\]"
    started = re.compile(rf"^ *(\d+): .* (\w+) grid: {numbers} threads: {numbers}", re.MULTILINE)
    by_number = {
        int(number): Launch(code, _warps(*map(int, sizes)))
        for file in dump.glob("*thunk_sequence.txt")
        for number, code, *sizes in started.findall(file.read_text())
    }
    named = re.compile(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)')
    return {
        name: by_number[int(number)]
        for file in dump.glob("*thunk_metadata.txt")
        for name, number in named.findall(file.read_text())
        if int(number) in by_number
    }


def _warps(*sizes: int) -> int:
    """Of a grid of blocks (three sizes) of threads (three sizes)."""
    return math.prod(sizes[:3]) * math.ceil(math.prod(sizes[3:]) / LANES)
