"""Weights of other programs: the same logits as theirs, from files that the test writes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import UserError, load_config, load_weights
from alexnet_jax.runtime.caffe import CLASSES
from tests.conftest import SHARED

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture
def theirs():
    """torchvision's documented network: features.0 and so on, narrow and with ten classes."""
    torch.manual_seed(0)
    maps = (8, 24, 48, 32, 32)

    def conv(seen, number, window, **how):
        return nn.Conv2d(seen, maps[number], window, **how)

    relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
    net = nn.Sequential()
    net.features = nn.Sequential(
        *(conv(3, 0, 11, stride=4, padding=2), relu(), pool()),
        *(conv(maps[0], 1, 5, padding=2), relu(), pool()),
        *(conv(maps[1], 2, 3, padding=1), relu(), conv(maps[2], 3, 3, padding=1), relu()),
        *(conv(maps[3], 4, 3, padding=1), relu(), pool()),
    )
    net.flat = nn.Flatten()
    net.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(36 * 32, 512), relu()),
        *(nn.Dropout(), nn.Linear(512, 512), relu(), nn.Linear(512, 10)),
    )
    return net.eval()


def narrow(name, **values):
    c = load_config(name)
    return dataclasses.replace(
        c, model=dataclasses.replace(c.model, width=0.125, classes=10, **values)
    )


def test_torchvisions_logits(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    net = load_weights(tmp_path / "net.pth", "torchvision", config=narrow("torchvision"))
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    crop = torch.tensor(images[:, 16:240, 16:240] / 255, dtype=torch.float32)
    crop = (crop - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = theirs(crop.permute(0, 3, 1, 2)).numpy()
    found = net.logits(images)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_another_shape_or_a_pickle_is_one_line(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"features.0 is \[8, 3, 11, 11\], torchvision has \[64"):
        load_weights(tmp_path / "net.pth", "torchvision")
    torch.save(theirs, tmp_path / "code.pth")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_weights(tmp_path / "code.pth", "torchvision")


@pytest.mark.parametrize(
    ("kind", "new"), itertools.product(("bvlc_alexnet", "caffenet"), (True, False))
)
def test_caffes_logits(kind, new, tmp_path):
    c = narrow(kind)
    rng, net = np.random.default_rng(0), CLASSES["Net"]()
    shapes = {"conv1": (12, 3, 11, 11), "conv2": (32, 6, 5, 5), "conv3": (48, 32, 3, 3)}
    shapes |= {"conv4": (48, 24, 3, 3), "conv5": (32, 24, 3, 3), "fc6": (512, 1152)}
    weights = {}
    for name, shape in (shapes | {"fc7": (512, 512), "fc8": (10, 512)}).items():
        deviation = np.prod(shape[1:]) ** -0.5 / (8 if name == "conv1" else 1)
        kernel = rng.normal(0, deviation, shape).astype("<f4")
        weights[name] = kernel, rng.normal(0, 0.1, shape[0]).astype("<f4")
        layer = (net.layer if new else net.layers).add(name=name)
        for array in weights[name]:
            blob = layer.blobs.add(data=[array.tobytes()])
            if new:
                blob.shape.dim.extend(array.shape)
            else:
                sides = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sides
    file = tmp_path / "net.caffemodel"
    file.write_bytes(net.SerializeToString())
    loaded = load_weights(file, kind, mean="120,110,100", config=c)

    images = rng.uniform(-120, 120, (2, 227, 227, 3)).astype(np.float32)
    x = torch.tensor(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2)
    norm, pool = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), nn.MaxPool2d(3, 2)
    w = {name: tuple(map(torch.tensor, both)) for name, both in weights.items()}
    f = nn.functional
    for name, how in (("conv1", {"stride": 4}), ("conv2", {"padding": 2, "groups": 2})):
        x = f.conv2d(x, *w[name], **how).relu()
        x = norm(pool(x)) if kind == "caffenet" else pool(norm(x))
    for name, groups in (("conv3", 1), ("conv4", 2), ("conv5", 2)):
        x = f.conv2d(x, *w[name], padding=1, groups=groups).relu()
    x = pool(x).flatten(1)
    x = f.linear(f.linear(x, *w["fc6"]).relu(), *w["fc7"]).relu()
    wanted = f.linear(x, *w["fc8"]).numpy()
    network = loaded.setup.network
    found = jax.jit(lambda p, x: network.bind(p)(x))(loaded.params, jnp.asarray(images))
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    with pytest.raises(UserError, match="needs the mean"):
        load_weights(file, kind, config=c)


def test_the_real_files_open():
    if not (SHARED / "bvlc_alexnet_conv.safetensors").exists():
        pytest.skip("no real files")
    file = SHARED / "caffe_cifar10_full.caffemodel"
    assert load_weights(file, "cifar10_full", mean="125,123,114").params["fc10"]["kernel"].shape
    with pytest.raises(UserError, match="no weight of layer conv4; bvlc_alexnet has"):
        load_weights(file, "bvlc_alexnet", mean="125,123,114", layers=["conv4"])
