"""Why dropout halves the outputs in testing (§4.2): one pass beside the mean of sampled networks.

In training each image goes through another of 2^8192 networks, those with some neurons left out. In
testing all neurons are used and their outputs are multiplied by 0.5, "a reasonable approximation to
taking the geometric mean of the predictive distributions" of all these networks. With one layer of
dropout before the softmax it would be exactly that; AlexNet has two, with a ReLU between.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import config
from alexnet_jax.data import augment
from alexnet_jax.figures.figure4 import read_some
from alexnet_jax.figures.sheet import new_figure, the_only
from alexnet_jax.model.ops import DropoutKey
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.terminal import progress_bar
from alexnet_jax.training import trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES, SAMPLES = 64, 256


def draw_subnetworks(folders: Sequence[Path]) -> "Figure":
    """How far the means of N sampled sub-networks are from the one pass with halved outputs.

    Left: over N, the total variation distance from the one pass, in the mean over validation
    images. Right: each probability of the one pass, and of the geometric mean of all samples.

    Raises:
      UserError: several folders are given, the run cannot be opened, or it has no dropout.
    """
    folder = the_only(folders, "subnetworks")
    model = workdir.read_config(folder).model
    if not isinstance(model, config.AlexNet) or not model.dropout:
        raise UserError(f"{folder} was trained without dropout, so it has no sub-networks")
    net = trained.open_trained(folder)
    images = read_some(net.setup.validation, IMAGES)
    one_pass = net.setup.evaluator.log_probs_of(net.params, images, views=1)
    counts = [2**power for power in range(SAMPLES.bit_length())]
    distances: dict[str, list[float]] = {"geometric mean": [], "arithmetic mean": []}
    geometric = one_pass
    for count, means in enumerate(running_means(sampled_log_probs(net, images)), 1):
        if count in counts:
            for name, log_probs in zip(distances, means, strict=True):
                distances[name].append(float(total_variation(log_probs, one_pass).mean()))
        geometric = means[0]
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2)
    for (name, values), style in zip(distances.items(), ("o-", "s--"), strict=True):
        left.plot(counts, values, style, label=f"{name}: {values[-1]:.3f} at {SAMPLES}")
    left.set_xscale("log", base=2)
    left.set(xlabel="sampled sub-networks", ylim=(0, None))
    left.set(ylabel="distance from the one pass", title=f"{net.folder.name}, step {net.step}")
    left.legend(frameon=False, fontsize=8)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    right.plot(np.exp(one_pass).ravel(), np.exp(geometric).ravel(), ".", markersize=3, alpha=0.5)
    right.set(xlabel="probability, one pass", aspect="equal")
    right.set(ylabel=f"geometric mean of {SAMPLES}", title=f"{len(images)} validation images")
    return figure


def sampled_log_probs(net: trained.Net, images: np.ndarray) -> Iterator[np.ndarray]:
    """The log-probabilities of `SAMPLES` sub-networks, a new one for each image: [n, classes]."""
    network, data = net.setup.network, net.setup.config.data

    def look(params: object, mean: jax.Array, images: jax.Array, number: jax.Array) -> jax.Array:
        key = DropoutKey(jax.random.fold_in(jax.random.key(0), number), jnp.arange(len(images)))
        views = augment.view(images, mean, data, augment.CENTRE)
        return jax.nn.log_softmax(network.bind(params)(views, key))

    inputs = (network.specs, P(), P(), P())
    jitted = network.jit(network.shard_map(look, inputs, P()))
    mean = net.setup.normalization["mean"]
    with progress_bar(SAMPLES, "sampling", "sub-networks", leave=False) as bar:
        for number in range(SAMPLES):
            yield np.asarray(jitted(net.params, mean, jnp.asarray(images), jnp.int32(number)))
            bar.update()


def running_means(samples: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """After each sample the geometric and the arithmetic mean of those so far, as logarithms.

    The geometric mean is divided by its sum over the classes.
    """
    logs, probs = np.zeros(()), np.zeros(())
    for count, sample in enumerate(samples, 1):
        logs, probs = logs + sample.astype(np.float64), probs + np.exp(sample.astype(np.float64))
        mean = logs / count
        yield mean - np.log(np.exp(mean).sum(-1, keepdims=True)), np.log(probs / count)


def total_variation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Half of the sum of the differences of the probabilities, by their logarithms: [n]."""
    return np.abs(np.exp(a) - np.exp(b)).sum(-1) / 2
