# SPDX-License-Identifier: Apache-2.0
"""Fits for the page: which curves, kept while they stay the same, and never the page's end."""

from __future__ import annotations

import json

import pytest
from made_records import LEVELS, rising, trial

from tal_fast.curves.curve_files import read_curve
from tal_fast.curves.fit import fit_curve
from tal_fast.study.report.page import fit_curves, fitting_order
from tal_fast.study.results import build_curves, trials_csv


def fitted(records, out, **more):
    return fit_curves(out, build_curves(records), **more)


@pytest.fixture
def counted(monkeypatch):
    """Counts the fits that are made."""
    calls = []

    def fit(curve, *args, **kwargs):
        calls.append(curve.name)
        return fit_curve(curve, *args, **kwargs)

    monkeypatch.setattr("tal_fast.curves.fit.fit_curve", fit)
    return calls


def test_as_from_the_tables_of_the_study(tmp_path):
    records = [*rising(), *rising(training=1)]
    path = tmp_path / "trials.csv"
    path.write_text(trials_csv(records))
    read, made = read_curve(path), build_curves(records)[0]
    assert made.share.tolist() == read.share.tolist()
    for name in ("mean", "deviation", "repetitions"):
        assert getattr(made, name) == pytest.approx(getattr(read, name), abs=1e-4)
    assert made.points[0].draws == pytest.approx(read.points[0].draws, abs=1e-4)
    assert made.videos == read.videos == 200


def test_content(tmp_path):
    found, left_out, path = fitted(rising(), tmp_path)
    assert left_out == []
    (one,) = found.values()
    assert one["name"] == "tadtr-small"
    assert one["problems"] == []
    assert {row["family"] for row in one["fit"]["families"]} >= {"hill", "pow3", "logistic"}
    extrapolation = one["extrapolation"]
    assert (extrapolation["share"], extrapolation["times_largest_p"]) == (300, 3)
    # the truth at three times the data is 56.25
    assert extrapolation["interval"][0] < 56.25 < extrapolation["interval"][1]
    assert extrapolation["last_value"] == pytest.approx(50, abs=1)
    drawing = one["drawing"]
    assert drawing["x"][0] == 5
    assert drawing["x"][-1] == 300
    assert drawing["low"][-1] == pytest.approx(extrapolation["interval"][0])
    assert len(drawing["families"]) == 3
    assert json.loads(path.read_text())["curves"] == [one]


def test_made_once(tmp_path, counted):
    first, _, path = fitted(rising(), tmp_path)
    text = path.read_text()
    again, _, _ = fitted(rising(), tmp_path)
    assert counted == ["tadtr-small"]
    assert again == first
    assert path.read_text() == text
    fitted([*rising(), trial(1.0, 3, 0.4)], tmp_path)
    assert counted == ["tadtr-small", "tadtr-small"]
    fitted(rising(), tmp_path)  # the file holds the fits of the last report alone
    assert len(counted) == 3


def test_same_numbers_same_file(tmp_path):
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        texts.append(fitted(rising(), tmp_path / name)[2].read_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0, "curves": []}', '{"curves": 1}'])
def test_a_broken_file_is_made_again(tmp_path, content, counted):
    (tmp_path / "fits.json").write_text(content)
    fitted(rising(), tmp_path)
    assert counted == ["tadtr-small"]
    fitted(rising(), tmp_path)
    assert counted == ["tadtr-small"]


class TestManyCurves:
    RECORDS = (*rising(modes=("off", "plain")), *rising("steps", ("off", "plain")))
    NAMES = ("epochs, EMA off", "steps, EMA off", "epochs, EMA plain", "steps, EMA plain")

    def test_order(self):
        order = fitting_order(build_curves(self.RECORDS))
        assert tuple(curve.name for curve in order) == self.NAMES

    def test_what_is_left_out_is_named(self, tmp_path):
        found, left_out, _ = fitted(self.RECORDS, tmp_path, most=3)
        assert tuple(found) == self.NAMES[:3]
        assert left_out == [self.NAMES[3]]

    def test_fits_once_made_stay(self, tmp_path, counted):
        fitted(self.RECORDS, tmp_path, most=4)
        found, left_out, _ = fitted(self.RECORDS, tmp_path, most=1)
        assert (tuple(found), left_out, len(counted)) == (self.NAMES, [], 4)


class TestWhatCannotBeFitted:
    @pytest.mark.parametrize(
        ("records", "message"),
        [
            (rising(levels=(0.1,)), "expected at least 3 levels of p, got 1"),
            (rising(levels=(0.1, 1.0)), "expected at least 3 levels of p, got 2"),
            ([trial(p, 0, 0.3) for p in LEVELS], "mAP is 30 at every p: there is no curve to fit"),
            ([trial(p, 0, 0.5 - p / 4) for p in LEVELS], "mAP does not rise with p"),
        ],
    )
    def test_says_why(self, tmp_path, records, message):
        found, _, _ = fitted(records, tmp_path)
        (one,) = found.values()
        assert one["fit"] is one["drawing"] is one["extrapolation"] is None
        (problem,) = one["problems"]
        assert message in problem

    def test_without_repetitions_a_fit_but_no_interval(self, tmp_path):
        found, _, _ = fitted(rising(repetitions=1), tmp_path)
        (one,) = found.values()
        assert one["extrapolation"] is None
        assert "expected repetitions at some level" in one["problems"][0]
        assert one["fit"]["families"]
        assert one["drawing"]["x"][-1] == 100
        assert "low" not in one["drawing"]

    def test_three_levels(self, tmp_path):
        found, _, _ = fitted(rising(levels=(0.1, 0.3, 1.0)), tmp_path)
        (one,) = found.values()
        assert [row["family"] for row in one["fit"]["families"]] == ["log2"]
        assert "too short to test" in " ".join(one["extrapolation"]["notes"])
