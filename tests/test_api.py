"""The Python API: a workdir's copy without records, a folder of save_pretrained, plain modules."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
from flax import nnx

import alexnet_jax
from alexnet_jax import UserError, predict, weights
from alexnet_jax.data.info import imagenet_words, info_bytes
from alexnet_jax.runtime import host, workdir
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from tests.conftest import make_config

COUNT = 20
FILES = ["README.md", "config.json", "data.safetensors", "model.safetensors"]


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """The workdir of a run, beside its records."""
    folder = tmp_path_factory.mktemp("api") / "run"
    c = make_config(records, steps=6, batch=32, evaluate__batch=32)
    fit(
        dataclasses.replace(c, evaluate=dataclasses.replace(c.evaluate, ten_views_at_end=False)),
        folder,
    )
    return folder


def without_records(run: Path, folder: Path) -> Path:
    """A copy of a workdir, as on a machine that has no records."""
    shutil.copytree(run, folder)
    values = json.loads((folder / "config.json").read_text())
    values["data"]["records"] = "no/records"
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def net(run, tmp_path_factory):
    return alexnet_jax.load(without_records(run, tmp_path_factory.mktemp("elsewhere") / "copy"))


@pytest.fixture(scope="module")
def with_records(run):
    """The same network as the commands for its own images open it."""
    return trained.open_trained(run)


@pytest.fixture(scope="module")
def images(with_records):
    """The first validation images: uint8 [20, 72, 72, 3]."""
    split = with_records.setup.validation
    found = np.empty((COUNT, split.size, split.size, 3), np.uint8)
    for index, out in enumerate(found):
        split.read(index, out)
    return found


@pytest.fixture(scope="module")
def pretrained(net, tmp_path_factory):
    """A folder of save_pretrained that was moved after it was written."""
    folder = tmp_path_factory.mktemp("pretrained")
    net.save_pretrained(folder / "out")
    return (folder / "out").rename(folder / "moved")


# --- a workdir alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_those_of_the_evaluation_on_records(net, with_records, images, views):
    setup = with_records.setup
    log = setup.evaluator.log_probs(
        with_records.params, setup.validation, views=views, what="validation"
    )
    np.testing.assert_allclose(
        net.probs(images, views=views), np.exp(log[:COUNT]), rtol=1e-5, atol=1e-8
    )


@pytest.fixture(scope="module")
def outputs(net, images):
    """Of all layers, for three images: cut by numpy, seen by the module outside of a mesh."""
    mean = np.asarray(net.setup.data.statistics.mean)
    x = jnp.asarray(images[:3, 4:68, 4:68] - mean[4:68, 4:68])  # as configs/tiny.py: 64 of 72
    np.testing.assert_allclose(net.inputs(images[:3]), x, atol=1e-4)
    return jax.jit(net.module.outputs)(x)


@pytest.mark.parametrize("devices", [1, 2])
def test_features_are_the_outputs_of_the_network_in_one_piece(net, outputs, images, devices):
    """Tower A's first, also if each tower is on a device of its own."""
    if devices > 1:
        net = trained.load(net.folder, devices=devices)
    for layer in ("conv1", "conv5", "fc7", "fc8"):
        found = net.features(images[:3], layer)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, outputs[layer], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(net.logits(images[:3]), net.features(images[:3], "fc8"))
    probs = jax.nn.softmax(outputs["fc8"])
    np.testing.assert_allclose(net.probs(images[:3], views=1), probs, rtol=1e-4)


def test_it_prints_what_it_is_and_where_it_is_from(net, with_records, run):
    error = with_records.setup.evaluator.score(
        with_records.params, with_records.setup.validation, views=1, what="validation"
    ).top1_error
    about = "AlexNet(two towers, 10 classes, 64 pixels)"
    assert repr(net) == f"{about} from {net.folder}, step 6, top-1 error {error:.2%}"
    assert str(with_records) == repr(net).replace(str(net.folder), str(run))


def test_a_workdir_of_the_first_version_opens_with_its_records(run, records, tmp_path):
    old = without_records(run, tmp_path / "old")
    (old / workdir.DATA).unlink()
    with pytest.raises(UserError, match=r"old has no data\.safetensors, .* records=DIR$"):
        alexnet_jax.load(old)
    assert alexnet_jax.load(old, records=str(records)).step == 6
    (old / workdir.DATA).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot be read as safetensors .* records=DIR$"):
        alexnet_jax.load(old)


