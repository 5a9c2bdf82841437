"""The kernels of a program that XLA has compiled for a GPU, read from the program's text.

What a kernel moves is what its operands and results hold, each read or written once: what caches
spare and what is fetched twice are not known. Library calls (cuDNN, cuBLAS, NCCL) count as one
kernel each, without their scratch memory. Only convolutions and matrix products have FLOP.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple


class Kernel(NamedTuple):
    """A kernel, or a call of a library."""

    name: str  # of its instruction: 'loop_add_fusion.6'
    kind: str  # 'convolution', 'product', 'fusion', or what the instruction is: 'copy', ...
    layer: str  # 'conv1', ...; '' if it belongs to none
    direction: str  # 'forward', 'backward'; '' outside of both: input, update
    read: int  # bytes
    written: int  # bytes
    flop: int
    dtype: str  # of what is multiplied: 'bf16', 'f32'; '' without FLOP
    times: int  # that it runs in a step

    @property
    def moved(self) -> int:
        """Bytes that it reads and writes in a step."""
        return (self.read + self.written) * self.times


class Instruction(NamedTuple):
    """A line of the program."""

    name: str
    shape: str  # of the result, or of a tuple of results
    opcode: str
    operands: tuple[str, ...]  # names; of a parameter, its number
    rest: str  # attributes and metadata
    root: bool  # whether it is the result of its computation

    def attribute(self, pattern: str) -> str:
        """The group of `pattern` in the attributes; '' if it is not there."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @property
    def scope(self) -> str:
        """The names under which JAX has traced it: 'jit(step)/transpose(jvp(conv1))/add'."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def target(self) -> str:
        """The library function that a custom call calls."""
        return self.attribute(r'custom_call_target="([^"]*)"')


Computation = dict[str, Instruction]
"""Instructions by name, in order."""

_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_NO_KERNEL = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"}
_NO_KERNEL |= {"opt-barrier", "partition-id", "replica-id"}
_CALLS = {"call", "async-start", "conditional"}
_SLICES = {"slice", "dynamic-slice", "gather"}  # read a part of their first operand
# Each value of the result needs one value of each operand: what is not used is not read.
_ONE_TO_ONE = {"bitcast", "reshape", "transpose", "copy", "convert", "negate", "sqrt", "rsqrt"}
_ONE_TO_ONE |= {"add", "subtract", "multiply", "divide", "maximum", "minimum", "compare", "select"}
_ONE_TO_ONE |= {"and", "or", "not", "exponential", "log", "power"}


def kernels(text: str, layers: Collection[str]) -> list[Kernel]:
    """What runs on each device in a step, in order.

    Args:
      text: of the compiled program, as `jax.stages.Compiled.as_text` gives it.
      layers: the names of the layers, which stand in the scopes.
    """
    computations, entry = parse(text)
    return list(_walk(entry, 1, computations, layers))


def sizes(shape: str) -> list[int]:
    """The bytes of each array in a shape: of '(bf16[2,3]{1,0}, f32[])' [12, 4]."""
    return [_BYTES[dtype] * math.prod(axes) for dtype, axes in _arrays(shape)]


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    found = [(dtype, re.findall(r"\d+", axes)) for dtype, axes in _SHAPE.findall(shape)]
    return [(dtype, tuple(map(int, axes))) for dtype, axes in found if dtype in _BYTES]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations by name, and the name of the one that is run."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            entry = current if head[1] else entry
            computations[current] = {}
        elif current and (found := _LINE.match(line)):
            one = _instruction(found)
            computations[current][one.name] = one
    return computations, entry


def _instruction(found: re.Match[str]) -> Instruction:
    root, name, shape, opcode, after = found.groups()
    depth, end = 1, 0
    for end, character in enumerate(after):  # noqa: B007
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            break
    inside, rest = after[:end], after[end:]
    number = opcode == "parameter"
    operands = (inside,) if number else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, shape, opcode, operands, rest, bool(root))


def _walk(
    name: str, times: int, computations: Mapping[str, Computation], layers: Collection[str]
) -> Iterator[Kernel]:
    """The kernels of a computation that runs so many `times`."""
    for one in computations[name].values():
        if one.opcode in _NO_KERNEL or one.opcode.endswith(("-done", "-update")):
            continue
        if one.opcode == "while":
            # How often is not always known; then it is counted once.
            trips = int(one.attribute(r'known_trip_count":\{"n":"(\d+)"') or 1)
            body = one.attribute(r"body=%?([\w.\-]+)")
            yield from _walk(body, times * trips, computations, layers)
        elif one.opcode in _CALLS:
            called = one.attribute(
                r"(?:calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|\S+?)(?:,|$)"
            )
            for inner in re.findall(r"[\w.\-]+", called):
                yield from _walk(inner, times, computations, layers)
        else:
            inside = computations.get(_fused(one), {})
            yield _kernel(one, computations[name], inside, times, layers)


def _fused(one: Instruction) -> str:
    return one.attribute(r"calls=%?([\w.\-]+)") if one.opcode == "fusion" else ""


def _kernel(
    one: Instruction,
    beside: Computation,
    inside: Computation,
    times: int,
    layers: Collection[str],
) -> Kernel:
    products = [(u, inside) for u in inside.values() if u.opcode in ("dot", "convolution")]
    if _kind(one) in ("product", "convolution"):
        products = [(one, beside)]
    flop = sum(_flop(product, among) for product, among in products)
    dtype = _arrays(beside[one.operands[0]].shape)[0][0] if flop else ""
    return Kernel(
        one.name,
        _kind(one),
        _layer(one, inside, layers),
        _direction(one.scope),
        _bytes_read(one, beside, inside),
        _written(one, beside, inside),
        flop,
        dtype,
        times,
    )


def _kind(one: Instruction) -> str:
    for part, kind in {"cudnn$conv": "convolution", "cublas": "product"}.items():
        if part in one.target:
            return kind
    opcode = {"dot": "product"}.get(one.opcode, one.opcode)
    return one.target or opcode.removesuffix("-start")


def _layer(one: Instruction, inside: Computation, layers: Collection[str]) -> str:
    """That of the kernel's scope; else the only one that the scopes of its parts name."""
    own = _named(one.scope, layers)
    parts = {name for part in inside.values() for name in _named(part.scope, layers)[:1]}
    return own[0] if own else parts.pop() if len(parts) == 1 else ""


