"""The nearest images are those that comparing everything by hand finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import augment
from alexnet_jax.figures.neighbours import nearest
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config


def all_vectors(setup, params, images, layer):
    """What a layer gives for centre crops, on one device, by hand."""
    network = setup.network.bind(jax.tree.map(jnp.asarray, jax.device_get(params)))
    arrays = jnp.asarray(images), jnp.asarray(setup.records.statistics.mean)
    views = augment.view(*arrays, setup.config.data, augment.CENTRE)
    found = np.asarray(jax.jit(network.outputs)(views)[layer or "fc7"], np.float64)
    return found.reshape(len(images), -1)


@pytest.mark.parametrize(("devices", "layer"), [(1, None), (2, None), (2, "pool5")])
def test_the_nearest_of_all(records, devices, layer):
    setup = make_setup(make_config(records, devices=devices, evaluate__batch=48))
    params, split = setup.network.init(0), setup.train
    images = np.empty((len(split), split.size, split.size, 3), np.uint8)
    for index, out in enumerate(images):
        split.read(index, out)
    asked = images[[7, 100]] // 2
    ours = nearest(setup, params, asked, split, 5, layer=layer)

    vectors, wanted = (all_vectors(setup, params, some, layer) for some in (images, asked))
    by_hand = np.linalg.norm(wanted[:, None] - vectors[None], axis=-1)
    # Near ties may swap, so what is compared are the distances, of the ones that were found too.
    sorted_by_hand = np.sort(by_hand, axis=1)[:, :5]
    np.testing.assert_allclose(ours.distances, sorted_by_hand, rtol=1e-3)
    found = np.take_along_axis(by_hand, ours.indices, axis=1)
    np.testing.assert_allclose(found, sorted_by_hand, rtol=1e-3)


def test_an_image_of_the_split_is_nearest_to_itself(records):
    setup = make_setup(make_config(records, evaluate__batch=48))
    image = np.empty((1, setup.train.size, setup.train.size, 3), np.uint8)
    setup.train.read(200, image[0])
    found = nearest(setup, setup.network.init(0), image, setup.train, 1)
    assert found.indices[0, 0] == 200
    assert found.distances[0, 0] < 1e-3
