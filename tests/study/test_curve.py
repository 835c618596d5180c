# SPDX-License-Identifier: Apache-2.0
"""The curve's numbers by hand, and its tables."""

from __future__ import annotations

import pytest
from made_records import BUDGETS, RECORDS, trial

from tal_fast.curves.curve_files import curve_csv
from tal_fast.curves.learning_curve import mean_and_deviation
from tal_fast.errors import DataError
from tal_fast.progress import duration
from tal_fast.study.display import curve_table, curve_tables
from tal_fast.study.results import build_curves, trials_csv
from tal_fast.study.spec import StudySpec
from tal_fast.study.trial import TrialRecord


class TestCurve:
    def test_by_hand(self):
        first, last = build_curves(RECORDS)[0].points
        # mean of 0.1, 0.2, 0.6 is 0.3; squared deviations 0.04 + 0.01 + 0.09 = 0.14, over 2, root
        assert first.mean == pytest.approx(30)
        assert first.deviation == pytest.approx(100 * 0.07**0.5)
        assert (first.share, first.n, first.videos, first.instances) == (10, 3, 2, 11)
        assert first.classes == 2
        assert first.trainings == first.draws == (10, 20, 60)
        assert first.seconds == 30
        assert first.per_tiou["0.3"] == (pytest.approx(40), pytest.approx(100 * 0.07**0.5))
        assert (last.share, last.mean, last.deviation, last.n) == (100, 80, None, 1)
        assert last.per_tiou["0.5"] == (80, None)

    def test_one_value_has_no_deviation(self):
        assert mean_and_deviation([0.5]) == (0.5, None)
        assert mean_and_deviation([0.5, 0.5]) == (0.5, 0.0)

    def test_curve_csv(self):
        assert curve_csv(build_curves(RECORDS)) == (
            "sampling,budget,ema,p,videos,instances,classes,windows,steps,n,trials,"
            "mean,sd,sd_seeds,sd_draws,mean_0.3,sd_0.3,mean_0.5,sd_0.5\n"
            "video,epochs,off,0.1,2,11,2,64,8,3,3,"
            "0.300000,0.264575,,,0.400000,0.264575,0.300000,0.264575\n"
            "video,epochs,off,1,20,100,3,64,8,1,1,0.800000,,,,0.900000,,0.800000,\n"
        )

    def test_trials_csv(self):
        lines = trials_csv(RECORDS).splitlines()
        assert [line.split(",")[0] for line in lines[1:]] == [
            "p010_r0",
            "p010_r1",
            "p010_r2",
            "p100_r0",
        ]
        header = lines[0].split(",")
        row = dict(zip(header, lines[2].split(","), strict=True))
        assert row["average_map"] == row["map_0.5"] == "0.200000"
        assert row["missing_classes"] == "sit"
        assert (row["videos"], row["steps"], row["epochs"]) == ("2", "8", "")

    def test_results_without_steps(self):
        (curve,) = build_curves([trial(0.5, 0, 0.1, windows=None), trial(0.5, 1, 0.1)])
        assert curve.points[0].windows is None
        assert ",,8,2," in curve_csv([curve])

    def test_table(self):
        (curve,) = build_curves(RECORDS)
        table = curve_table(curve)
        cells = {str(column.header): list(column.cells) for column in table.columns}
        assert cells["average mAP"] == ["30.00 ± 26.46", "80.00"]
        assert cells["@0.3"] == ["40.0", "90.0"]
        assert cells["steps"] == ["8", "8"]
        assert "trials" not in cells

    def test_tables_of_several_curves(self):
        epochs, steps = curve_tables(build_curves(BUDGETS))
        assert str(epochs.title).startswith("epochs: average mAP")
        cells = {str(column.header): list(column.cells) for column in steps.columns}
        assert cells["p"] == ["10 %", "50 %", "100 %"]
        assert cells["plain"] == ["30.00 ± 2.83", "41.00", "45.00"]

    def test_tables_of_one_average(self):
        records = [trial(0.5, 0, 0.1), trial(0.5, 0, 0.1, training=1),
                   trial(0.5, 0, 0.2, budget="steps")]  # fmt: skip
        epochs, steps = curve_tables(build_curves(records))
        headers = [str(column.header) for column in epochs.columns]
        assert "trials" in headers
        assert "average mAP" in headers
        assert str(steps.title).startswith("steps: mAP")

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (725, "12 min 05 s"),
            (12000, "3 h 20 min"),
        ],
    )
    def test_duration(self, seconds, text):
        assert duration(seconds) == text


def test_command_can_be_pasted(tmp_path):
    spec = StudySpec(
        data=tmp_path / "my data",
        out=tmp_path / "out",
        fractions=(0.1, 1.0),
        overrides={"training.epochs": 3},
        config=tmp_path / "c.yaml",
        jobs=2,
        threads=1,
    )
    command = spec.command()
    assert "--data '" in command
    assert "--fractions 0.1,1 --repetitions 5 --split data --seed 0" in command
    assert "--set training.epochs=3 --jobs 2 --threads 1 --out" in command


def test_a_record_without_a_part_of_its_sample():
    content = RECORDS[0].to_dict()
    del content["sample"]["classes"]
    with pytest.raises(DataError, match=r"here: expected sample\.classes, found none"):
        TrialRecord.from_dict(content, "here")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("result", [], "expected result as an object, got"),
        ("result.average_map", "0.5", r"expected result.average_map as a number, got '0.5'"),
        (
            "result.map_per_threshold",
            {"x": 1},
            "expected result.map_per_threshold as numbers by tIoU",
        ),
        ("result.steps", "8", "expected result.steps as a number, got '8'"),
        ("result.ema", [1], "expected result.ema as an object"),
        ("result.ema", {"off": 1}, "expected result.ema.off as an object, got 1"),
        ("sample", None, "expected sample as an object, got None"),
        ("sample.videos", "abc", "expected sample.videos as a list of text, got 'abc'"),
        ("fraction", "all", r"expected fraction as a number in \(0, 1\], got 'all'"),
        ("fraction", 1e400, r"expected fraction as a number in \(0, 1\], got inf"),
        ("repetition", -1, "expected repetition as a whole number of at least 0, got -1"),
        ("seconds", {}, "expected seconds as a finite number"),
        ("model", "a\x1b[2J", "expected model as text without control characters, got 'a.x1b"),
        ("sampling", None, "expected sampling as text without control characters, got None"),
    ],
)
def test_a_record_with_a_value_of_another_type(place, value, message):
    content = RECORDS[0].to_dict()
    *within, key = place.split(".")
    (content[within[0]] if within else content)[key] = value
    with pytest.raises(DataError, match=f"here: {message}"):
        TrialRecord.from_dict(content, "here")


def test_a_record_survives_its_file():
    for record in (*RECORDS, *BUDGETS):
        assert TrialRecord.from_dict(record.to_dict(), "here") == record
