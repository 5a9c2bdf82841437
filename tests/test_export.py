"""Exported networks, in the programs that they are for: the same logits."""

import dataclasses
import json
import sys

import cv2
import numpy as np
import pytest

from alexnet_jax import UserError, load_config, load_weights
from alexnet_jax.runtime import host, messages
from alexnet_jax.runtime.caffe import read_caffemodel, read_mean
from alexnet_jax.runtime.tensors import read_tensors
from alexnet_jax.weights import export_network, export_weights, main
from tests.conftest import make_config
from tests.networks import new_net

RECIPES = ("alexnet", "alexnet_2012", "run_145", "bvlc_alexnet", "caffenet", "torchvision")
CIFAR = ("cifar10:18", "cifar10:26", "cifar10:tanh", "cifar10:sigmoid")
ABLATIONS = ("without_conv2", "sixth_conv", "no_lrn", "tanh", "no_overlap")


def small(name, **values):
    """A recipe at a narrow width, with an LRN that matters: at 1e-4 its sums hardly do."""
    c = load_config(name)
    if c.model.kind == "cifar":
        within = dataclasses.replace(c.model.within_map, alpha=0.02)
        model = dataclasses.replace(c.model, within_map=within)
    else:
        lrn = dataclasses.replace(c.model.lrn, alpha=0.02)
        within = dataclasses.replace(c.model.within_map, alpha=0.02, k=1.5)
        changes = {"width": 0.0625, "classes": 10, "lrn": lrn, "within_map": within}
        model = dataclasses.replace(c.model, **changes | values)
    return dataclasses.replace(c, devices=1, model=model)


def photos(net, count=3):
    size = net.config.data.size
    noise = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return np.stack([cv2.resize(one, (size, size)) for one in noise])


def crops(net, images):
    edge = (net.config.data.size - net.config.data.crop) // 2
    return images[:, edge : edge + net.config.data.crop, edge : edge + net.config.data.crop]


def exported(net, folder, name, to):
    net.save_pretrained(folder / "net")
    export_network(folder / "net", folder / name, to, "newest")
    return folder / name


def assert_same(found, net, images):
    wanted = net.logits(images)
    assert wanted.std(axis=0).max() > 0.001 * np.abs(wanted).max()  # they depend on the image
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    print(f"{net}: {difference:.1e}")
    assert difference < 1e-5


def by_opencv(file, net, images):
    """The logits that OpenCV finds, image by image."""
    theirs = cv2.dnn.readNetFromCaffe(str(file.with_suffix(".prototxt")), str(file))
    mean = read_mean(file.with_suffix(".binaryproto"))  # [3, height, width], blue, green, red
    minus_mean = images[..., ::-1].astype(np.float32) - mean.transpose(1, 2, 0)
    seen = crops(net, minus_mean).transpose(0, 3, 1, 2)
    found = []
    for one in seen:
        theirs.setInput(np.ascontiguousarray(one[None]))
        found.append(theirs.forward(net.config.model.names[-1])[0])
    return np.stack(found)


