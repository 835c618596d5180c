# SPDX-License-Identifier: Apache-2.0
"""Profiles side by side, of one machine and of several."""

from __future__ import annotations

import csv

import made_profiles
import pytest

from tal_fast import cli
from tal_fast.errors import ConfigError, DataError
from tal_fast.profiling.compare import Comparison, compare, comparison_tables
from tal_fast.profiling.figures import figure

OTHER = {"cpu": "another processor", "cores": 2, "torch": "2.13"}


@pytest.fixture
def folders(tmp_path):
    made = {
        "first": made_profiles.training(),
        "second": made_profiles.training(disturbed=True),
        "fast": made_profiles.prediction(),
        "slow": made_profiles.prediction(2.0, disturbance={"others": {"value": 0.9}}),
    }
    return {
        name: made_profiles.write(tmp_path / name, own, tables=False) for name, own in made.items()
    }


def test_one_machine(folders, tmp_path, capsys):
    out = tmp_path / "out"
    paths = [str(path) for path in folders.values()]
    assert cli.main(["profile", "compare", *paths, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Disturbed by others: second, slow." in shown
    assert "All: model a <model>, amp float32, threads 1." in shown
    assert {path.name for path in out.iterdir()} == {
        "trainings.csv", "predictions.csv", "lengths.png", "lengths.svg",
    }  # fmt: skip
    with open(out / "trainings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["profile"] for row in rows] == ["first", "second"]
    row = rows[0]
    assert float(row["ms/step"]) == 123.4
    assert float(row["clips/s"]) == pytest.approx(16 / 0.1234)
    assert float(row["s/epoch"]) == pytest.approx(10 * 0.1234)
    assert float(row["MB read"]) == pytest.approx(172.0)
    assert float(row["% of product"]) == pytest.approx(64.8)
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rows"], row["profile"], float(row["network ms"])) for row in rows] == [
        ("200", "fast", 20.0), ("200", "slow", 40.0), ("600", "fast", 60.0),
        ("600", "slow", 120.0), ("1000", "fast", 100.0), ("1000", "slow", 200.0),
    ]  # fmt: skip


def test_different_machines(folders, tmp_path, capsys):
    made_profiles.write(folders["second"], made_profiles.training(environment=OTHER), tables=False)
    pair = [folders["first"], folders["second"]]
    with pytest.raises(ConfigError, match=r"different machines \(cpu: a processor; another proc"):
        compare(pair)
    assert cli.main(["profile", "compare", *map(str, pair)]) == 2
    assert "--force" in capsys.readouterr().err
    out = tmp_path / "out"
    assert cli.main(["profile", "compare", *map(str, pair), "--force", "--out", str(out)]) == 0
    assert "no times" in capsys.readouterr().out
    with open(out / "trainings.csv", newline="") as file:
        (first, _) = csv.DictReader(file)
    assert list(first) == [
        "profile", "model", "amp", "threads", "% of product", "% of memory", "% calling",
    ]  # fmt: skip
    assert not (out / "lengths.png").exists()


def test_names_are_as_long_as_they_have_to_be(tmp_path):
    paths = [tmp_path / name / "profile" for name in ("a", "b")]
    for path in paths:
        made_profiles.write(path, made_profiles.training(), tables=False)
    assert [name for name, _ in compare(paths).profiles] == ["a/profile", "b/profile"]


def test_what_cannot_be_compared(folders, tmp_path):
    first = folders["first"]
    with pytest.raises(ConfigError, match="two profiles or more, got 1"):
        compare([first])
    with pytest.raises(ConfigError, match="got one twice"):
        compare([first, first])
    with pytest.raises(DataError, match="expected a profile"):
        compare([first, tmp_path])
    both = made_profiles.training()
    stacks = {key: both[key] for key in ("format", "environment")} | {"external": {}}
    other = made_profiles.write(tmp_path / "stacks", stacks, tables=False)
    with pytest.raises(DataError, match="stacks: its profile has neither steps nor lengths"):
        compare([first, other])


def test_missing_figures_are_dashes():
    old = {key: made_profiles.training()[key] for key in ("phases", "step", "environment")}
    found = Comparison([("old", old), ("new", made_profiles.training())])
    (table,) = comparison_tables(found)
    assert table.row_count == 2


def test_lengths_are_drawn_by_the_time_that_rates_are_by():
    pytest.importorskip("matplotlib")
    from tal_fast.profiling.drawings import lengths_picture

    made = made_profiles.prediction()
    for entry in made["lengths"]:
        entry["network_cpu"] = figure(7.0, "ms", "clock")
    for rates_by, label, drawn in (("clock", "ms", 20.0), ("CPU time", "ms of CPU time", 7.0)):
        made["prediction"]["rates_by"] = rates_by
        (axes, *_) = lengths_picture([("a", made)]).axes
        assert axes.get_ylabel() == label
        assert axes.lines[0].get_ydata()[0] == drawn
    assert lengths_picture([("a", made)], training=True) is None
