"""Tables of scores: means over seeds, differences, and intervals that hold what they should."""

import json
import re

import numpy as np
import pytest

from alexnet_jax import compare
from alexnet_jax.figures.differences import draw_differences
from alexnet_jax.report import main
from alexnet_jax.runtime.errors import UserError
from tests.test_report import rows

RNG = np.random.default_rng(0)


def scored(folder, name, wrong, *, seed=0, against="", split="test", views=10, **values):
    """A file as `evaluate --json` writes it, of images some of which are wrong."""
    line = {
        "experiments": [name], "configs": [name], "steps": [9], "seeds": [seed], "records": "x",
        "against": against, "weights": "equal", "split": split, "views": views,
        "ranks": np.asarray(wrong, int).tolist(),
    }  # fmt: skip
    file = folder / f"{name}{seed}{split}{views}.json"
    file.write_text(json.dumps(line | values) + "\n")
    return file


def table(*files):
    first, *more = compare.score_tables(files).split("\n\n")
    return rows(first), rows(more[0]) if more else []


def test_errors_are_means_over_seeds_with_standard_errors(tmp_path):
    files = [scored(tmp_path, "a", np.arange(10) < n, seed=n) for n in (2, 4, 6)]
    ((row,), none) = table(*files)
    # 20, 40 and 60%: standard deviation 20, over the root of 3
    expected = {"experiment": "a", "n": "3", "seeds": "2, 4, 6", "test, 10 views": "40.00 ± 11.55"}
    assert row == expected
    assert none == []


def test_a_difference_is_paired_image_by_image(tmp_path):
    """Both err in half of the images. Where these are the same ones, the difference is sure."""
    half = np.arange(400) % 2
    whole = scored(tmp_path, "whole", half)
    same = scored(tmp_path, "same", half, against="whole")
    other = scored(tmp_path, "other", 1 - half, against="whole")
    _, differences = table(whole, same, other)
    found = {row["difference"]: row["test, 10 views"] for row in differences}
    assert found["same - whole"] == "+0.00 (+0.00 to +0.00)"
    low, high = map(float, found["other - whole"].removeprefix("+0.00 (")[:-1].split(" to "))
    # The mean of 400 values of +-100 points has a standard error of 5 points.
    np.testing.assert_allclose([low, high], [-9.8, 9.8], atol=0.7)


def test_the_interval_holds_the_true_difference_19_times_in_20(monkeypatch):
    """Of 200 pairs of networks that err in 30% and 25% of all possible images."""
    monkeypatch.setattr(compare, "RESAMPLES", 999)
    held = 0
    for _ in range(200):
        worse, better = RNG.random(341) < 0.30, RNG.random(341) < 0.25
        low, high = compare.interval(100.0 * worse - 100.0 * better)
        held += low <= 5 <= high
    assert 180 <= held <= 198


def test_the_spread_over_seeds_stands_beside_the_interval(tmp_path):
    files = [scored(tmp_path, "a", np.arange(10) < n, seed=n, against="b") for n in (2, 4)]
    files += [scored(tmp_path, "b", np.arange(10) < n, seed=n) for n in (1, 3)]
    _, (row,) = table(*files)
    # Standard errors of 10 points each
    assert row["test, 10 views"].startswith("+10.00 ± 14.14 (")


def test_ten_views_are_compared_with_one_of_the_same_networks(tmp_path):
    for seed in (0, 1):  # 10% and 30% by one view; 10 points less by ten, in both
        wrong = np.arange(10) < 1 + 2 * seed
        scored(tmp_path, "a", wrong, seed=seed, views=1)
        scored(tmp_path, "a", wrong & (np.arange(10) != 0), seed=seed)
    _, (row,) = table(*tmp_path.iterdir())
    assert row["difference"] == "a: several views - one view"
    assert row["test, 10 views"].startswith("-10.00 ± 0.00 (")


def test_an_average_is_compared_with_single_networks(tmp_path):
    one = scored(tmp_path, "a", np.arange(10) < 4)
    both = {"experiments": ["a", "a"], "configs": ["a", "a"], "steps": [9, 9], "seeds": [0, 1]}
    two = scored(tmp_path, "two", np.arange(10) < 3, **both)
    errors, (difference,) = table(one, two)
    assert [row["experiment"] for row in errors] == ["a", "a, 2 averaged"]
    assert errors[1]["seeds"] == "0+1"
    assert difference["difference"] == "a, 2 averaged - a"
    assert difference["test, 10 views"].startswith("-10.00 (")