@pytest.mark.parametrize("name", [*RECIPES, *CIFAR, *(f"ablations:{one}" for one in ABLATIONS)])
def test_onnxruntimes_logits(name, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = new_net(small(name))
    file = exported(net, tmp_path, "net.onnx", "onnx")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = photos(net)
    seen = crops(net, images).transpose(0, 3, 1, 2).astype(np.float32)
    (found,) = session.run(["logits"], {"image": seen})
    assert_same(found, net, images)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(net.labels)
    if net.config.model.kind == "alexnet":
        assert "multiplied by 0.5" in about["dropout"]


@pytest.mark.skipif(not hasattr(cv2.dnn, "readNetFromCaffe"), reason="OpenCV 5 reads no Caffe")
@pytest.mark.parametrize("name", [*RECIPES, *CIFAR, "ablations:sixth_conv", "ablations:tanh"])
def test_opencvs_logits_of_caffes_files(name, tmp_path):
    net = new_net(small(name))
    file = exported(net, tmp_path, "net.caffemodel", "caffe")
    images = photos(net)
    assert_same(by_opencv(file, net, images), net, images)


@pytest.mark.parametrize("kind", ["bvlc_alexnet", "caffenet"])
def test_caffes_files_come_back_as_they_went(kind, tmp_path):
    same = load_config(kind).model  # weights are refused for another LRN
    net = new_net(small(kind, lrn=same.lrn, within_map=same.within_map))
    file = exported(net, tmp_path, "net.caffemodel", "caffe")
    back = load_weights(file, kind, mean=str(file.with_suffix(".binaryproto")), config=net.config)
    np.testing.assert_array_equal(back.setup.data.statistics.mean, net.setup.data.statistics.mean)
    for layer, of in net.params.items():
        for part, array in of.items():
            np.testing.assert_array_equal(back.params[layer][part], array)


def test_conv1_hangs_over_by_a_larger_kernel(tmp_path):
    net = new_net(small("alexnet"))
    file = exported(net, tmp_path, "net.caffemodel", "caffe")
    kernel, _ = read_caffemodel(file)["conv1"]
    assert kernel.shape == (6, 3, 14, 14)
    assert not kernel[:, :, :3].any()
    assert not kernel[..., :3].any()
    ours = np.asarray(net.params["conv1"]["kernel"])[..., ::-1, :].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel[:, :, 3:, 3:], ours)
    text = file.with_suffix(".prototxt").read_text()
    assert "kernel_size: 14 stride: 4 pad: 3 group: 1" in text
    assert "# dropout: scaled in training: kernels of fc7 and fc8 multiplied by 0.5" in text


def test_what_a_format_lacks_is_one_line(tmp_path):
    def refused(c, to, match):
        net = new_net(c)
        with pytest.raises(UserError, match=match):
            exported(net, tmp_path, {"onnx": "a.onnx", "caffe": "a.caffemodel"}[to], to)

    lrn = small("alexnet").model.lrn
    refused(small("ablations:no_crossing"), "onnx", "has no fully connected layers in two towers")
    refused(load_config("cifar10:13"), "onnx", "local3 is locally connected")
    refused(small("alexnet", lrn=dataclasses.replace(lrn, size=4)), "onnx", "LRN over 4 maps")
    refused(small("alexnet", lrn=dataclasses.replace(lrn, k=0.0)), "caffe", "Caffe needs an odd")
    refused(
        make_config(data__crop=68),
        "caffe",
        "pooling after layer 1 leaves 1 pixels at the far edges",
    )
    with pytest.raises(UserError, match=r"ends with \.onnx$"):
        export_network(tmp_path / "net", tmp_path / "a.pb", "onnx", "newest")


