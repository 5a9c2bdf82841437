"""What the figures show, by hand; that they are drawn; and what they refuse."""

import json
import re

import cv2
import jax
import numpy as np
import pytest

from alexnet_jax.figures import curves, figure1, kernels, towers
from alexnet_jax.figures.__main__ import FIGURES, main
from alexnet_jax.figures.figure4 import draw_neighbours
from alexnet_jax.figures.layer_bytes import draw_layer_bytes
from alexnet_jax.prepare import prepare
from alexnet_jax.runtime import host, workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.train import fit
from alexnet_jax.training import trained
from tests.conftest import make_config
from tests.test_report import rows

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def in_a_process_that_has_begun(monkeypatch):
    monkeypatch.setattr(host, "configure_jax", lambda devices: None)


def write_run(folder, activation, lines):
    """A workdir as far as Fig. 1 looks at it; 100 steps of 4 images, 399 images an epoch."""
    from alexnet_jax import config

    folder.mkdir()
    values = config.as_dict(make_config(model__activation=activation))
    (folder / "config.json").write_text(json.dumps(values))
    text = "".join(
        json.dumps({"step": s, "epoch": s * 4 / 399, "train/top1_error": e}) + "\n"
        for s, e in lines
    )
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_an_epochs_training_error_is_the_mean_over_its_steps(tmp_path):
    # The second epoch ends with step 200, at 2.005; the third is not over.
    lines = [(50, 0.8), (100, 0.6), (180, 0.5), (200, 0.1), (250, 0.3)]
    epochs, errors = figure1.training_errors(write_run(tmp_path / "a", "relu", lines))
    np.testing.assert_array_equal(epochs, [1, 2])
    np.testing.assert_allclose(errors, [0.7, (80 * 0.5 + 20 * 0.1) / 100])


def test_the_goal_is_reached_between_two_epochs():
    epochs, errors = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.3, 0.2])
    assert figure1.epochs_to(0.25, epochs, errors) == pytest.approx(2.5)
    assert figure1.epochs_to(0.5, epochs, errors) == 1
    assert figure1.epochs_to(0.1, epochs, errors) is None


def test_figure_1_says_when_each_reached_the_goal(tmp_path):
    relu = write_run(tmp_path / "relu", "relu", [(100, 0.3), (200, 0.2)])
    tanh = write_run(tmp_path / "tanh", "tanh", [(100 * n, 0.7 - 0.05 * n) for n in range(1, 12)])
    figure = figure1.draw_figure1([relu, tanh])
    title = figure.axes[0].get_title()
    assert title == "epochs to 25% training error\nrelu 1.5, tanh 9.0\ntanh 6.0 times as many"
    never = write_run(tmp_path / "never", "tanh", [(100, 0.3)])
    title = figure1.draw_figure1([relu, never]).axes[0].get_title()
    assert title == "epochs to 25% training error\nrelu 1.5, tanh not reached"


def test_seeds_of_an_activation_are_a_band_and_a_spread(tmp_path):
    """They reach 25% after 1.5 and 2.5 epochs, and after 9 and 10."""
    fast = write_run(tmp_path / "a", "relu", [(100, 0.3), (200, 0.2), (300, 0.2)])
    later = write_run(tmp_path / "b", "relu", [(100, 0.5), (200, 0.3), (300, 0.2), (400, 0.1)])
    slow = [
        write_run(tmp_path / name, "tanh", [(100 * n, top - 0.05 * n) for n in range(1, 12)])
        for name, top in (("c", 0.7), ("d", 0.75))
    ]
    (axes,) = figure1.draw_figure1([fast, later, *slow]).axes
    assert axes.get_title() == (
        "epochs to 25% training error\nrelu 2.0 ± 0.5 (n=2), tanh 9.5 ± 0.5 (n=2)\n"
        "tanh 4.8 times as many (3.6 to 6.7)"
    )
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.4, 0.25, 0.2])
    band = axes.collections[0].get_paths()[0].vertices
    assert {0.3, 0.5, 0.2} <= {round(y, 6) for y in band[:, 1]}
    assert band[:, 0].max() == 3  # the epochs that both have
    never = write_run(tmp_path / "never", "tanh", [(100, 0.3)])
    title = figure1.draw_figure1([fast, slow[0], never]).axes[0].get_title()
    assert title == "epochs to 25% training error\nrelu 1.5, tanh not reached by 1 of 2"


