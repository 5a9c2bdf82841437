"""Weights of other programs: the same logits as theirs, from files that the test writes."""

import dataclasses
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import UserError, load_config, load_weights
from alexnet_jax import weights as command
from alexnet_jax.data.records import open_records
from alexnet_jax.data.sources.cifar10 import CLASSES as CIFAR10
from alexnet_jax.main import main
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host
from alexnet_jax.runtime.caffe import CLASSES, read_caffemodel
from alexnet_jax.runtime.tensors import read_tensors
from tests.conftest import SHARED, photos

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture(autouse=True)
def _this_process(monkeypatch):
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)  # it has begun


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


# --- Caffe's CIFAR-10 net ---------------------------------------------------------------------


def cifar_logits(weights, images):
    """Caffe's `cifar10_full` in PyTorch, of images minus the mean, red, green, blue."""
    w = {
        name: [torch.tensor(np.array(own, np.float32)) for own in both]
        for name, both in weights.items()
    }
    f = nn.functional
    x = torch.tensor(images).permute(0, 3, 1, 2)

    def average(x):  # what lies outside does not count
        inside, edge = torch.ones_like(x), (0, 1, 0, 1)
        return f.avg_pool2d(f.pad(x, edge), 3, 2) / f.avg_pool2d(f.pad(inside, edge), 3, 2)

    def within_map(x):
        return x / (1 + 5e-5 * f.avg_pool2d(x * x, 3, 1, 1)) ** 0.75

    def conv(x, name):
        return f.conv2d(x, w[name][0], w[name][1].flatten(), padding=2)

    x = within_map(f.max_pool2d(conv(x, "conv1"), 3, 2, ceil_mode=True).relu())
    x = within_map(average(conv(x, "conv2").relu()))
    x = average(conv(x, "conv3").relu()).flatten(1)
    return (x @ w["ip1"][0].reshape(10, 1024).T + w["ip1"][1].flatten()).numpy()


@pytest.fixture(scope="module")
def small_records(tmp_path_factory):
    """Records of CIFAR-10's classes, 32 x 32: two images of each to train, one to test."""
    place, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    for name, split in itertools.product(CIFAR10, ("train", "test")):
        for number in range(2 if split == "train" else 1):
            folder = place / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), noise)
    prepare(f"folder:{place / 'images'}", place / "records", size=32, format="raw")
    return place / "records"


def cifar_file(path):
    """A file like Caffe's, with random weights: of the oldest generation, four axes everywhere."""
    rng, net, weights = np.random.default_rng(1), CLASSES["Net"](), {}
    shapes = {"conv1": (32, 3, 5, 5), "conv2": (32, 32, 5, 5), "conv3": (64, 32, 5, 5)}
    for name, shape in (shapes | {"ip1": (1, 1, 10, 1024)}).items():
        deviation = np.prod(shape[-3:]) ** -0.5
        kernel, bias = (
            rng.normal(0, deviation, shape),
            rng.normal(0, 0.1, (1, 1, 1, max(shape[:3]))),
        )
        weights[name] = kernel.astype("<f4"), bias.astype("<f4")
        layer = net.layers.add().layer
        layer.name = name
        for array in weights[name]:
            blob = layer.blobs.add(data=[array.tobytes()])
            blob.num, blob.channels, blob.height, blob.width = array.shape
    path.write_bytes(net.SerializeToString())
    return weights


def test_caffes_cifar_net_with_the_mean_of_records(small_records, tmp_path, capsys):
    """Its colours are red, green, blue, unlike those of Caffe's ImageNet networks."""
    weights = cifar_file(tmp_path / "net.caffemodel")
    given = ["--from=cifar10_full", f"--file={tmp_path / 'net.caffemodel'}"]
    run = tmp_path / "run"
    command.main(["import", *given, f"--mean={small_records}", f"--workdir={run}"])
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    wanted = cifar_logits(weights, images - open_records(small_records).statistics.mean)
    found = alexnet_jax.load(run).logits(images)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    where = f"--config.data.records={small_records}"
    main(["--mode=evaluate", "--config=cifar10:18", where, f"--workdir={run}"])
    assert "step 0, test, centre crop: top-1 error" in capsys.readouterr().out


def test_records_of_other_classes_or_sizes_are_refused(records, small_records, tmp_path):
    file = tmp_path / "net.caffemodel"
    cifar_file(file)
    with pytest.raises(UserError, match="its records have other classes than cifar10_full"):
        load_weights(file, "cifar10_full", mean=str(records))
    c = load_config("cifar10:18")
    larger = dataclasses.replace(c, data=dataclasses.replace(c.data, size=40))
    with pytest.raises(UserError, match=r"the mean image has 32 x 32 pixels, .* have 40 x 40"):
        load_weights(file, "cifar10_full", mean=str(small_records), config=larger)


# --- files that others have trained -----------------------------------------------------------


def test_the_real_cifar_net():
    file = SHARED / "caffe_cifar10_full.caffemodel"
    if not file.exists():
        pytest.skip("no real files")
    net = load_weights(file, "cifar10_full", mean="125,123,114")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    wanted = cifar_logits(read_caffemodel(file), images - np.float32([125, 123, 114]))
    assert np.abs(net.logits(images) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
def test_the_real_convolutions():
    """BVLC's five, in its order of LRN and pooling; fc6 to fc8 begin with random weights."""
    file = SHARED / "bvlc_alexnet_conv.safetensors"
    if not file.exists():
        pytest.skip("no real files")
    convolutions = ("conv1", "conv2", "conv3", "conv4", "conv5")
    net = load_weights(file, "bvlc_alexnet", layers=convolutions)
    with pytest.raises(UserError, match=r"no weight of layer fc6; bvlc_alexnet has \[4096, 9216"):
        load_weights(file, "bvlc_alexnet")
    tensors, _ = read_tensors(file)
    squares = photos(256)
    x = squares[..., ::-1].transpose(0, 3, 1, 2) - tensors["mean"]
    x = torch.tensor(x[:, :, 14:241, 14:241])
    w = {name: torch.tensor(array.astype(np.float32)) for name, array in tensors.items()}
    for number, groups in enumerate((1, 2, 1, 2, 2), 1):
        how = {"stride": 4} if number == 1 else {"padding": 2 if number == 2 else 1}
        name = f"conv{number}"
        kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        x = nn.functional.conv2d(x, kernel, bias, groups=groups, **how).relu()
        wanted = x
        if number < 3:
            x = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(x)
            x = nn.MaxPool2d(3, 2)(x)
    found = net.features(squares, "conv5").transpose(0, 3, 1, 2)
    assert np.abs(found - wanted.numpy()).max() < 1e-5 * float(wanted.max())
