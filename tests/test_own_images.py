"""One command from a folder of photos, and perhaps weights, to a trained network."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import main, predict, weights
from alexnet_jax.data.origin import records_folder
from alexnet_jax.data.records import open_records
from alexnet_jax.model.layouts import layers_that_fit
from alexnet_jax.runtime import host
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_network
from tests.conftest import PHOTOS, make_config

SMALL = (
    *("--config=finetune:narrow", "--config.data.size=72", "--config.data.crop=64"),
    *("--config.model.width=0.1", "--config.batch=4", "--config.evaluate.batch=4"),
    *("--config.evaluate.ten_views_at_end=False", "--config.steps=2"),
)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def photos(root: Path, *names: str, count: int = 3) -> None:
    """The same photo several times in a class."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(PHOTOS / f"{name}.jpg", root / name / f"{number}.jpg")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder, with photos of three classes, on which runs/mine has trained."""
    place = tmp_path_factory.mktemp("own")
    photos(place / "photos", "hat", "dress", "shoes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(host, "configure_jax", lambda *_, **__: None)
        run("folder:photos", "mine")
        weights.export_weights(Path("runs/mine"), Path("mine.safetensors"), "torch", "newest")
        yield place


def run(source: str, name: str, *values: str) -> None:
    line = (f"--config.data.source={source}", f"--workdir=runs/{name}")
    main.main([*SMALL, *line, *(f"--config.{value}" for value in values)])


def config_of(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/config.json").read_text())


def params_of(name: str, step: int | str) -> dict:
    return jax.device_get(trained.open_trained(Path(f"runs/{name}"), step=step).params)


def error_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_photos_are_prepared_counted_trained_on_and_can_be_labelled(place, capsys):
    photos(place / "mine", "hat", "pants", "shoes")
    run("folder:mine", "first")
    said = capsys.readouterr().out.splitlines()
    predict_command = "python -m alexnet_jax.predict --model=runs/first photo.jpg"
    assert [line.split("  ")[-1].strip() for line in said if "photo.jpg" in line] == [
        predict_command
    ]
    assert "making records in records/mine" in said
    start = "folder:mine: 6 train and 3 validation images in 3 classes; there is no validation sp"
    assert sum(line.startswith(start) for line in said) == 1
    c = config_of("first")
    assert (c["model"]["classes"], c["data"]["records"]) == (3, "records/mine")
    assert open_records("records/mine").manifest.classes == ("hat", "pants", "shoes")
    run("folder:mine", "first", "steps=3")
    said = capsys.readouterr().out
    assert "resuming from the checkpoint of step 2" in said
    assert "records/mine" not in said
    shutil.copy(PHOTOS / "hat.jpg", "photo.jpg")
    predict.main(["--model=runs/first", "--views=1", "photo.jpg"])
    labels = capsys.readouterr().out
    assert labels.startswith("photo.jpg: ")
    assert {"hat", "pants", "shoes"} <= set(labels.split())


def test_photos_of_another_folder_of_the_same_name_are_refused(place, capsys):
    photos(place / "other/photos", "hat", "pants")
    said = error_of(capsys, "folder:other/photos", "other")
    assert "but the records in records/photos were made of folder:photos" in said
    assert not Path("runs/other").exists()


def test_a_workdir_of_other_photos_is_refused_before_they_are_prepared(place, capsys):
    photos(place / "else", "hat", "pants", "t-shirt")
    said = error_of(capsys, "folder:else", "mine")
    assert "runs/mine was trained on folder:photos; --config.data.source says folder:else" in said
    assert "and --config.init_from=runs/mine to start from its weights" in said
    assert not Path("records/else").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "folder:PATH",
            "config.data.source is missing: say where the images are, as --config.data",
        ),
        ("folder:none", "--source=folder:none: there is no folder none"),
        ("folder:one", "folder:one has one class; a network needs two or more to tell apart"),
    ],
)
def test_photos_that_cannot_be_trained_on_are_one_line(place, capsys, source, said):
    if not (place / "one").exists():
        photos(place / "one", "hat")
    assert said in error_of(capsys, source, "none")
    assert not Path("runs/none").exists()


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("folder:photos", "records/photos"),
        ("folder:/data/My photos/", "records/My-photos"),
        ("classes:a/b@5", "records/b-5"),
        ("tfds:cifar10@/data", "records/cifar10"),
        ("generated:256", "records/generated-256"),
        ("hf:/", "records/hf"),
    ],
)
def test_records_have_the_name_of_their_source(source, folder):
    assert records_folder(source) == folder