def test_other_configs_steps_or_splits_share_no_cell(tmp_path):
    files = [
        scored(tmp_path, "a", [0, 1]),
        scored(tmp_path, "a", [0, 1], seed=1, configs=["b"]),
        scored(tmp_path, "a", [0, 1], seed=2, steps=[10]),
        scored(tmp_path, "a", [1, 1], seed=0, split="validation"),
    ]
    errors, _ = table(*files)
    assert [row["n"] for row in errors] == ["1", "1", "1"]
    assert (errors[0]["test, 10 views"], errors[0]["validation, 10 views"]) == ("50.00", "100.00")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"weights": "search"}, "was scored with --weights=search, on a part of the images"),
        ({"against": "b", "ranks": [1]}, "a and b were scored on different images"),
        ({"experiments": ["b"], "configs": ["b"]}, "has scores of b, seed 0, once more"),
        ({"seeds": 1}, "is no file of scores; write it with evaluate --json"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, values, said):
    files = [scored(tmp_path, "b", [0, 1]), scored(tmp_path, "a", [0, 1], **values)]
    with pytest.raises(SystemExit):
        main([f"--scores={','.join(map(str, files))}"])
    assert said in capsys.readouterr().err


def test_the_figure_shows_what_the_table_says(tmp_path):
    files = [scored(tmp_path, "whole", np.arange(100) < 20)]
    for name, wrong in (("worse", 50), ("better", 10)):
        files.append(scored(tmp_path, name, np.arange(100) < wrong, against="whole"))
    axes = draw_differences(files).axes[0]
    assert axes.get_xlabel() == "top-1 error minus that of whole, percentage points"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worse", "better"]
    (dots, _, (bars,)) = axes.containers[0]
    np.testing.assert_allclose(np.array(dots.get_xdata(), float), [30, -10])
    _, differences = table(*files)
    for row, bar in zip(differences, bars.get_segments(), strict=True):
        low, high = re.search(r"\((\S+) to (\S+)\)", row["test, 10 views"]).groups()
        np.testing.assert_allclose(bar[:, 0], [float(low), float(high)], atol=0.006)


def test_a_figure_of_what_is_not_compared_is_refused(tmp_path):
    with pytest.raises(UserError, match="no two of these are compared; add the scores of what"):
        draw_differences([scored(tmp_path, "a", np.arange(10) < 2, against="b")])


def test_kinds_of_one_name_are_told_apart(tmp_path):
    """Two seeds whose best checkpoints are of other steps are not one network with two seeds."""
    files = [scored(tmp_path, "b", np.arange(10) < 1)]
    for seed, wrong in ((0, 3), (1, 8)):
        step = {"steps": [seed + 9]}
        files.append(scored(tmp_path, "a", np.arange(10) < wrong, seed=seed, against="b", **step))
    errors, differences = table(*files)
    names = ["a (step 9, config a, of x)", "a (step 10, config a, of x)"]
    assert [row["experiment"] for row in errors] == ["b", *names]
    assert [row["difference"] for row in differences] == [f"{name} - b" for name in names]
    found = [row["test, 10 views"].split()[0] for row in differences]
    assert found == ["+20.00", "+70.00"]


def test_networks_scored_on_other_records_are_not_compared(tmp_path):
    a = scored(tmp_path, "a", np.arange(10) < 3, against="b")
    b = scored(tmp_path, "b", np.arange(10) < 1, records="y")
    with pytest.raises(UserError, match="a and b were scored on different images"):
        table(a, b)
    # Beside one on the same records, only that one is compared.
    same = scored(tmp_path, "b", np.arange(10) < 2, seed=1)
    _, (row,) = table(a, b, same)
    assert row["difference"].startswith("a - b (")
    assert row["test, 10 views"].startswith("+10.00")


@pytest.mark.parametrize(("seed", "views"), [(1, 10), (0, 1)])
def test_scores_of_unequal_numbers_of_images_are_refused(tmp_path, seed, views):
    """Of two seeds, or of one network by one and by ten views."""
    files = [scored(tmp_path, "a", [0, 1, 1])]
    files.append(scored(tmp_path, "a", [0, 1], seed=seed, views=views))
    with pytest.raises(UserError, match="scores of a are of unequal numbers of images"):
        compare.score_tables(files)


def test_no_images_are_no_scores(tmp_path):
    with pytest.raises(UserError, match="is no file of scores"):
        compare.score_tables([scored(tmp_path, "a", [])])


def test_a_pair_without_a_common_way_has_no_line_in_the_figure(tmp_path):
    whole = scored(tmp_path, "whole", [0, 1, 1])
    other = scored(tmp_path, "other", [0, 1, 1], against="whole", split="validation")
    with pytest.raises(UserError, match="no two of these are compared"):
        draw_differences([whole, other])


def test_views_are_compared_of_the_networks_that_have_both(tmp_path):
    """Seed 1 has both; seed 0 has ten views alone, and seed 2 one view alone."""
    for seed, wrong in ((0, 9), (1, 2)):
        scored(tmp_path, "a", np.arange(10) < wrong, seed=seed)
    for seed, wrong in ((1, 5), (2, 0)):
        scored(tmp_path, "a", np.arange(10) < wrong, seed=seed, views=1)
    _, (row,) = table(*tmp_path.iterdir())
    assert row["test, 10 views"].startswith("-30.00 (")


def test_a_file_with_several_networks_is_no_file_of_scores(tmp_path):
    files = [scored(tmp_path, name, np.arange(10) < 3) for name in "ab"]
    both = tmp_path / "both.json"
    both.write_text("".join(file.read_text() for file in files))
    with pytest.raises(UserError, match=r"both\.json is no file of scores"):
        table(both)
