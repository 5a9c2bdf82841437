"""Where a step's time goes, by layer: a profile of the compiled step itself."""

import re
import tempfile
from collections import defaultdict
from pathlib import Path

import jax
from jax.profiler import ProfileData

from alexnet_jax.benchmark.bench import Step

STEPS = 3
# What only contains other operations; those are counted.
_CONTAINERS = ("while", "call", "conditional")


def layer_times(step: Step) -> dict[str, dict[str, float]]:
    """Milliseconds a step of each layer: {'conv1': {'forward ms': .., 'backward ms': ..}, ...}.

    'rest' is what belongs to no layer: the input, the loss, the update. An operation of several
    layers counts for the first. Where operations run side by side, on a CPU convolutions do, the
    sum may be more than the step; and the time of a convolution may show in the one after it.
    """
    layers = [*step.setup.config.model.names, "pool"]
    scopes = _scopes(step.compiled.as_text())
    times: dict[str, dict[str, float]] = {
        layer: {"forward ms": 0.0, "backward ms": 0.0} for layer in (*layers, "rest")
    }
    for name, seconds in _operations(step).items():
        if name in scopes and not name.startswith(_CONTAINERS):
            layer = _layer(scopes[name], layers)
            backward = layer != "rest" and "transpose(" in scopes[name]
            times[layer]["backward ms" if backward else "forward ms"] += seconds * 1e3 / STEPS
    return times


def _operations(step: Step) -> dict[str, float]:
    """Seconds in each operation of the compiled step, over `STEPS` steps."""
    step.run(1)
    seconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step.run(STEPS)
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op", event.name)
                    seconds[str(name)] += event.duration_ns / 1e9
    return seconds


def _scopes(hlo: str) -> dict[str, str]:
    """From an operation's name in a compiled program to the names of the code that it is from."""
    found = {}
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = ", line)
        if match:
            scope = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = scope[1] if scope else ""
    return found


def _layer(scope: str, layers: list[str]) -> str:
    """The first layer that a scope such as 'jit(step)/transpose(jvp(conv2))/mul' names."""
    words = re.findall(r"\w+", scope)
    return next((word for word in words if word in layers), "rest")