def test_the_number_of_classes_must_be_known_without_images(place, capsys):
    with pytest.raises(SystemExit):
        main.main(["--config=finetune", "--mode=describe"])
    assert "config.data.source is missing" in capsys.readouterr().err
    main.main(["--config=finetune", "--mode=describe", "--config.model.classes=1000"])
    assert "60,965,224" in capsys.readouterr().out


# --- trained weights ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["runs/mine", "mine.safetensors"])
def test_layers_that_fit_are_taken_and_the_last_is_new(place, capsys, model):
    """With rate 0 they stay as they were taken."""
    photos(place / f"photos of {model[-4:]}", *("hat", "dress", "shoes", "pants"))
    still = "policy.phases=({'epoch': 0, 'rate': 0.0, 'layers': {}, 'biases': {}, "
    still += "'lighting': True, 'images': 0},)"
    name = f"on-{model[-4:]}"
    run(f"folder:photos of {model[-4:]}", name, f"init_from={model}", still)
    assert f"weights from {model}: 7 of 8 layers, fc8 new\n" in capsys.readouterr().out
    assert config_of(name)["init_from"] == model
    theirs, ours = params_of("mine", "newest"), params_of(name, 2)
    for layer in LAYERS[:-1]:
        jax.tree.map(np.testing.assert_array_equal, ours[layer], theirs[layer])
    assert ours["fc8"]["bias"].shape == (4,)


@pytest.mark.slow
def test_the_last_layer_is_taken_for_the_same_classes_only(place, capsys):
    run("folder:photos", "again", "init_from=runs/mine")
    assert "weights from runs/mine: 8 of 8 layers\n" in capsys.readouterr().out
    photos(place / "three", "hat", "pants", "t-shirt")  # as many
    run("folder:three", "three", "init_from=runs/mine")
    assert "weights from runs/mine: 7 of 8 layers, fc8 new\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_resumed_run_does_not_take_them_again(place, capsys):
    shutil.copytree("runs/mine", "runs/model")
    run("folder:photos", "on", "init_from=runs/model")
    shutil.rmtree("runs/model")
    before = params_of("on", 2)
    capsys.readouterr()
    run("folder:photos", "on", "init_from=runs/model", "steps=3")
    said = capsys.readouterr().out
    assert "resuming from the checkpoint of step 2" in said
    assert "weights from" not in said
    leaves = (jax.tree.leaves(params) for params in (before, params_of("on", 3)))
    moved = max(np.abs(a - b).max() for a, b in zip(*leaves, strict=True))
    assert 0 < moved < 0.1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["init_from=nothing"], "nothing holds no run"),
        (["init_from=photo.txt"], "config.init_from=photo.txt: photo.txt cannot be read as safe"),
        (["init_from=odd.safetensors"], "it has no tensors like conv1.kernel (classic)"),
        (["init_from=runs/mine", "model.width=0.2"], "no layer there has the shape"),
        (["init_from=mine.safetensors", "model.width=0.2"], "give the same --config.model.width"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_and_leave_no_workdir(place, capsys, values, said):
    Path("photo.txt").write_text("no weights")
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, "odd.safetensors")
    assert said in error_of(capsys, "folder:photos", "unfit", *values)
    assert not Path("runs/unfit").exists()


@pytest.mark.parametrize("layout", ["classic", "torch", "caffe"])
def test_a_file_of_some_layers_in_any_layout(place, tmp_path, layout):
    """Its other tensors are left out; half precision becomes float32."""
    weights.export_weights(Path("runs/mine"), tmp_path / "all.safetensors", layout, "newest")
    tensors = safetensors.numpy.load_file(tmp_path / "all.safetensors")
    some = {name: array.astype(np.float16) for name, array in tensors.items() if "conv" in name}
    file = tmp_path / "some.safetensors"
    safetensors.numpy.save_file(some | {"mean": np.zeros((3, 4), np.float32)}, file)
    network = make_network(make_config("", model__width=0.1, model__classes=9))
    found = layers_that_fit(safetensors.numpy.load_file(file), {}, network)
    assert list(found) == list(LAYERS[:5])
    theirs = params_of("mine", "newest")
    for layer, params in found.items():
        for name, array in params.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, theirs[layer][name].astype(np.float16))