def test_figure_1_averages_seeds_of_one_network_only(tmp_path):
    """Two seeds, another batch, another experiment, and other records: four lines."""
    runs = [write_run(tmp_path / name, "relu", [(100, 0.9), (200, 0.2)]) for name in "abcde"]
    for folder, change in ((runs[1], {"seed": 1}), (runs[2], {"batch": 8})):
        values = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(values))
    values = json.loads((runs[3] / "config.json").read_text())
    values["experiment"] |= {"name": "other"}
    (runs[3] / "config.json").write_text(json.dumps(values))
    machine = {"devices": 1, "kind": "cpu", "cpu": "Z80", "cores": 4}
    workdir.record_start(runs[4], 0, "other", machine)
    (axes,) = figure1.draw_figure1(runs).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["relu (a), 2 seeds", "relu (c)", "relu (d)", "relu (e)"]
    assert len({line.get_color() for line in axes.lines[:4]}) == 4
    first = "relu (a) 1.9 ± 0.0 (n=2)\nrelu (c) 1.9\nrelu (d) 1.9\nrelu (e) 1.9"
    assert axes.get_title() == f"epochs to 25% training error\n{first}"
    assert axes.get_ylim()[1] > 0.9


def test_each_of_many_runs_has_a_colour_and_a_name_of_its_own(tmp_path):
    """Twelve runs in folders of the same names."""
    runs = []
    for name in "abcdefghijkl":
        (tmp_path / name).mkdir()
        runs.append(write_run(tmp_path / name / "seed0", "relu", [(100, 0.3), (200, 0.2)]))
    lines = curves.draw_curves(runs).axes[1].lines
    assert len({line.get_color() for line in lines}) == 12
    assert [line.get_label() for line in lines] == [f"{run} training" for run in runs]


def test_a_run_without_a_whole_epoch_is_refused(tmp_path):
    folder = write_run(tmp_path / "a", "relu", [(50, 0.8)])
    with pytest.raises(UserError, match="has not finished an epoch yet"):
        figure1.training_errors(folder)