def _named(scope: str, layers: Collection[str]) -> list[str]:
    return [word for word in re.findall(r"\w+", scope) if word in layers]


def _direction(scope: str) -> str:
    if "transpose(" in scope:
        return "backward"
    return "forward" if "jvp(" in scope else ""


def _bytes_read(one: Instruction, beside: Computation, inside: Computation) -> int:
    """Of a fusion's operands only what its parts need counts; of others' all."""
    whole = [sum(sizes(beside[name].shape)) for name in one.operands]
    needed = _needed(inside)
    shares = {
        int(part.operands[0]): needed[part.name]
        for part in inside.values()
        if part.opcode == "parameter"
    }
    return sum(math.ceil(size * shares.get(i, 1.0)) for i, size in enumerate(whole))


def _needed(inside: Computation) -> dict[str, float]:
    """The share of each part's values that a fusion needs for its result, at most 1.

    What several others need of a part is added up, as if they never needed the same values.
    """
    shares = {part.name: float(part.root) for part in inside.values()}
    for part in reversed(inside.values()):
        own = shares[part.name] = min(1.0, shares[part.name])
        for i, name in enumerate(part.operands):
            if name not in shares or name in part.operands[:i]:
                continue
            if part.opcode in _SLICES and i == 0:
                shares[name] += own * _count(part) / _count(inside[name])
            elif part.opcode in _ONE_TO_ONE:
                shares[name] += own
            elif (part.opcode, i) != ("dynamic-update-slice", 0):  # that is written in place
                shares[name] += 1.0
    return shares


def _count(one: Instruction) -> int:
    """The number of values in its result."""
    return sum(math.prod(axes) for _, axes in _arrays(one.shape))


def _written(one: Instruction, beside: Computation, inside: Computation) -> int:
    results = sizes(one.shape)
    if one.opcode.endswith("-start") and one.shape.startswith("("):
        held = sum(sum(sizes(beside[name].shape)) for name in one.operands)
        return max(0, sum(results) - held)  # its tuple has the operands, too
    if one.target.startswith(("__cudnn", "__cublas")) and len(results) > 1:
        return sum(results[:-1])  # the last is scratch memory
    root = next((part for part in inside.values() if part.root), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        return sum(sizes(inside[root.operands[1]].shape))
    return sum(results)


def _flop(one: Instruction, among: Computation) -> int:
    """Two for each multiply-add of a convolution or a matrix product."""
    result = _arrays(one.shape)[0][1]
    first, second = (_arrays(among[name].shape)[0][1] for name in one.operands[:2])
    if labels := one.attribute(r"dim_labels=\w+_(\w+)->"):
        outputs, kernel = result, second
        if "BackwardFilter" in one.target:
            outputs, kernel = second, result
        elif "BackwardInput" in one.target:
            outputs = first
        return 2 * math.prod(outputs) * math.prod(kernel) // kernel[labels.index("o")]
    axes = one.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d",]*)')
    return 2 * math.prod(result) * math.prod(first[int(axis)] for axis in re.findall(r"\d+", axes))