def test_a_workdir_with_anothers_mean_image_is_refused(run, net, tmp_path):
    other = without_records(run, tmp_path / "other")
    info = dataclasses.replace(net.setup.data, hash="0" * 64)
    workdir.write(other / workdir.DATA, info_bytes(info))
    with pytest.raises(UserError, match="was trained on other records than its mean image"):
        alexnet_jax.load(other)


# --- images -------------------------------------------------------------------------------------


def test_an_image_is_the_same_in_a_file_in_memory_and_as_an_array(net, images, tmp_path):
    image = np.zeros((90, 160, 3), np.uint8)
    image[:72, :72] = images[0]
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    file = tmp_path / "a.png"
    kinds = [str(file), file, file.read_bytes(), PIL.Image.open(file), image, jnp.asarray(image)]
    squares = net.preprocess(kinds)
    assert squares.shape == (6, 72, 72, 3)
    assert squares.dtype == np.uint8
    assert (squares == squares[0]).all()
    # 90 x 160 becomes 72 x 128, and of that the middle.
    theirs = cv2.resize(image, (128, 72), interpolation=cv2.INTER_AREA)[:, 28:100]
    np.testing.assert_array_equal(squares[0], theirs)
    np.testing.assert_array_equal(net.preprocess(squares), squares)  # once is enough
    np.testing.assert_array_equal(net.preprocess(image[..., 0])[0, ..., 1], theirs[..., 0])


def test_one_image_gives_labels_and_several_a_list_of_them(net, images):
    probs = net.probs(images[:3])
    one, several = net.top5(images[0]), net.top5(list(images[:3]))
    assert len(several) == 3
    assert [label for label, _ in one] == [label for label, _ in several[0]]
    for best, row in zip(several, probs, strict=True):
        assert [label for label, _ in best] == [net.labels[i] for i in np.argsort(-row)[:5]]
        np.testing.assert_allclose([p for _, p in best], np.sort(row)[::-1][:5], rtol=1e-5)


def test_the_last_batch_is_filled_up_and_changes_nothing(net, images):
    """33 images are a batch of 32 and one of which 31 are black."""
    many = np.concatenate([images, images])[:33]
    np.testing.assert_allclose(net.logits(many)[20:33], net.logits(images)[:13], rtol=1e-4)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("none.jpg", r"none\.jpg cannot be read: No such file or directory"),
        ("text.jpg", r"text\.jpg is not an image \(JPEG, PNG, \.\.\.\)$"),
        (b"", "an image is empty"),
        (np.zeros((3, 64, 64), np.float32), r"got float32 \[3, 64, 64\]"),
        (np.zeros((3, 64, 64), np.uint8), r"got uint8 \[3, 64, 64\]"),
        (7, "got int"),
        ([], "there are no images"),
    ],
)
def test_what_is_no_image_is_one_line(net, tmp_path, monkeypatch, image, line):
    monkeypatch.chdir(tmp_path)
    Path("text.jpg").write_text("no image")
    with pytest.raises(UserError, match=line) as error:
        net.top5(image)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_layer_names_those_there_are(net, images):
    known = "conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8, pool5"
    with pytest.raises(UserError, match=f"^no layer conv9; there are {known}$"):
        net.features(images, "conv9")
    with pytest.raises(UserError, match=r"^views=3; there are 1, 9, 10$"):
        net.probs(images, views=3)


def test_imagenets_classes_have_words_and_keep_their_wnids(
    net, images, tmp_path, monkeypatch, devices_stay
):
    words = imagenet_words()
    assert len(set(words.values())) == len(words) == 1000
    path = "tensorflow_datasets/datasets/imagenet2012/labels.txt"
    wnids = metadata.distribution("tensorflow-datasets").locate_file(path)
    assert list(words) == Path(str(wnids)).read_text().split()
    assert words["n01440764"] == "tench"
    # Two share a word.
    assert (words["n02012849"], words["n03126707"]) == ("crane bird", "crane")
    info = dataclasses.replace(net.setup.data, classes=tuple(words)[:10])
    named = dataclasses.replace(net, setup=dataclasses.replace(net.setup, data=info))
    monkeypatch.setattr(trained, "load", lambda *_, **__: named)
    cv2.imwrite(str(tmp_path / "a.png"), images[0][..., ::-1])
    file = tmp_path / "labels.json"
    predict.main([f"--model={net.folder}", str(tmp_path / "a.png"), f"--json={file}"])
    (found,) = json.loads(file.read_text())
    assert list(found["labels"]) == [words[wnid] for wnid in found["classes"]]
    best = [net.classes.index(label) for label, _ in net.top5(images[0])]
    assert found["classes"] == [list(words)[number] for number in best]