def test_without_the_package_onnx_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    net = new_net(make_config())
    with pytest.raises(UserError, match=r"^ONNX files need .* pip install 'alexnet-jax\[onnx\]'$"):
        exported(net, tmp_path, "a.onnx", "onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_to_torch_is_the_layout_torch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "configure_jax", lambda devices: None)
    new_net(make_config()).save_pretrained(tmp_path / "net")
    line = ["export", f"--model={tmp_path / 'net'}"]
    main([*line, "--to=torch", f"--file={tmp_path / 'a.safetensors'}"])
    export_weights(tmp_path / "net", tmp_path / "b.safetensors", "torch", "newest")
    (a, about), (b, _) = (read_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert about["dropout"] == "scaled in training"
    with pytest.raises(SystemExit):
        main([*line, "--to=onnx", "--layout=torch", f"--file={tmp_path / 'c.onnx'}"])
    assert "give it, or --to" in capsys.readouterr().err


def test_an_even_window_within_maps_sees_more_before_than_after(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    c = small("cifar10:18")
    within = dataclasses.replace(c.model.within_map, size=4)
    net = new_net(dataclasses.replace(c, model=dataclasses.replace(c.model, within_map=within)))
    file = exported(net, tmp_path, "net.onnx", "onnx")
    images = photos(net)
    seen = images.transpose(0, 3, 1, 2).astype(np.float32)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert_same(session.run(["logits"], {"image": seen})[0], net, images)


@pytest.mark.long
@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "bvlc_alexnet", "torchvision"])
def test_full_width(name, tmp_path):
    """As above, with 61 million parameters; Caffe's files, too, if OpenCV reads them."""
    c = small(name, width=1.0, classes=1000)
    net = new_net(c)
    runtime = pytest.importorskip("onnxruntime")
    images = photos(net)
    file = exported(net, tmp_path, "net.onnx", "onnx")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    seen = crops(net, images).transpose(0, 3, 1, 2).astype(np.float32)
    assert_same(session.run(["logits"], {"image": seen})[0], net, images)
    if hasattr(cv2.dnn, "readNetFromCaffe"):
        found = by_opencv(exported(net, tmp_path, "net.caffemodel", "caffe"), net, images)
        assert_same(found, net, images)


def by_torch(name, c, tensors, images):
    """The logits of PyTorch's functions with an exported file's tensors."""
    torch = pytest.importorskip("torch")
    f, t = torch.nn.functional, {key: torch.tensor(array) for key, array in tensors.items()}

    def conv(x, layer, **how):
        return f.conv2d(x, t[f"{layer}.weight"], t[f"{layer}.bias"], **how)

    def dense(x, layer):
        return f.linear(x, t[f"{layer}.weight"], t[f"{layer}.bias"])

    def within(x, r):
        squares = f.avg_pool2d(x**2, r.size, 1, r.size // 2) * r.size**2
        return x / (r.k + r.alpha * squares) ** r.beta

    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    if name == "cifar10:18":
        far = {"ceil_mode": True}
        x = within(f.max_pool2d(conv(x, "conv1", padding=2), 3, 2, **far).relu(), c.within_map)
        x = within(f.avg_pool2d(conv(x, "conv2", padding=2).relu(), 3, 2, **far), c.within_map)
        x = f.avg_pool2d(conv(x, "conv3", padding=2).relu(), 3, 2, **far)
        return dense(x.flatten(1), "fc10").numpy()

    def lrn(x):
        if name == "torchvision":
            return x
        parts = x.chunk(2, 1) if name == "alexnet" else [x]
        r = c.lrn
        how = (r.size, r.alpha * r.size, r.beta, r.k)
        return torch.cat([f.local_response_norm(part, *how) for part in parts], 1)

    def pool(x):
        return f.max_pool2d(x, 3, 2)

    edges = {"alexnet": (0, 3, 0, 3), "torchvision": (2, 2, 2, 2)}.get(name, (0, 0, 0, 0))
    groups = 1 if name == "torchvision" else 2
    x = conv(f.pad(x, edges), "conv1", stride=4).relu()
    x = lrn(pool(x)) if name == "caffenet" else pool(lrn(x))
    x = conv(x, "conv2", padding=2, groups=groups).relu()
    x = lrn(pool(x)) if name == "caffenet" else pool(lrn(x))
    x = conv(x, "conv3", padding=1).relu()
    x = conv(x, "conv4", padding=1, groups=groups).relu()
    x = pool(conv(x, "conv5", padding=1, groups=groups).relu()).flatten(1)
    return dense(dense(dense(x, "fc6").relu(), "fc7").relu(), "fc8").numpy()


@pytest.mark.parametrize(
    "name", ["alexnet", "bvlc_alexnet", "caffenet", "torchvision", "cifar10:18"]
)
def test_pytorchs_logits(name, tmp_path):
    net = new_net(small(name))
    net.save_pretrained(tmp_path / "net")
    export_weights(tmp_path / "net", tmp_path / "a.safetensors", "torch", "newest")
    images, mean = photos(net), net.setup.data.statistics.mean
    seen = crops(net, images.astype(np.float32) - mean)
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert_same(by_torch(name, net.config.model, tensors, seen), net, images)


def test_weights_that_no_file_of_messages_can_hold_are_refused():
    half = np.broadcast_to(np.float32(0), 2**28)  # a GiB, which takes no memory
    messages.check_size([half], "ONNX")
    with pytest.raises(UserError, match=r"2\.1 GB of weights: a file of ONNX has 2 GB at most"):
        messages.check_size([half, half], "ONNX")