@pytest.mark.parametrize("count", [1, 2])
def test_each_kernel_has_its_place_in_the_mosaic(count):
    weights = np.zeros((3, 3, 3, 8), np.float32)
    for number in range(8):
        weights[0, 0, 0, number] = number + 1  # red in the corner: the largest, so 1
        weights[2, 2, 2, number] = -(number + 1) / 2
    mosaic = kernels.kernel_mosaic(weights, count, columns=2)
    rows = [1, 5, 9, 13] if count == 1 else [1, 5, 13, 17]
    for number in range(8):
        y, x = rows[number // 2], 1 + 4 * (number % 2)
        np.testing.assert_allclose(mosaic[y, x], [1, 0.5, 0.5])
        np.testing.assert_allclose(mosaic[y + 2, x + 2], [0.5, 0.5, 0.25])
        np.testing.assert_allclose(mosaic[y - 1, x : x + 3], 1)  # the gap
    assert mosaic.shape == (rows[-1] + 4, 9, 3)


def test_a_kernel_of_zeros_is_grey():
    assert (kernels.kernel_mosaic(np.zeros((3, 3, 3, 1), np.float32), 1)[1:4, 1:4] == 0.5).all()


def test_colour_is_what_the_three_colours_do_not_share():
    grey = np.ones((4, 4, 3)) * np.arange(16).reshape(4, 4, 1)
    red_against_green = np.zeros((4, 4, 3))
    red_against_green[..., 0], red_against_green[..., 1] = 1, -1
    red = np.zeros((4, 4, 3))
    red[..., 0] = 1  # (2/3)^2 + 2 (1/3)^2 = 2/3 of its energy
    found = towers.colourfulness(np.stack([grey, red_against_green, red], axis=-1))
    np.testing.assert_allclose(found, [0, 1, 2 / 3], atol=1e-12)


def test_a_grating_is_oriented_and_a_round_spot_is_not():
    y, x = np.mgrid[:16, :16]
    upright = np.cos(2 * np.pi * 3 * x / 16)
    aslant = np.cos(2 * np.pi * (3 * x + 3 * y) / 16)
    spot = np.exp(-((x - 7.5) ** 2 + (y - 7.5) ** 2) / 8)
    shown = np.stack([upright, aslant, spot, 0 * x], axis=-1)
    found = towers.orientation_strength(np.repeat(shown[:, :, None], 3, axis=2))
    np.testing.assert_allclose(found, [1, 1, 0, 0], atol=1e-9)


def measures(name, crossing, apart):
    """A run of two towers with 12 kernels each, whose colours differ by `apart`."""
    rng = np.random.default_rng(len(name))
    values = [rng.uniform(0.2, 0.4, 12) for _ in range(4)]
    colour = [values[0], values[1] + apart]
    return towers.Measures(name, f"cross {crossing}", 9, crossing, colour, values[2:])


def test_the_towers_that_differ_are_found_and_no_others():
    """Runs that meet have the same colours in both towers, those that do not differ by 0.3."""
    made = [measures(f"meet{n}" + "x" * n, True, 0) for n in range(5)]
    made += [measures(f"apart{n}" + "x" * n, False, 0.3) for n in range(5)]
    table, lines = towers.towers_table(made).split("\n\n")
    found = rows(table)
    assert [row["meet at layer 3"] for row in found] == ["yes"] * 5 + ["no"] * 5
    for row, one in zip(found, made, strict=True):
        a, b = one.colour
        assert (row["colour A"], row["colour B"]) == (f"{a.mean():.3f}", f"{b.mean():.3f}")
        # Of 9999 random deals none is as far apart: 1 in 10,000.
        assert (row["p of colour"] == "0.0001") == (not one.crossing)
    told = dict(line.split(": ", 1) for line in lines.splitlines())
    assert told["colour, not meeting at layer 3"].endswith("n=5, p<0.0001")
    assert float(told["orientation, not meeting at layer 3"].split("p=")[1]) > 0.02
    # All 5 are further apart than the other 5: two of the 252 deals.
    between = "|A - B| of the runs that meet and of those that do not"
    assert f"colour: {between}: p=0.0079" in lines

    made[0] = made[0]._replace(experiment="tanh")
    lines = towers.towers_table(made).split("\n\n")[1]
    told = dict(line.split(": ", 1) for line in lines.splitlines())
    unlike = "no mean of unlike runs (cross True, tanh)"
    assert told["colour, meeting at layer 3"] == told["orientation, meeting at layer 3"] == unlike
    assert told["colour, not meeting at layer 3"].endswith("n=5, p<0.0001")
    assert between not in str(told)


def test_a_permutation_test_counts_all_deals():
    """Of the 20 ways to deal 6 numbers to two threes, 2 are as far apart as here."""
    a, b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    assert towers.permutation_p(a, b) == pytest.approx(2 / 20)
    # Of the 10 ways to deal 5 numbers to two and three, one is: by the other end it is less far.
    a, b = np.array([10.0, 11.0]), np.array([1.0, 2.0, 3.0])
    assert towers.permutation_p(a, b) == pytest.approx(1 / 10)


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "run"
    short = {"steps": 10, "batch": 32, "evaluate__batch": 32, "log__every": 2}
    fit(make_config(records, evaluate__ten_views_at_end=False, **short), folder)
    return folder


@pytest.mark.parametrize("name", [*FIGURES, "towers"])
def test_the_command_draws(run, tmp_path, capsys, name):
    out = tmp_path / "figure.png"
    main([name, f"--workdirs={run}", f"--out={out}"])
    assert ("meet at layer 3" in capsys.readouterr().out) == (name == "towers")
    image = cv2.imread(str(out))
    assert min(image.shape[:2]) > 100
    assert image.std() > 5


def test_neighbours_among_other_images_by_another_layer(run, records, tmp_path, capsys):
    net = trained.load(run)
    net.save_pretrained(tmp_path / "net")
    line = ["neighbours", f"--model={tmp_path / 'net'}", f"--records={records}", "--layer=pool5"]
    main([*line, f"--out={tmp_path / 'figure.png'}"])
    other = draw_neighbours([tmp_path / "net"], str(records), "pool5")
    fc7 = draw_neighbours([run])
    distances = [[axes.get_title() for axes in figure.axes][1:] for figure in (other, fc7)]
    assert distances[0] != distances[1]
    prepare("generated:20", tmp_path / "small", size=32)
    with pytest.raises(UserError, match=r"has images of 32 pixels, .* --size=72$"):
        draw_neighbours([tmp_path / "net"], str(tmp_path / "small"))


def test_the_bars_of_layer_bytes_are_the_sums_of_the_results(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for scale, file in enumerate(files, 1):
        layers = [
            {"layer": "conv1", "pass": "forward", "megabytes": 1500.0 * scale},
            {"layer": "conv1", "pass": "backward", "megabytes": 500.0 * scale},
            {"layer": "fc6", "pass": "backward", "megabytes": 250.0 * scale},
        ]
        row = {"batch": 8, "dtype": "float32", "devices": 1, "target": "h100", "gigabytes": 2.25}
        file.write_text(json.dumps({"rows": [row | {"layers": layers}]}))
    (axes,) = draw_layer_bytes(files).axes
    tops = {}
    for bar in axes.patches:
        tops[bar.get_x()] = max(tops.get(bar.get_x(), 0), bar.get_y() + bar.get_height())
    np.testing.assert_allclose([tops[x] for x in sorted(tops)], [2, 4, 0.25, 0.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "fc6"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("{}", "is no result of a compiled step"),
        ("[", "is no result of a compiled step"),
    ],
)
def test_a_file_that_is_no_result_is_one_line(tmp_path, capsys, text, said):
    file = tmp_path / "result.json"
    if text:
        file.write_text(text)
    with pytest.raises(SystemExit):
        main(["layer_bytes", f"--results={file}", f"--out={tmp_path}/a.png"])
    assert said in capsys.readouterr().err


def test_the_kernels_are_the_checkpoints(run):
    figure = kernels.draw_kernels([run])
    net = trained.open_trained(run)
    weights = np.asarray(jax.device_get(net.params["conv1"]["kernel"]))
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown, kernels.kernel_mosaic(weights, 2), atol=1e-6)
    assert "tower A above, tower B below" in figure.axes[0].get_title()


def test_what_is_kept_of_a_run_gives_the_same_figures(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    kernels.keep_kernels(run, tmp_path)
    ours, theirs = kernels.first_layer(tmp_path), kernels.first_layer(run)
    np.testing.assert_array_equal(ours.kernels, theirs.kernels)
    assert (ours.step, ours.config.model) == (theirs.step, theirs.config.model)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("kernels x.png", "kernels shows one run"),
        ("curves x.unknown", "--out=.*x.unknown: end the name with one of"),
        ("curves x.png --workdirs=a,b,./a", "--workdirs names a twice; it would count as two"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, tmp_path, capsys, asked, said):
    name, out, *more = asked.split()
    with pytest.raises(SystemExit):
        main([name, f"--workdirs={run},{run.parent}", f"--out={tmp_path / out}", *more])
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert re.search(said, error)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kernels --model=tiny --layer=fc7", "--layer is for neighbours, not for kernels"),
        ("kernels --model=tiny --scores=a", "--scores is for differences, not for kernels"),
        ("kernels --model=tiny --config=tiny", "--config is for figure2, not for kernels"),
        ("differences --results=a --scores=a", "--results is for layer_bytes, not for differences"),
        ("differences --model=tiny --scores=a", "--workdirs and --model are not for differences"),
        ("differences --scores=,", "--scores is missing: give it, as --scores=a.json,b.json"),
        (
            "layer_bytes --results=,",
            "--results is missing: give it, as --results=b.json,a.json",
        ),
    ],
)
def test_an_option_that_a_figure_would_not_heed_is_refused(line, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*line.split(), f"--out={tmp_path / 'a.png'}"])
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_network_without_towers_and_a_damaged_file_of_kernels_are_one_line(tmp_path, capsys):
    main(["towers", "--model=cifar10_18", f"--out={tmp_path / 'a.png'}"])
    assert "none of these networks has two towers" in capsys.readouterr().out
    (tmp_path / "kernels.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"kernels\.npz is damaged"):
        kernels.first_layer(tmp_path)


def test_a_figure_of_a_run_says_that_a_folder_to_share_is_none(run, tmp_path, capsys):
    trained.load(run).save_pretrained(tmp_path / "net")
    with pytest.raises(SystemExit):
        main(["subnetworks", f"--model={tmp_path / 'net'}", f"--out={tmp_path / 'a.png'}"])
    assert "net is a folder to share a network, and not a run's" in capsys.readouterr().err
