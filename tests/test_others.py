"""Weights of other programs: the same logits as theirs, from files that the test writes."""

import dataclasses
import itertools
import re
from pathlib import Path

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
from alexnet_jax.runtime.metrics import read_metrics
from alexnet_jax.runtime.onnx import CLASSES as ONNX
from alexnet_jax.runtime.onnx import read_onnx
from alexnet_jax.runtime.tensors import read_tensors, to_bytes
from alexnet_jax.training.graphs import read_graph
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


@pytest.mark.slow
def test_torchvisions_own_network(tmp_path):
    """At full size. Their wheel from the index of packages needs GPU libraries: so it may lack."""
    try:
        from torchvision.models import alexnet
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision: {error}")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    whole = alexnet(weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    save_file(whole.state_dict(), tmp_path / "net.safetensors")
    squares = photos(256)
    prepared = v2.Compose(
        [
            *(v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        wanted = whole(prepared(torch.tensor(squares).permute(0, 3, 1, 2))).numpy()
    for name in ("net.pth", "net.safetensors"):
        net = load_weights(tmp_path / name, "torchvision")
        difference = np.abs(net.logits(squares) - wanted).max() / np.abs(wanted).max()
        assert difference < 1e-5


def test_another_shape_is_one_line(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"features.0 is \[8, 3, 11, 11\], torchvision has \[64"):
        load_weights(tmp_path / "net.pth", "torchvision")


def test_no_pickle_is_run(tmp_path):
    class Touches:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"features.0.weight": Touches()}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"cannot be read as tensors .* no code in it was run"):
        load_weights(tmp_path / "code.pth", "torchvision")
    assert not (tmp_path / "run").exists()


GENERATIONS = ("layer", "layers", "layers of 2013")


def write_caffemodel(file, weights, generation, between=()):
    """A .caffemodel: kernels and biases, and the layers `between`, which have none, after conv1."""
    net = CLASSES["Net"]()
    for name, arrays in weights.items():
        layers = net.layer if generation == "layer" else net.layers
        layer = layers.add() if generation != "layers of 2013" else layers.add().layer
        layer.name = name
        for array in arrays:
            blob = layer.blobs.add(data=[np.ascontiguousarray(array, "<f4").tobytes()])
            if generation == "layer":
                blob.shape.dim.extend(array.shape)
            else:  # four axes everywhere
                sides = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sides
        for one in between if name == "conv1" else ():
            layers.add(name=one)
    file.write_bytes(net.SerializeToString())


def random_weights(shapes):
    """Kernels and biases that keep the size of what goes through, but for conv1."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.normal(0, np.prod(shape[1:]) ** -0.5 / (8 if name == "conv1" else 1), shape),
            rng.normal(0, 0.1, shape[0]),
        )
        for name, shape in shapes.items()
    }


NARROW = {
    "conv1": (12, 3, 11, 11),
    "conv2": (32, 6, 5, 5),
    "conv3": (48, 32, 3, 3),
    "conv4": (48, 24, 3, 3),
    "conv5": (32, 24, 3, 3),
    "fc6": (512, 1152),
    "fc7": (512, 512),
    "fc8": (10, 512),
}


@pytest.mark.parametrize("towers", [2, 1])
@pytest.mark.parametrize(
    ("kind", "generation"), itertools.product(("bvlc_alexnet", "caffenet"), GENERATIONS)
)
def test_caffes_logits(kind, generation, towers, tmp_path):
    """With one tower, kernels of two groups are its blocks."""
    c, file, rng = (
        narrow(kind, towers=towers),
        tmp_path / "net.caffemodel",
        np.random.default_rng(0),
    )
    weights = random_weights(NARROW)
    write_caffemodel(file, weights, generation)
    loaded = load_weights(file, kind, mean="120,110,100", config=c)

    images = rng.uniform(-120, 120, (2, 227, 227, 3)).astype(np.float32)
    x = torch.tensor(np.ascontiguousarray(images[..., ::-1])).permute(0, 3, 1, 2)
    norm, pool = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0), nn.MaxPool2d(3, 2)
    w = {
        name: [torch.tensor(own, dtype=torch.float32) for own in weights[name]] for name in weights
    }
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


def test_the_mean_image_of_a_binaryproto_and_of_three_numbers(tmp_path):
    """Caffe's is [1, 3, height, width], blue, green, red; the numbers are red, green, blue."""
    image = np.random.default_rng(0).uniform(90, 140, (3, 256, 256)).astype("<f4")
    blob = CLASSES["Blob"](num=1, channels=3, height=256, width=256, data=[image.tobytes()])
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    file, c = tmp_path / "net.caffemodel", narrow("bvlc_alexnet")
    write_caffemodel(file, random_weights(NARROW), "layer")

    def mean(given):
        loaded = load_weights(file, "bvlc_alexnet", mean=given, config=c)
        return np.asarray(loaded.setup.normalization["mean"])

    np.testing.assert_array_equal(mean(str(tmp_path / "mean.binaryproto"))[..., 2], image[0])
    np.testing.assert_array_equal(mean("120,110,100")[7, 9], [120, 110, 100])
    for given in ("120,110", "a,b,c", "nothing"):
        with pytest.raises(UserError, match=r"give a \.binaryproto, or three numbers"):
            mean(given)
    with pytest.raises(UserError, match="there is no file"):
        mean("no.binaryproto")
    blob.channels, blob.height = 1, 768
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    with pytest.raises(UserError, match=r"a mean image is \[3, height, width\]"):
        mean(str(tmp_path / "mean.binaryproto"))


def test_a_file_of_our_own_export_is_not_taken_for_theirs(tmp_path):
    file = tmp_path / "ours.safetensors"
    file.write_bytes(to_bytes({"conv1.weight": np.zeros(3)}, {"layout": "torch"}))
    with pytest.raises(UserError, match=r"`weights export`: import it with --layout=torch"):
        load_weights(file, "bvlc_alexnet", mean="120,110,100")
    file.write_bytes(to_bytes({"a": np.zeros(3)}, {}))
    with pytest.raises(UserError, match="give no --mean"):
        load_weights(file, "torchvision", mean="120,110,100")


def test_what_a_file_of_another_network_lacks_is_named(tmp_path):
    def said(shapes=None, kind="bvlc_alexnet", between=(), **values):
        file = tmp_path / "net.caffemodel"
        write_caffemodel(file, random_weights(NARROW | (shapes or {})), "layers", between)
        with pytest.raises(UserError) as error:
            load_weights(file, kind, mean="120,110,100", config=narrow(kind, **values))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "weight of layer fc7 is [1, 1, 512, 500], bvlc_alexnet has [512, 512]" in said(
        {"fc7": (512, 500)}
    )
    assert "has a layer fc9, which bvlc_alexnet does not have" in said({"fc9": (3, 3)})
    assert "pools and normalizes as caffenet" in said(between=("pool1", "norm1"))
    assert "pools and normalizes as bvlc_alexnet" in said(None, "caffenet", ("norm1", "pool1"))
    assert "config.model.lrn_over_towers is False" in said(lrn_over_towers=False)


@pytest.mark.slow
def test_training_goes_on_from_a_workdir_of_others_weights(records, tmp_path):
    """By the command, with some layers; a tower on each of two devices gives the losses of one."""
    file, run, losses = tmp_path / "net.caffemodel", tmp_path / "run", []
    write_caffemodel(file, random_weights(NARROW), "layers")
    small = [
        "data.size=72",
        "data.resize=area",
        "data.crop=67",
        "data.format=raw",
        "data.random_crop=False",
    ]
    small += ["model.width=0.125", "model.classes=10", "batch=16", "evaluate.batch=32"]
    small += [f"data.records={records}", "steps=2", "log.every=1", "policy.rate=0.001"]
    options = ["--config=bvlc_alexnet", *(f"--config.{value}" for value in small)]
    given = [f"--file={file}", f"--mean={records}", f"--workdir={run}"]
    layers = [f"conv{number}" for number in range(1, 6)]
    from_ = ["--from=bvlc_alexnet", f"--layers={','.join(layers)}"]
    command.main(["import", *from_, *given, *options])
    kept = alexnet_jax.load(run)
    assert len(kept.top5(photos(72)[0])) == 5
    assert kept.classes == open_records(records).manifest.classes
    for devices in (1, 2):
        on = tmp_path / f"on{devices}"
        more = [f"--config.init_from={run}", f"--config.devices={devices}", f"--workdir={on}"]
        more += ["--config.evaluate.ten_views_at_end=False"]
        main([*options, *more])
        losses.append([line["train/loss"] for line in read_metrics(on) if "train/loss" in line])
        kept = alexnet_jax.load(on, devices=devices)
        kept.save_pretrained(tmp_path / f"mine{devices}")
        again = alexnet_jax.from_pretrained(tmp_path / f"mine{devices}", devices=devices)
        squares = photos(72)
        np.testing.assert_array_equal(again.logits(squares), kept.logits(squares))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == 2


# --- ONNX: at full size, against onnxruntime ----------------------------------------------------

WHOLE = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}


