"""report: means, standard errors and differences, compared with values by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from alexnet_jax import config
from alexnet_jax.configs import cifar10
from alexnet_jax.report import main, planned_in, report
from alexnet_jax.runtime import workdir
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.metrics import FILE
from tests.conftest import make_config

MACHINE = {"devices": 2, "kind": "cpu", "cpu": "Z80", "cores": 4, "jax": "0.10"}


def finished(
    folder: Path, top1: float, *, name: str = "a", records: str = "x", epoch: float = 6, **values
) -> Path:
    """A workdir whose last line of metrics has these errors."""
    about = {"name": name, "paper": "40.7 / 18.2", "log": "", "against": "whole"}
    workdir.claim(folder, make_config(experiment=about, **values))
    scores = {"val/top1_error": top1 + 0.1, "val/top5_error": 0.2}
    ten = {"val_ten_views/top1_error": top1, "val_ten_views/top5_error": 0.1}
    line = {"step": 96, "epoch": epoch} | scores | (ten if epoch == 6 else {})
    (folder / FILE).write_text(json.dumps(line) + "\n")
    workdir.record_start(folder, 0, records, MACHINE)
    return folder


def rows(table: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(
    ("classes", "shown"), [(5, "42.00 ± 2.00"), (6, "42.00 ± 2.00 / 10.00 ± 0.00")]
)
def test_of_five_classes_there_is_no_top5_error(tmp_path, classes, shown):
    values = {"model__classes": classes}
    runs = [finished(tmp_path / str(i), e, seed=i, **values) for i, e in enumerate((0.4, 0.44))]
    (row,) = rows(report(runs))
    assert row["ours, ten views"] == shown


def test_seeds_share_a_row_with_mean_and_standard_error(tmp_path):
    runs = [finished(tmp_path / str(seed), e, seed=seed) for seed, e in enumerate((0.4, 0.44))]
    (row,) = rows(report(runs))
    assert row["ours, ten views"] == "42.00 ± 2.00 / 10.00 ± 0.00"
    assert row["ours, centre crop"] == "52.00 ± 2.00 / 20.00 ± 0.00"
    assert row["paper"] == "40.7 / 18.2"
    assert (row["n"], row["seeds"]) == ("2", "0, 1")
    assert row["trained"] == "6 epochs (96 steps of 16)"
    assert row["on"] == "2 CPU devices, 4 cores of Z80"


def test_runs_of_another_length_or_unfinished_ones_do_not_enter_a_mean(tmp_path):
    runs = [
        finished(tmp_path / "0", 0.4),
        finished(tmp_path / "1", 0.5, seed=1, epochs=5),
        finished(tmp_path / "2", 0.6, seed=2, epoch=2),
    ]
    assert [row["seeds"] for row in rows(report(runs))] == ["0", "1", "2"]


def test_the_difference_is_to_the_runs_on_the_same_records_that_are_named(tmp_path):
    runs = [
        finished(tmp_path / "a", 0.45),
        finished(tmp_path / "whole", 0.42, name="whole"),
        finished(tmp_path / "elsewhere", 0.1, name="whole", records="y"),
    ]
    found = [row["compared"] for row in rows(report(runs))]
    assert found == ["+3.00 / +0.00 to whole", "+0.00 / +0.00 to whole", "+0.00 / +0.00 to whole"]


def test_of_several_such_runs_the_most_similar_is_compared_with(tmp_path):
    runs = [
        finished(tmp_path / "a", 0.5, dtype="bfloat16"),
        finished(tmp_path / "other", 0.2, name="whole"),
        finished(tmp_path / "alike", 0.4, name="whole", dtype="bfloat16"),
    ]
    assert rows(report(runs))[0]["compared"] == "+10.00 / +0.00 to whole"


def test_unfinished_runs_are_not_compared(tmp_path):
    """Neither with others, nor others with them."""
    runs = [
        finished(tmp_path / "a", 0.45),
        finished(tmp_path / "begun", 0.7, epoch=2, seed=1),
        finished(tmp_path / "whole_begun", 0.8, epoch=2, name="whole"),
    ]
    assert [row["compared"] for row in rows(report(runs))] == ["", "", ""]
    runs.append(finished(tmp_path / "whole", 0.42, name="whole", seed=1, batch=8))
    assert [row["compared"] for row in rows(report(runs))][:2] == ["+3.00 / +0.00 to whole", ""]


def test_runs_that_are_not_over_share_no_row(tmp_path):
    """One has done two epochs of six, the other five."""
    runs = [finished(tmp_path / str(epoch), 0.4, epoch=epoch, steps=0) for epoch in (2, 5)]
    lines = (tmp_path / "5" / FILE).read_text().replace('"step": 96', '"step": 80')
    (tmp_path / "5" / FILE).write_text(lines)
    assert [row["n"] for row in rows(report(runs))] == ["1", "1"]


def test_a_run_that_was_made_longer_is_not_over(tmp_path):
    """It has ten views of its first end, but none of now."""
    folder = finished(tmp_path / "a", 0.4, epochs=12)
    later = {"step": 112, "epoch": 7, "val/top1_error": 0.45, "val/top5_error": 0.2}
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(later) + "\n")
    (row,) = rows(report([folder]))
    assert row["ours, ten views"] == "not run"
    assert row["ours, centre crop"] == "45.00 / 20.00"
    assert row["trained"].startswith("7 epochs of 12, unfinished")


def test_runs_on_another_split_are_not_compared_and_share_no_row(tmp_path):
    runs = [
        finished(tmp_path / "a", 0.45),
        finished(tmp_path / "b", 0.44, seed=1, data__validation="test"),
        finished(tmp_path / "whole", 0.42, name="whole", data__validation="test"),
    ]
    found = [row["compared"] for row in rows(report(runs))]
    assert found == ["", "+2.00 / +0.00 to whole", "+0.00 / +0.00 to whole"]


def test_a_run_on_several_records_is_a_kind_of_its_own(tmp_path):
    runs = [finished(tmp_path / name, 0.4, seed=i, records=name) for i, name in enumerate("yx")]
    workdir.record_start(runs[0], 3, "x", MACHINE)  # resumed on those of the other
    assert [row["n"] for row in rows(report(runs))] == ["1", "1"]


def test_of_runs_that_differ_in_length_only_the_equal_one_is_compared_with(tmp_path):
    """Whatever their order is."""
    whole = [
        finished(tmp_path / "short", 0.3, name="whole", epochs=5),
        finished(tmp_path / "equal", 0.4, name="whole", epochs=6),
    ]
    for order in (whole, whole[::-1]):
        found = rows(report([finished(tmp_path / "a", 0.45, epochs=6), *order]))
        assert found[0]["compared"] == "+5.00 / +0.00 to whole"


def test_a_mean_says_of_how_many_it_is_and_a_difference_of_which_views(tmp_path):
    """One of two seeds has no ten views, and neither has what both are compared with."""
    runs = [finished(tmp_path / str(seed), 0.4, seed=seed) for seed in range(2)]
    runs.append(finished(tmp_path / "whole", 0.3, name="whole"))
    for folder in (runs[1], runs[2]):
        text = (folder / FILE).read_text().replace("val_ten_views", "other")
        (folder / FILE).write_text(text)
    first, _ = rows(report(runs))
    assert first["ours, ten views"] == "40.00 / 10.00 (n=1)"
    assert first["ours, centre crop"] == "50.00 ± 0.00 / 20.00 ± 0.00"
    assert first["compared"] == "+10.00 / +0.00 to whole, centre crop"


def test_runs_with_one_name_show_the_values_in_which_they_differ(tmp_path):
    runs = [finished(tmp_path / "a", 0.4), finished(tmp_path / "b", 0.4, model__dropout=0.0)]
    names = [row["experiment"] for row in rows(report(runs))]
    assert names == ["a, model.dropout=0.5", "a, model.dropout=0.0"]


def test_an_unfinished_run_is_marked(tmp_path):
    (row,) = rows(report([finished(tmp_path / "a", 0.4, epoch=2)]))
    assert row["trained"] == "2 epochs of 6, unfinished (96 steps of 16)"
    assert row["ours, ten views"] == "not run"
    assert row["ours, centre crop"] == "50.00 / 20.00"


def test_a_planned_run_that_was_not_run_has_a_row(tmp_path):
    planned = planned_in("configs/cifar10.py")
    assert len(planned) == 10
    run = finished(tmp_path / "a", 0.4, name="cifar10_18")
    table = rows(report([run], planned))
    assert len(table) == 10  # a config that was run has no second row
    told = {row["experiment"]: row for row in table}
    assert told["cifar10_11"]["2012 log"] == "11"
    assert told["cifar10_11"]["ours, ten views"] == "not run"


def test_one_config_of_a_file_or_a_file_of_one():
    assert [one.name for one in planned_in("configs/ablations.py:no_lrn")] == ["no_lrn"]
    assert [one.name for one in planned_in("configs/alexnet.py")] == ["alexnet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scores=,"], "--scores is missing: give it, as --scores=a.json,b.json"),
        (["--workdirs=,"], "--workdirs is missing"),
        (["--workdirs={run}/none"], "holds no run"),
        (
            ["--workdirs={run}", "--configs=none.py"],
            "there is no config none.py; give a file",
        ),
        (["--workdirs={run}", "--configs=configs/cifar10.py:9"], "has no net '9'"),
        (["--workdirs={run}", "--out=none/table.md"], "there is no folder none"),
        (["--workdirs={run}", "--out={run}"], "is a folder"),
    ],
)
def test_a_wrong_command_gets_one_line(tmp_path, capsys, options, said):
    run = finished(tmp_path / "a", 0.4)
    with pytest.raises(SystemExit) as stopped:
        main([option.format(run=run) for option in options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_table_goes_into_a_file(tmp_path, capsys):
    main([f"--workdirs={finished(tmp_path / 'a', 0.4)}", f"--out={tmp_path / 'table.md'}"])
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out


def test_nets_on_cifar10_say_when_they_reach_25_percent_training_error(tmp_path):
    c = config.parse(cifar10.get_config("relu"))
    for seed, last in enumerate((0.2, 0.1)):
        workdir.claim(tmp_path / str(seed), dataclasses.replace(c, seed=seed))
        lines = [
            {"step": 391 * n, "epoch": float(n), "train/top1_error": error}
            for n, error in enumerate((0.3, last), 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / str(seed) / FILE).write_text(text)
    (row,) = rows(report([tmp_path / "0", tmp_path / "1"]))
    # 1.5 and 1.25, on straight lines
    assert row["epochs to 25% training error"] == "1.38 ± 0.12"
    (tmp_path / "1" / FILE).write_text(text.replace("0.1}", "0.26}"))
    (row,) = rows(report([tmp_path / "0", tmp_path / "1"]))
    assert row["epochs to 25% training error"] == "1 of 2 reach it so far"


def test_the_papers_tables_follow_the_runs(tmp_path, capsys):
    main([f"--workdirs={finished(tmp_path / 'a', 0.4)}", "--comparators"])
    table = rows(capsys.readouterr().out.strip())
    assert table[0]["ours, ten views"] == "40.00 / 10.00"
    told = {row["experiment"]: row for row in table}
    assert told["SIFT + FVs (Table 1)"]["paper"] == "45.7 / 25.7 on ILSVRC-2010"
    assert told["seven networks, two pre-trained (Table 2)"]["ours, ten views"] == ""


def test_no_metrics_and_damaged_starts_are_named(tmp_path):
    run = finished(tmp_path / "a", 0.4)
    (run / workdir.STARTS).write_text('{"step": 0}\n')
    with pytest.raises(UserError, match=r"starts\.jsonl is damaged"):
        report([run])
    (run / workdir.STARTS).unlink()
    assert rows(report([run]))[0]["on"] == ""
    (run / FILE).unlink()
    with pytest.raises(UserError, match="no metrics yet"):
        report([run])


@pytest.mark.parametrize("other", ["--workdirs=runs", "--configs=tiny", "--comparators"])
def test_scores_make_tables_of_their_own(other, capsys):
    with pytest.raises(SystemExit):
        main(["--scores=a.json", other])
    assert "--scores makes other tables than" in capsys.readouterr().err