# --- folders to share ---------------------------------------------------------------------------


def test_a_moved_folder_gives_the_same_numbers_bit_for_bit(net, pretrained, images):
    again = alexnet_jax.from_pretrained(pretrained)
    assert sorted(path.name for path in pretrained.iterdir()) == FILES
    np.testing.assert_array_equal(again.probs(images[:4]), net.probs(images[:4]))
    np.testing.assert_array_equal(
        again.features(images[:4], "fc7"), net.features(images[:4], "fc7")
    )
    jax.tree.map(np.testing.assert_array_equal, again.params, net.params)
    assert repr(again) == repr(net).replace(str(net.folder), str(pretrained))
    assert alexnet_jax.load(pretrained).labels == again.labels == net.labels


def test_the_card_says_what_it_is_and_no_file_has_folders_of_this_machine(net, pretrained):
    card = (pretrained / "README.md").read_text()
    assert "# AlexNet(two towers, 10 classes, 64 pixels)" in card
    assert f"Top-1 error on its validation split, centre crop: {net.error:.2%}" in card
    places = {str(Path.home()), str(net.folder.parent), str(pretrained.parent), "/tmp"}
    for file in FILES:
        assert not any(place.encode() in (pretrained / file).read_bytes() for place in places)


@pytest.fixture
def damaged(pretrained, tmp_path):
    return shutil.copytree(pretrained, tmp_path / "out")


@pytest.mark.parametrize("file", ["model.safetensors", "data.safetensors"])
def test_damaged_tensors_are_one_line(damaged, file):
    path = damaged / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])  # one bit of one number
    with pytest.raises(UserError, match=f"{file} is damaged: its contents are not what was saved"):
        alexnet_jax.from_pretrained(damaged)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{file} cannot be read as safetensors"):
        alexnet_jax.from_pretrained(damaged)
    path.unlink()
    with pytest.raises(UserError, match=f"there is no file .*{file}"):
        alexnet_jax.from_pretrained(damaged)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (b'{"model_type": "resnet"}', "holds a model of type resnet, not alexnet_jax; give a"),
        (b"[]", "holds a model of type unknown"),
        (b"{", "holds a model of type unknown"),
        (b'{"model_type": "alexnet_jax"}', "config.json is of another version: 'config'"),
        (None, "out holds no model: there is no config.json in it"),
    ],
)
def test_another_programs_folder_is_one_line(damaged, config, line):
    (damaged / "config.json").unlink()
    if config is not None:
        (damaged / "config.json").write_bytes(config)
    with pytest.raises(UserError, match=line) as error:
        alexnet_jax.from_pretrained(damaged)
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_width_are_one_line(damaged):
    values = json.loads((damaged / "config.json").read_text())
    values["config"]["model"]["width"] = 0.25
    (damaged / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"does not fit .*config\.json: tensor 'conv1"):
        alexnet_jax.from_pretrained(damaged)


def test_a_workdir_or_a_readme_is_not_written_over(net, run, tmp_path):
    (tmp_path / "README.md").write_text("of something else")
    with pytest.raises(UserError, match="holds other files; give a new folder"):
        net.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"has the config\.json of a run or of another program; give another$"
    ):
        net.save_pretrained(run)


def test_a_workdir_is_not_a_folder_to_share_and_the_line_says_what_to_do(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError) as error:
        alexnet_jax.from_pretrained(run.name)
    assert str(error.value) == (
        "run is the workdir of a run; open it with alexnet_jax.load, or make a folder to share: "
        "python -m alexnet_jax.weights save --workdir=run --out=mine"
    )
    assert alexnet_jax.load(run.name).step == 6  # the first advice


@pytest.mark.parametrize("where", [5, None, b"runs/tiny", "", ["runs/tiny"]])
def test_what_is_no_path_is_one_line(where):
    said = f"give a workdir, a folder to share or hf://OWNER/NAME; got {where!r}"
    for opened in (alexnet_jax.load, alexnet_jax.from_pretrained):
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            opened(where)


@pytest.mark.parametrize("devices", ["two", 0, 1.5, None])
def test_a_wrong_number_of_devices_is_one_line(run, pretrained, devices):
    for folder in (run, pretrained):
        with pytest.raises(UserError, match=rf"^config\.devices={devices!r} must be .*$"):
            alexnet_jax.load(folder, devices=devices)


