"""With the same weights and images, PyTorch finds the same logits and gradients: in float64.

In float32, a gradient jumps where rounding decides which of two inputs is the maximum, or on which
side of 0 the input of a ReLU lies. In float64 this hardly ever happens: every image must agree.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from alexnet_jax import config
from alexnet_jax.configs import ablations, alexnet, alexnet_2012
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.ops import DropoutKey, dropout
from alexnet_jax.model.sharded import ShardedModel
from alexnet_jax.model.towers import DATA
from alexnet_jax.runtime.sharding import make_mesh
from tests.conftest import photos

torch = pytest.importorskip("torch")

from tests.reference.torch_alexnet import TorchAlexNet  # noqa: E402

BOUND = 1e-6  # of the distance to PyTorch's array over that array's length


def relative(ours, theirs) -> float:
    """The distance of two arrays over the length of the second."""
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


def images(side: int) -> np.ndarray:
    """The five photos, and five random images with the spectrum of natural ones: [10, s, s, 3]."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(5, 3, side, side))) / frequency).real
    noise *= 50 / noise.std(axis=(2, 3), keepdims=True)
    return np.concatenate([photos(side).astype(np.float64) - 120, noise.transpose(0, 2, 3, 1)])


class Both:
    """A config's network on a mesh of `devices`, and in PyTorch with the same weights."""

    def __init__(self, c: config.Config, devices: int, dtype: str = "float64") -> None:
        self.c = c.model
        mesh = make_mesh(devices, c.model.towers)
        build = lambda rngs: AlexNet(c.model, c.data.crop, dtype, rngs=rngs)  # noqa: E731
        self.network = ShardedModel(build, mesh)
        self.params = self.network.init(0)
        self.torch_net = TorchAlexNet(self.c, jax.device_get(self.params))

    def step(self, images: np.ndarray, labels: np.ndarray, key: DropoutKey):
        """Loss, logits and gradients, as in training."""
        network = self.network

        def on_device(params, images, labels, key):
            def loss(params):
                logits = network.bind(params)(images, key)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), logits

            return jax.value_and_grad(loss, has_aux=True)(params)

        rows = network.spec(DATA)
        inputs = (network.specs, rows, rows, DropoutKey(P(), rows))
        outputs = (P(), rows), network.specs
        return network.jit(network.shard_map(on_device, inputs, outputs))(
            self.params, images, labels, key
        )

    def distances(self, images: np.ndarray) -> dict[str, float]:
        """Relative distances of logits, loss and each gradient, with dropout on."""
        count = len(images)
        labels = np.arange(count) % self.c.classes
        key = DropoutKey(jax.random.key(1), jnp.arange(count))
        (loss, logits), gradients = self.step(images, labels, key)
        net = self.torch_net
        neurons = [len(net.biases[layer]) // self.c.towers for layer in ("fc6", "fc7")]
        masks = tuple(
            torch.tensor(np.concatenate([
                dropout(jnp.ones((count, n)), self.c.dropout, key, layer, tower)
                for tower in range(self.c.towers)
            ], axis=1))
            for layer, n in zip((6, 7), neurons, strict=True)
        )  # fmt: skip
        net.zero_grad()
        theirs = net(torch.tensor(images).permute(0, 3, 1, 2), masks)
        their_loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
        their_loss.backward()

        found = {"loss": relative(loss, their_loss.detach())}
        found["logits"] = relative(logits, theirs.detach())
        for layer, values in gradients.items():
            weight = net.weights[layer].grad
            order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
            found[f"{layer}.kernel"] = relative(values["kernel"], weight.permute(order))
            found[f"{layer}.bias"] = relative(values["bias"], net.biases[layer].grad)
        return found


def small(get_config) -> config.Config:
    """A quarter of the width, with 80 pixels."""
    c = get_config()
    c.model.width, c.model.classes, c.data.crop = 0.25, 10, 80
    return config.parse(c)


VARIANTS = {
    "paper": alexnet.get_config,
    "as run in 2012": alexnet_2012.get_config,
    "tanh": functools.partial(ablations.get_config, "tanh"),
    "sigmoid": functools.partial(ablations.get_config, "sigmoid"),
    "sixth convolution": functools.partial(ablations.get_config, "sixth_conv"),
    "run 146": functools.partial(ablations.get_config, "run_146"),
    "run 147": functools.partial(ablations.get_config, "run_147"),
    "half net": functools.partial(ablations.get_config, "half_net"),
}


# A variant on one device or on two: that both give the same is tested in test_towers.py.
FAST = [("paper", 1), ("as run in 2012", 2)]
SLOW = [
    ("paper", 2),
    ("tanh", 1),
    ("sigmoid", 2),
    ("sixth convolution", 2),
    ("run 146", 1),
    ("run 147", 2),
    ("half net", 1),
]


@pytest.mark.parametrize(
    ("variant", "devices"),
    [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)],
)
def test_logits_loss_and_every_gradient_are_pytorchs(variant, devices):
    c = small(VARIANTS[variant])
    with jax.enable_x64(True):
        found = Both(c, devices).distances(images(c.data.crop)[::2])
    assert len(found) == 2 + 2 * len(c.model.names)
    assert max(found.values()) < BOUND, found


OTHERS = [pytest.param(v, 3 - devices, marks=pytest.mark.long) for v, devices in FAST]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "devices"), [*FAST, *OTHERS])
def test_at_full_size_too(variant, devices):
    c = config.parse(VARIANTS[variant]())
    with jax.enable_x64(True):
        found = Both(c, devices).distances(images(224)[::3])
    assert max(found.values()) < BOUND, found


@pytest.mark.slow
def test_float32_is_as_near_as_float32_can_be():
    """Of logits and loss, which do not jump."""
    found = Both(config.parse(alexnet_2012.get_config()), 2, "float32").distances(
        images(224)[::3].astype(np.float32)
    )
    assert max(found["loss"], found["logits"]) < 1e-4


def test_testing_scales_the_hidden_outputs_by_half():
    c = small(alexnet_2012.get_config)
    with jax.enable_x64(True):
        both, x = Both(dataclasses.replace(c), 1), images(c.data.crop)
        ours = both.network.bind(both.params)(jnp.asarray(x))
        theirs = both.torch_net(torch.tensor(x).permute(0, 3, 1, 2))
    assert relative(ours, theirs.detach()) < BOUND
