"""At full size, with the same weights and images, PyTorch finds the same logits and gradients."""

import functools
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from alexnet_jax.configs import ablations, alexnet, alexnet_2012
from flax import nnx

from alexnet_jax import config
from alexnet_jax.data.images import centre_square, decode
from alexnet_jax.model.alexnet import AlexNet
from alexnet_jax.model.layers import DropoutKey, dropout
from tests.conftest import SHARED

torch = pytest.importorskip("torch")

from tests.reference.torch_alexnet import TorchAlexNet  # noqa: E402


def relative(ours, theirs) -> float:
    """The distance of two arrays over the length of the second."""
    theirs = np.asarray(theirs, np.float64)
    return float(np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs))


def clouds(count: int) -> np.ndarray:
    """Random images with the spectrum of natural ones; unlike drawn shapes nothing repeats."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.fftfreq(224)) + 1 / 224
    noise = np.fft.fft2(rng.normal(size=(count, 3, 224, 224))) / frequency
    images = np.fft.ifft2(noise).real
    images *= 50 / images.std(axis=(2, 3), keepdims=True)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1), np.float32)


def photos(count: int) -> np.ndarray:
    archive = SHARED / "imagenet_sample.tar"
    if not archive.exists():
        pytest.skip("the photos are not here")
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.endswith(".JPEG")]
        chosen = sorted(members, key=lambda member: member.name)[:: len(members) // count]
        data = [tar.extractfile(member).read() for member in chosen[:count]]
    squares = [centre_square(decode(one), 224) for one in data]
    return np.stack(squares).astype(np.float32) - 120


class Both:
    """A config's network here and in PyTorch, with the same weights."""

    def __init__(self, get_config) -> None:
        self.c = config.parse(get_config())
        self.graph, self.state = nnx.split(AlexNet(self.c.model, 224, "float32", nnx.Rngs(0)))
        self.torch_net = TorchAlexNet(self.c.model, nnx.to_pure_dict(self.state))
        self.ours = jax.jit(jax.value_and_grad(self.loss, has_aux=True))

    def loss(self, state, images, labels, draw):
        logits = nnx.merge(self.graph, state)(images, draw)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    def distances(self, images: np.ndarray) -> dict[str, float]:
        """Relative distances of logits, loss and each gradient, with dropout on."""
        count = len(images)
        labels, draw = np.arange(count) * 7, DropoutKey(jax.random.key(1), jnp.arange(count))
        (loss, logits), gradients = self.ours(self.state, images, labels, draw)
        masks = tuple(
            torch.tensor(np.asarray(dropout(jnp.ones((count, 4096)), 0.5, draw, layer, 2048)))
            for layer in (6, 7)
        )
        net = self.torch_net
        net.zero_grad()
        theirs = net(torch.tensor(images).permute(0, 3, 1, 2), masks)
        their_loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
        their_loss.backward()

        found = {"loss": relative(loss, their_loss.detach())}
        found["logits"] = relative(logits, theirs.detach())
        for layer, values in nnx.to_pure_dict(gradients).items():
            weight = net.weights[layer].grad
            order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
            found[f"{layer}.kernel"] = relative(values["kernel"], weight.permute(order))
            found[f"{layer}.bias"] = relative(values["bias"], net.biases[layer].grad)
        return found


@functools.cache
def both_of(recipe) -> Both:
    """Compiled once for all tests."""
    return Both(recipe.get_config)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [alexnet, alexnet_2012])
@pytest.mark.parametrize("images", [clouds, photos])
def test_logits_loss_and_every_gradient_agree_to_1e_4(recipe, images):
    """Image by image; logits and loss in all of them, all sixteen gradients in most of them.

    Gradients jump where two inputs of a maximum are equal or the input of a ReLU is 0, and in one
    image out of several rounding alone decides such a case: PyTorch's gradients in float32 are
    then as far from its own in float64. A wrong formula would show in every image.
    """
    both = both_of(recipe)
    found = [both.distances(image[None]) for image in images(5)]
    assert max(max(one["loss"], one["logits"]) for one in found) < 1e-4
    agreeing = [one for one in found if max(one.values()) < 1e-4]
    assert len(agreeing) >= 3, found


@pytest.mark.slow
def test_logits_and_loss_agree_with_a_sixth_convolution():
    both = Both(functools.partial(ablations.get_config, "sixth_conv"))
    found = both.distances(clouds(2))
    assert max(found["loss"], found["logits"]) < 1e-4
    assert found["conv6.bias"] < 1e-2  # gradients may jump, see above


@pytest.mark.slow
def test_testing_scales_the_hidden_outputs_by_half():
    both, images = both_of(alexnet_2012), clouds(2)
    ours = nnx.merge(both.graph, both.state)(images)
    theirs = both.torch_net(torch.tensor(images).permute(0, 3, 1, 2))
    assert relative(ours, theirs.detach()) < 1e-4