# --- commands -----------------------------------------------------------------------------------


@pytest.fixture
def devices_stay(monkeypatch):
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)


def test_predict_labels_folders_without_records(net, pretrained, images, tmp_path, devices_stay):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    names = ["a.png", "more/b.png"]
    for name, image in zip(names, images, strict=False):
        cv2.imwrite(str(photos / name), image[..., ::-1])
    (photos / ".hidden").write_text("no image")
    file, found = tmp_path / "labels.json", []
    for option, where in (("model", net.folder), ("workdir", net.folder), ("model", pretrained)):
        predict.main([f"--{option}={where}", str(photos / "a.png"), str(photos), f"--json={file}"])
        found.append(json.loads(file.read_text()))
    assert found[0] == found[1] == found[2]
    assert [one["image"] for one in found[0]] == [str(photos / name) for name in names]
    for one, best in zip(found[0], net.top5(images[:2]), strict=True):
        assert list(one["labels"]) == [label for label, _ in best] == one["classes"]


def test_weights_save_writes_what_save_pretrained_writes(net, pretrained, tmp_path, devices_stay):
    weights.main(["save", f"--workdir={net.folder}", f"--out={tmp_path / 'out'}"])
    for name in ("model.safetensors", "data.safetensors"):
        ours, theirs = ((folder / name).read_bytes() for folder in (tmp_path / "out", pretrained))
        assert len(ours) == len(theirs)
    again = alexnet_jax.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, net.params)


# --- modules, operations, configs ---------------------------------------------------------------


@pytest.mark.slow
def test_a_plain_module_is_the_same_network_and_trains_with_flax(net, images):
    """Without a mesh; its first loss is that of the network on one."""
    model = alexnet_jax.AlexNet(net.config.model, 64, rngs=nnx.Rngs(net.config.seed))
    ours, theirs = nnx.to_pure_dict(nnx.state(model)), net.setup.network.init(net.config.seed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)
    x, labels = net.inputs(images[:4]), jnp.arange(4)

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    optimizer = nnx.Optimizer(model, optax.sgd(1e-3), wrt=nnx.Param)
    losses = [float(step(model, optimizer)) for _ in range(5)]
    logits = dataclasses.replace(net, params=theirs).logits(images[:4])
    wanted = -np.diag(jax.nn.log_softmax(logits)).mean()
    np.testing.assert_allclose(losses[0], wanted, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_operations_by_themselves_are_the_papers_formulas():
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 9)).astype(np.float32) * 20
    squares = np.pad(x**2, [(0, 0)] * 3 + [(2, 2)])
    sums = sum(squares[..., i : i + 9] for i in range(5))
    wanted = x / (2 + 1e-4 * sums) ** 0.75
    np.testing.assert_allclose(alexnet_jax.lrn(jnp.asarray(x)), wanted, rtol=1e-5)
    other = x / (1 + 0.1 * x**2) ** 0.5
    found = alexnet_jax.lrn(jnp.asarray(x), size=1, k=1.0, alpha=0.1, beta=0.5)
    np.testing.assert_allclose(found, other, rtol=1e-5)
    pooled = [[x[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
    found = alexnet_jax.max_pool(jnp.asarray(x))
    np.testing.assert_array_equal(found, np.moveaxis(np.array(pooled), 2, 0))


def test_configs_have_names():
    assert alexnet_jax.alexnet_2012.data.mean == "centre"
    assert alexnet_jax.alexnet.data.mean == "crop"
    assert alexnet_jax.load_config("cifar10:18").model.kind == "cifar"
    with pytest.raises(UserError, match="there is no config none; give a file, or one of ablat"):
        alexnet_jax.load_config("none")
    with pytest.raises(AttributeError, match="'alexnet_jax' has no attribute 'none'"):
        alexnet_jax.none  # noqa: B018


def test_importing_is_quick_and_starts_nothing():
    """No jax at all at first; and no name of the API starts a backend."""
    code = (
        "import sys, alexnet_jax; assert not {'jax', 'numpy', 'flax'} & set(sys.modules);"
        "[getattr(alexnet_jax, name) for name in alexnet_jax.__all__];"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized();"
        "assert set(alexnet_jax.__all__) <= set(dir(alexnet_jax));"
        "print(alexnet_jax.__version__)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    version = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert version.strip() == re.search(r"^version: (.+)$", citation, re.M)[1]
