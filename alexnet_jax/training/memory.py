"""Whether a config fits the memory of its devices and of the machine.

On a CPU nothing else stops a batch or a layer that is too large: the operating system kills
processes until there is room. What is counted here, from shapes alone, is what any program for the
job must hold at least. So what is refused could never run. What the compiler adds to it is known
after compiling: see `check_program`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alexnet_jax import config
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA, TOWER
from alexnet_jax.runtime import host
from alexnet_jax.runtime.errors import UserError


class Need(NamedTuple):
    """Bytes that a job holds at least."""

    weights: int  # on each device: parameters, and in training their velocity and gradients
    images: int  # on each device: images and what the layers make of them
    waiting: int  # in the memory of this machine: images on their way to the devices


def training_need(network: ShardedModel, c: config.Config) -> Need:
    """Of a training step: for the gradients, each layer's output is kept until the end."""
    rows, outputs = c.batch // network.mesh.shape[DATA], _outputs(network, c)
    crop = 3 * c.data.crop**2
    # An image as bytes and as the network's input.
    images = rows * (crop * (1 + _itemsize(c)) + sum(outputs))
    waiting = crop * c.batch // network.mesh.devices.size * len(network.mesh.local_devices)
    return Need(3 * _weights(network), images, waiting)


def evaluation_need(network: ShardedModel, c: config.Config) -> Need:
    """Of scoring a batch: a layer's input and output at a time."""
    rows, outputs = c.evaluate.batch // network.mesh.shape[DATA], _outputs(network, c)
    size = 3 * c.data.size**2
    waiting = size * c.evaluate.batch // network.mesh.devices.size
    images = rows * (size + max(outputs))
    return Need(_weights(network), images, waiting * len(network.mesh.local_devices))


def check_memory(network: ShardedModel, c: config.Config, *, training: bool) -> None:
    """Raises UserError if scoring, or training as well, needs more memory than there is."""
    jobs = {"scoring": ("config.evaluate.batch", evaluation_need(network, c))}
    if training:
        jobs["a training step"] = ("config.batch", training_need(network, c))
    for what, (key, need) in jobs.items():
        parts = f"{_size(need.weights)} for the weights, {_size(need.images)} for {key} images"
        _compare(network, f"{what} ({parts})", need.weights + need.images, need.waiting)


def check_program(network: ShardedModel, c: config.Config, step: jax.stages.Compiled) -> None:
    """Raises UserError if the compiled training step needs more memory than there is.

    Its arguments are on the devices already, and do not count.
    """
    plan: Any = step.memory_analysis()
    if plan is not None:  # not every platform has one
        new = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        _compare(network, f"a training step of {c.batch} images", new, 0)


def _compare(network: ShardedModel, what: str, each: int, waiting: int) -> None:
    """Raises UserError if the devices lack `each` bytes, or the machine `waiting` and theirs."""
    advice = "give a smaller batch or network, or more devices"
    devices = network.mesh.local_devices
    there = [host.free_device_memory(device) for device in devices]
    free = host.free_memory()
    if None not in there:
        least = min(one for one in there if one is not None)
        if each > least:
            raise UserError(
                f"{what} needs at least {_size(each)} on each device, "
                f"and {_size(least)} are free; {advice}"
            )
        each = 0
    needed = each * len(devices) + waiting
    if free is not None and needed > free:
        where = f"on {len(devices)} CPU device(s)" if each else "for the images alone"
        raise UserError(
            f"{what} needs at least {_size(needed)} of this machine's memory {where}, "
            f"and {_size(free)} are free; {advice}"
        )


def _weights(network: ShardedModel) -> int:
    """Bytes of the parameters on each device."""

    def on_device(leaf: Any, spec: Any) -> int:
        return 4 * math.prod(leaf.shape) // (network.mesh.shape[TOWER] if TOWER in spec else 1)

    return sum(jax.tree.leaves(jax.tree.map(on_device, network.shapes, network.specs)))


def _outputs(network: ShardedModel, c: config.Config) -> list[int]:
    """Bytes of each layer's output for one image, on each device."""
    image = jax.ShapeDtypeStruct((1, c.data.crop, c.data.crop, 3), jnp.float32)
    outputs = jax.eval_shape(lambda p, x: network.bind(p).outputs(x), network.shapes, image)
    sizes = [math.prod(outputs[name].shape) for name in c.model.names]
    return [size * _itemsize(c) // network.mesh.shape[TOWER] for size in sizes]


def _itemsize(c: config.Config) -> int:
    return jnp.dtype(c.dtype).itemsize


def _size(count: int) -> str:
    for unit, least in (("TB", 1e12), ("GB", 1e9)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"