def light_graph(onnx, weights, kind):
    """The graph of the package `onnx`, of 227 pixels and with weights; its outputs are logits."""
    place = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"
    model = onnx.load(place)
    model.ir_version = 7
    graph, array = model.graph, onnx.numpy_helper.from_array
    nodes = [one for one in graph.node if one.op_type not in ("ConstantOfShape", "Softmax")]
    if kind == "caffenet":
        for lrn, pool in ((2, 3), (6, 7)):  # each takes the name of the other's output
            nodes[lrn].output[0], nodes[pool].output[0] = (
                nodes[pool].output[0],
                "swapped" + str(lrn),
            )
            nodes[pool].input[0], nodes[lrn].input[0] = nodes[lrn].input[0], "swapped" + str(lrn)
            nodes[lrn], nodes[pool] = nodes[pool], nodes[lrn]
    float32, helper = onnx.TensorProto.FLOAT, onnx.helper
    tensors = [array(np.array([-1, 9216]), "OC2_DUMMY_1")]
    for name, (kernel, bias) in weights.items():
        for part, own in (("w", kernel), ("b", bias)):
            tensors.append(array(own.astype(np.float32), f"{name}_{part}_0"))
    image = helper.make_tensor_value_info("data_0", float32, ["n", 3, 227, 227])
    logits = helper.make_tensor_value_info(nodes[-1].output[0], float32, ["n", 1000])
    whole = helper.make_graph(nodes, "net", [image], [logits], tensors)
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bvlc_alexnet", "caffenet"])
def test_onnx_against_onnxruntime(kind, tmp_path):
    """At full size, on one device and on two, from an .onnx file and from a .caffemodel."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    weights, squares = random_weights(WHOLE), photos(256)[:2]
    onnx.save(light_graph(onnx, weights, kind), tmp_path / "net.onnx")
    write_caffemodel(tmp_path / "net.caffemodel", weights, "layers")
    del weights
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    seen = squares[:, 14:241, 14:241] - np.float32([120, 110, 100])
    (wanted,) = session.run(
        None, {"data_0": np.ascontiguousarray(seen[..., ::-1].transpose(0, 3, 1, 2))}
    )
    del session
    for devices, file, of in ((1, "net.onnx", "onnx"), (2, "net.caffemodel", kind)):
        c = dataclasses.replace(load_config(kind), devices=devices)
        net = load_weights(tmp_path / file, of, mean="120,110,100", config=c)
        assert net.setup.network.mesh.shape["tower"] == devices
        assert np.abs(net.logits(squares) - wanted).max() < 1e-5 * np.abs(wanted).max()


def change(graph, what):
    """Another graph: what differs, for an error."""
    node, tensors = graph.node, graph.initializer
    if what == "operation":
        node[1].op_type = "Sigmoid"
    elif what == "attribute":
        next(one for one in node[2].attribute if one.name == "alpha").f = 1e-3
    elif what == "numbers":
        tensors[1].name = "other"
    elif what == "external":
        tensors[1].data_location = 1
    elif what == "shape":
        tensors[-2].dims[:] = [10, 256, 2]
    else:
        del node[-1]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("operation", "operation 2 is Sigmoid, bvlc_alexnet has Relu"),
        ("attribute", "operation 3, LRN, has alpha 0.001"),
        ("numbers", "no numbers for the weight of layer conv1, conv1_w_0"),
        ("external", "the numbers of conv1_w_0 are in another file"),
        ("shape", "weight of layer fc8 is [10, 256, 2], onnx has [10, 512]"),
        ("end", "has 19 operations with numbers, bvlc_alexnet 20"),
    ],
)
def test_another_graph_is_refused(what, said, tmp_path):
    onnx = pytest.importorskip("onnx")
    model, file = light_graph(onnx, random_weights(NARROW), "bvlc_alexnet"), tmp_path / "net.onnx"
    c = narrow("bvlc_alexnet")
    file.write_bytes(model.SerializeToString())
    assert load_weights(file, "onnx", mean="120,110,100", config=c)
    change(model.graph, what)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError) as error:
        load_weights(file, "onnx", mean="120,110,100", config=c)
    assert said in str(error.value)


@pytest.fixture
def with_attribute(tmp_path):
    """Writes a graph in which all operations of a kind have an attribute of this value."""
    onnx = pytest.importorskip("onnx")
    model = light_graph(onnx, random_weights(NARROW), "bvlc_alexnet")

    def write(kind, name, value):
        for node in (one for one in model.graph.node if one.op_type == kind):
            kept = [one for one in node.attribute if one.name != name]
            new = [] if value is None else [onnx.helper.make_attribute(name, value)]
            del node.attribute[:]
            node.attribute.extend(kept + new)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "net.onnx"

    return write


@pytest.mark.parametrize(
    ("kind", "name", "value", "said"),
    [
        ("LRN", "bias", 2.0, "operation 3, LRN, has bias 2.0, bvlc_alexnet has 1.0"),
        ("MaxPool", "dilations", [2, 2], r"MaxPool, has dilations \(2, 2\), .* has \(1, 1\)"),
        ("MaxPool", "pads", [1] * 4, r"4, MaxPool, has leading pads \(1, 1\), .* has \(0, 0\)"),
        ("MaxPool", "pads", [0, 1, 0, 0], r"4, MaxPool, has leading pads \(0, 1\)"),
        ("MaxPool", "kernel_shape", [3], r"4, MaxPool, has kernel_shape \(3,\), .* has \(3, 3\)"),
        ("Conv", "pads", [0] * 2, r"1, Conv, has pads \(0, 0\), .* has \(0, 0, 0, 0\)"),
        ("Conv", "pads", [0] * 6, r"1, Conv, has pads \(0, 0, 0, 0, 0, 0\), .* has \(0, 0, 0, 0\)"),
    ],
)
def test_an_attribute_of_another_network_is_refused(kind, name, value, said, with_attribute):
    with pytest.raises(UserError, match=said) as error:
        read_graph(with_attribute(kind, name, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("LRN", "bias", None),
        ("LRN", "beta", None),
        ("MaxPool", "pads", None),
        ("MaxPool", "pads", [0, 0, 1, 1]),
    ],
)
def test_an_attribute_may_be_left_out_and_a_window_may_hang_over(kind, name, value, with_attribute):
    assert read_graph(with_attribute(kind, name, value))[0] == "bvlc_alexnet"


@pytest.mark.parametrize(
    ("shape", "data"),
    [((-1, -1), 4), ((2**32, 2**32), 0), ((0, 2**62, 2**62), 0), ((1,) * 70, 4), ((2, 2), 12)],
)
def test_a_damaged_shape_is_one_line(shape, data, tmp_path):
    model, net, file = ONNX["Model"](), CLASSES["Net"](), tmp_path / "file"
    model.graph.node.add(op_type="Conv")
    model.graph.initializer.add(dims=shape, data_type=1, name="w", raw_data=bytes(data))
    net.layer.add(name="w").blobs.add(data=[bytes(data)]).shape.dim.extend(shape)
    for message, read in ((model, read_onnx), (net, read_caffemodel)):
        file.write_bytes(message.SerializeToString())
        with pytest.raises(UserError, match=rf"w has {data} bytes for an array of \[") as error:
            read(file)
        assert "\n" not in str(error.value)


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
    with pytest.raises(UserError, match="holds a run already; give another --workdir"):
        command.import_from("cifar10_full", run, tmp_path / "net.caffemodel", mean="1,2,3")


def card(net, folder):
    net.save_pretrained(folder)
    return (folder / "README.md").read_text()


def test_the_card_of_imported_weights_says_so(small_records, tmp_path):
    """And of what they are; that of a network which was trained further says this."""
    file, names = tmp_path / "net.caffemodel", ", ".join(CIFAR10)
    cifar_file(file)
    told = card(load_weights(file, "cifar10_full", mean="1,2,3"), tmp_path / "mine")
    assert re.search(r"weights were imported with alexnet_jax \S+: config `\S+`, step 0\.", told)
    assert "- Mean image and names of classes: cifar10_full, net.caffemodel\n" in told
    assert f"- Classes: 10: {names}\n" in told
    assert "was trained" not in told
    net = load_weights(file, "cifar10_full", mean=str(small_records))
    told = card(net, tmp_path / "of_records")
    assert "- Mean image and names of classes: folder:images\n" in told
    told = card(dataclasses.replace(net, step=5), tmp_path / "further")
    assert "It was trained with alexnet_jax" in told
    assert "- Trained on: folder:images\n" in told
    assert "import" not in told.partition("```")[0]


def test_a_card_in_this_folder_has_its_name_and_the_number_of_unnamed_classes(
    theirs, tmp_path, monkeypatch
):
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    net = load_weights(tmp_path / "net.pth", "torchvision", config=narrow("torchvision"))
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    told = card(net, Path("."))
    assert 'from_pretrained("mine")' in told
    assert (
        "- Mean image and names of classes: torchvision, net.pth\n- Classes: 10: unnamed\n" in told
    )


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


def test_an_unknown_kind_is_one_line_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match="there is no kind 'keras' of weights; there are torchv"):
        load_weights(tmp_path / "any", "keras")  # type: ignore[arg-type]
