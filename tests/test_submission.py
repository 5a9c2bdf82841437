"""predict --submission: its lines against the scores of the split, resumed, and bad input."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from alexnet_jax import predict, submission
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import trained
from alexnet_jax.training.setup import make_setup
from tests.conftest import make_config
from tests.data.conftest import tar_of

COUNT = 40


@pytest.fixture(autouse=True)
def commands_open_the_network_that_is_there(monkeypatch, net):
    monkeypatch.setattr(predict.host, "configure_jax", lambda devices: None)
    monkeypatch.setattr(predict.trained, "load", lambda *_, **__: net)


@pytest.fixture(scope="module")
def net(records):
    """With initial weights."""
    setup = make_setup(make_config(records, devices=1))
    return trained.Net(Path("run"), 0, setup, setup.network.init(0))


@pytest.fixture(scope="module")
def images(net, tmp_path_factory):
    """The first 40 validation images as PNG files, whose names do not sort by number."""
    folder, split = tmp_path_factory.mktemp("images"), net.setup.validation
    image = np.empty((split.size, split.size, 3), np.uint8)
    for index in range(COUNT):
        split.read(index, image)
        cv2.imwrite(str(folder / f"test_{COUNT - index:05d}.png"), image[..., ::-1])
    return folder


def submit(net, images: Path, file: Path, *more: str) -> list[str]:
    predict.main([f"--workdir={net.folder}", f"--submission={file}", *more, str(images)])
    return file.read_text().splitlines()


@pytest.mark.parametrize("views", [1, 10])
def test_lines_are_the_five_best_labels_in_the_order_of_the_names(net, images, tmp_path, views):
    lines = submit(net, images, tmp_path / "lines.txt", f"--views={views}")
    log = net.setup.evaluator.log_probs(net.params, net.setup.validation, views=views, what="all")
    wanted = np.argsort(-log[:COUNT][::-1], axis=1)[:, :5] + 1
    found = np.array([line.split() for line in lines], int)
    assert found.shape == (COUNT, 5)
    assert np.mean((found == wanted).all(axis=1)) > 0.95  # but for ties within rounding
    assert not list(tmp_path.glob("*.part"))


def test_a_tar_gives_the_same_as_its_folder(net, images, tmp_path):
    files = {f"test/{one.name}": one.read_bytes() for one in images.iterdir()}
    (tmp_path / "test.tar").write_bytes(tar_of(files))
    lines = submit(net, images, tmp_path / "a.txt", "--views=1")
    assert submit(net, tmp_path / "test.tar", tmp_path / "b.txt", "--views=1") == lines


def test_an_interrupted_submission_goes_on_after_its_last_whole_line(
    net, images, tmp_path, monkeypatch, capsys
):
    whole, file = submit(net, images, tmp_path / "a.txt", "--views=1"), tmp_path / "b.txt"
    look, seen = type(net.setup.evaluator).log_probs_by_batch, []

    def stops(self, *arguments, **options):
        for number, batch in enumerate(look(self, *arguments, **options)):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(type(net.setup.evaluator), "log_probs_by_batch", stops)
    with pytest.raises(SystemExit):
        submit(net, images, file, "--views=1")
    part = tmp_path / "b.txt.part"
    assert part.read_text().splitlines()[1:] == whole[:16]
    with part.open("a") as torn:
        torn.write(whole[16][:3])  # a write that was cut off
    assert not file.exists()

    def counts(self, params, split, **options):
        seen.append(len(split))
        return look(self, params, split, **options)

    monkeypatch.setattr(type(net.setup.evaluator), "log_probs_by_batch", counts)
    assert submit(net, images, file, "--views=1") == whole
    assert seen == [COUNT - 16]
    assert "resuming after 16 of 40 images" in capsys.readouterr().out


def test_lines_of_other_images_are_not_continued(net, images, tmp_path):
    part = tmp_path / "a.txt.part"
    part.write_text('{"workdir": "elsewhere"}\n1 2 3 4 5\n')
    with pytest.raises(UserError, match=r"a\.txt\.part has lines of other images, or of another"):
        submission.write_submission(
            net, predict.unlabelled(images), list(range(10)), tmp_path / "a.txt"
        )
    assert "1 2 3 4 5" in part.read_text()


@pytest.mark.parametrize(
    "case",
    [
        (["{images}", "{images}"], "--submission takes one folder or tar"),
        (["{images}", "--json={tmp}/labels.json"], "--submission takes one folder or tar"),
        (["{tmp}/none"], "none is not there; give a folder or a tar of images"),
        (["{tmp}/empty"], "has no images"),
        (["{tmp}/bad"], "bad/a.png: is not an image (JPEG, PNG, ...); fix it, or remove it"),
        (["{tmp}/done.txt"], "done.txt is not a tar, or a damaged one; give a folder or a tar"),
        (["{images}", "--devkit={tmp}"], "meta.mat; give the unpacked devkit as --devkit"),
        (["{images}", "--submission={tmp}/done.txt"], "done.txt is there already; remove it"),
    ],
)
def test_a_wrong_command_is_one_line(net, images, tmp_path, capsys, case):
    options, said = case
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    (tmp_path / "done.txt").write_text("1 2 3 4 5\n")
    given = [option.format(images=images, tmp=tmp_path) for option in options]
    with pytest.raises(SystemExit) as stopped:
        predict.main([f"--workdir={net.folder}", f"--submission={tmp_path}/new.txt", *given])
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "new.txt").exists()


def devkit(folder: Path, year: int, wnids: list[str]) -> Path:
    """With a meta.mat whose synsets have the fields of the real one."""
    kinds = [(f"ILSVRC{year}_ID", object), ("WNID", object), ("words", object)]
    synsets = np.empty((len(wnids), 1), kinds)
    for number, wnid in enumerate(wnids):
        synsets[number, 0] = (np.uint16(number + 1), wnid, f"word {number}")
    (folder / "data").mkdir()
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    (folder / "data" / "meta.mat").write_bytes(buffer.getvalue())
    return folder


@pytest.mark.parametrize("year", [2010, 2012])
def test_the_devkit_numbers_the_classes_in_an_order_of_its_own(tmp_path, year):
    kit = devkit(tmp_path, year, ["n02119789", "n01440764", "n02100735"])
    assert submission.class_ids(["n01440764", "n02119789"], kit) == [2, 1]
    with pytest.raises(UserError, match=r"meta.mat has no class n00000001"):
        submission.class_ids(["n00000001"], kit)


def test_classes_that_are_wnids_need_a_devkit(tmp_path):
    with pytest.raises(UserError, match="--devkit is missing: the classes are WNIDs"):
        submission.class_ids(["n01440764", "n02119789"], None)
    assert submission.class_ids(["cat", "dog"], None) == [1, 2]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.mat").write_text("no MATLAB file")
    with pytest.raises(UserError, match=r"meta.mat is not the meta.mat of an ILSVRC devkit"):
        submission.class_ids(["n01440764"], tmp_path)
