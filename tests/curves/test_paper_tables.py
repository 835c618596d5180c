# SPDX-License-Identifier: Apache-2.0
"""Tables of papers: columns as people name them, units that are never guessed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tal_fast import cli
from tal_fast.curves import TableForm, read_curve, read_curves
from tal_fast.errors import ConfigError, DataError


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.fixture
def table(tmp_path):
    def make(*lines: str, encoding: str = "utf-8") -> Path:
        return write(tmp_path / "paper.csv", *lines, encoding=encoding)

    return make


class TestNames:
    @pytest.mark.parametrize(
        ("header", "rows"),
        [
            ("percent,map_mean,map_std,n", ["10,5,2,5", "100,50,1,5"]),
            ("p (%),mAP (%),std,runs", ["10,5,2,5", "100,50,1,5"]),
            ("% of data,Average mAP [%],SD,seeds", ["10,5,2,5", "100,50,1,5"]),
            (
                "percentage of videos,mean mAP (points),mAP std,n",
                ["10,5,2,5", "100,50,1,5"],
            ),
            ("fraction,mAP (0..1),standard deviation,repetitions", ["0.1,.05,.02,5", "1,.5,.01,5"]),
            ("Fraction,mAP (fraction),std,n", ["0.1,.05,.02,5", "1,.5,.01,5"]),
            ("p;mAP@[0.3:0.1:0.7] (%);std;n", ["10 %;5;2;5", "100 %;50;1;5"]),
            ("p [%]\tmAP [%]\tstd. dev.\tn", ["10\t5\t2\t5", "100\t50\t1\t5"]),
            ("p (%),mAP ± std (%),n", ["10,5 ± 2,5", "100,50 ± 1,5"]),
            ("p (%),mAP (%),n", ["10,$5 \\pm 2$,5", "100,50+/-1,5"]),
            ("p (%),mAP (%),±,n", ["10,5,2,5", "100,50,1,5"]),
            (" p (%) , mAP (%) , std , n ", ["10 , 5 , 2 , 5", "", " , , , ", "100,50,1,5"]),
            ("p (%),mAP (%),std,n,mAP@0.5,source", ["10,5,2,5,9,x", "100,50,1,5,70,x"]),
        ],
    )
    def test_understood(self, table, header, rows):
        curve = read_curve(table(header, *rows))
        assert curve.share == pytest.approx([10, 100])
        assert curve.mean == pytest.approx([5, 50])
        assert curve.deviation == pytest.approx([2, 1])
        assert curve.repetitions.tolist() == [5, 5]
        assert curve.name == "paper"

    def test_empty_rows_before_the_header(self, table):
        curve = read_curve(table("", " ", ";;", "p (%);mAP (%)", "10;5", "100;50"))
        assert curve.mean.tolist() == [5, 50]

    def test_byte_order_mark(self, table):
        path = table("p (%),mAP (%),std,n", "10,5,2,5", "100,50,1,5", encoding="utf-8-sig")
        assert read_curve(path).share.tolist() == [10, 100]

    def test_models_in_a_column(self, table):
        path = table("Method,p (%),mAP (%)", "A,100,50", "B,10,6", "A,10,5", "B,100,60")
        first, second = read_curves(path)
        assert (first.name, second.name) == ("A", "B")
        assert (first.mean.tolist(), second.mean.tolist()) == ([5, 50], [6, 60])
        assert np.isnan(first.deviation).all()

    def test_a_header_again_is_left_out_and_told(self, table):
        path = table("p (%),mAP (%)", "10,5", "p (%),mAP (%)", "100,50")
        curve = read_curve(path)
        assert len(curve) == 2
        assert curve.remarks()[0] == "paper.csv: the header comes again in line 3; left out"

    def test_videos_instead_of_p(self, table):
        path = table("videos,mAP (%)", "20,5", "200,50")
        curve = read_curve(path, form=TableForm(videos=200))
        assert curve.share.tolist() == [10, 100]
        assert curve.videos == 200
        with pytest.raises(
            DataError, match=r"line 2: .* beside column videos, as in --table videos=200"
        ):
            read_curve(path)

    def test_videos_beside_p(self, table):
        assert read_curve(table("p (%),videos,mAP (%)", "10,20,5", "50,100,50")).videos == 200


class TestUnits:
    def test_a_number_above_1_proves_percent_and_is_told(self, table):
        curve = read_curve(table("p,mAP", "10,5", "100,50"))
        assert curve.mean.tolist() == [5, 50]
        assert "column p is read in percent, since it goes up to 100" in curve.remarks()[0]
        assert "column mAP is read in percent, since it goes up to 50" in curve.remarks()[1]

    @pytest.mark.parametrize(
        ("lines", "column"),
        [(["p,mAP (%)", "0.1,5", "1,50"], "p"), (["p (%),mAP", "10,0.05", "100,0.5"], "mAP")],
    )
    def test_numbers_up_to_1_are_asked_about(self, table, lines, column):
        with pytest.raises(
            DataError,
            match=rf"line 3: .* column {column} is in percent or in 0\.\.1.*units=fraction",
        ):
            read_curve(table(*lines))
        curve = read_curve(table(*lines), form=TableForm(units="fraction"))
        assert (curve.share.tolist(), curve.mean.tolist()) == ([10, 100], [5, 50])

    def test_a_name_that_the_numbers_deny(self, table):
        with pytest.raises(DataError, match="line 3: expected at most 1 in column fraction"):
            read_curve(table("fraction,mAP (%)", "10,5", "100,50"))
        low = table("p (%),mAP (%)", "0.1,5", "1,50")
        with pytest.raises(DataError, match=r"expected percent in column p \(%\), .* above 1;"):
            read_curve(low)
        assert read_curve(low, form=TableForm(units="percent")).share.tolist() == [0.1, 1]

    def test_the_spread_has_the_unit_of_the_mean(self, table):
        with pytest.raises(DataError, match=r"unit of mAP \(%\) \(percent\) in column std \(fract"):
            read_curve(table("p (%),mAP (%),std (fraction),n", "10,5,.1,5", "100,50,.1,5"))


class TestSpread:
    def test_standard_error(self, table):
        curve = read_curve(table("p (%),mAP (%),SEM,n", "10,5,1,4", "100,50,2,4"))
        assert curve.deviation == pytest.approx([2, 4])

    def test_plus_minus_is_told_and_can_be_a_standard_error(self, table):
        path = table("p (%),mAP (%),n", "10,5 ± 1,4", "100,50 ± 2,4")
        curve = read_curve(path)
        assert curve.deviation.tolist() == [1, 2]
        assert "what follows ± is read as the standard deviation" in " ".join(curve.remarks())
        assert read_curve(path, form=TableForm(spread="se")).deviation.tolist() == [2, 4]

    def test_as_large_as_it_can_be(self, table):
        # Of 0 and 100; of a mean that was rounded to 0.
        rows = ["p (%),mAP (%),std,n", "10,0,0.07,2", "100,50,70.71,2"]
        assert read_curve(table(*rows)).deviation.tolist() == [0.07, 70.71]

    def test_rows_of_repetitions(self, table):
        rows = ["10,1,4", "10,2,6", "100,1,50", "100,2,52"]
        curve = read_curve(table("p (%),seed,mAP (%)", *rows))
        assert curve.mean.tolist() == [5, 51]
        assert curve.repetitions.tolist() == [2, 2]
        assert curve.deviation == pytest.approx([2**0.5, 2**0.5])
        assert curve.remarks() == []
        unnamed = read_curve(table("p (%),mAP (%)", "10,4", "10,6", "100,50", "100,52"))
        assert unnamed.mean.tolist() == [5, 51]
        assert "rows of the same p are read as repetitions" in unnamed.remarks()[0]

    def test_without_any(self, table):
        curve = read_curve(table("p (%),mAP (%)", "10,5", "100,50"))
        assert curve.repetitions.tolist() == [1, 1]
        assert np.isnan(curve.deviation).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x,y", "1,2"], r"line 1: expected a column of p .* one of mAP .*; got x, y"),
        (["p (%),mAP@0.5", "1,2"], "got p .%., mAP@0.5"),
        (["p (%),mAP,avg mAP", "1,2,3"], "one column of mean, got 'mAP' and 'avg mAP'"),
        (["p (%),p (%),mAP", "1,2,3"], r"each column once, got p \(%\) twice"),
        (["p (%),mAP (%),std,se", "1,2,3,4"], "expected one spread, got 'std' and 'se'"),
        (["p (%),mAP ± sd (%),std", "1,2 ± 1,3"], "expected one spread, got 'std' and 'mAP ± sd"),
        (["p (%),mAP (%)", "10,x"], r"line 2: expected a number in column mAP \(%\), got 'x'"),
        (["p (%),mAP (%)", "10,"], r"line 2: expected a number in column mAP \(%\), got ''"),
        (["p (%),mAP (%)", "10,5", "20,inf"], r"line 3: expected a number in column mAP"),
        (["p (%),mAP (%)", "10,5,4"], r"line 2: expected 2 values, got more \(3\)"),
        (["p (%);mAP (%)", "10;5,4"], r"line 2: .* '5,4'; if that is a decimal comma, .*=comma"),
        (["p (%),mAP (%)", "0,5", "10,9"], "line 2: expected p above 0 and at most 1 .* got 0 %"),
        (["p (%),mAP (%)", "10,5", "110,9"], r"line 3: expected p .* got 110 % in column p \(%\)"),
        (["p (%),mAP (%)", "10,5", "20,109"], "line 3: expected mAP of 0 to 100 points"),
        (["p (%),mAP (%),std", "10,5,1"], "line 2: expected a column n.*--repetitions"),
        (["p (%),mAP (%),std,n", "10,5,1,1"], "line 2: expected at least 2 repetitions beside"),
        (["p (%),mAP (%),std,n", "10,5,-1,5"], "line 2: expected a spread of at least 0, got -1"),
        (["p (%),mAP (%),std,n", "10,5,1,5", "10,6,1,5"], "line 3: expected each p once, got 10 %"),
        (["p (%),seed,mAP (%)", "10,1,5", "10,1,6"], "line 3: expected each seed once at p = 10 %"),
        (["p (%);mAP (%),n", "10;5,5"], "line 1: expected columns separated by .* as many commas"),
        (["p (%),A,B", "1,2,3"], "several models: a row per model and p.*; got p .%., A, B"),
        (["p (%),mAP (%)", "10,5_4"], r"line 2: expected a number in column mAP \(%\), got '5_4'"),
        (["# from page 7", "p (%),mAP (%)", "1,2"], "line 1: .* two columns .* got '# from page 7"),
        (["", "sep=;", "p (%);mAP (%)", "1;2"], "line 2: expected the names .* got 'sep=;'"),
        (["p,mAP (%)", "10 %,5", "0.2,9"], "line 3: expected a % after 0.2 .* as in line 2"),
        (["p (%),mAP", "5,0.2", "10,20 % ± 1"], "line 2: expected a % after 0.2 in column mAP"),
        (["fraction,mAP (%)", "0.2 %,5"], "line 2: expected no % in column fraction"),
        (["p (%),mAP (fraction),sd,n", "9,.5,1 %,5"], r"line 2: .*\(fraction\) in column sd"),
        (["p (%),mAP (fraction),sd,n", "9,.5,1.2,5"], "at most 55.9 points, got 120"),
        (["p (%),mAP (%),se,n", "9,20,40,4"], "mean of 20 .* at most 46.6 points, got 80"),
        (["model,p (%),mAP (%)", "A,9,5", ",20,8"], "line 3: expected a name in column model"),
        (["p,mean,sd,n", "10,45,1,5"], r"line 2: expected p of at most 1 .*percent, map_mean"),
        (
            ["p (%),mAP (%),std,n", "10,5,2,10000000000000000000"],
            "line 2: expected a whole number of repetitions, got 1e\\+19 \\(at most 1,000,000\\)",
        ),
    ],
)
def test_refused(table, lines, message):
    with pytest.raises(DataError, match=message):
        read_curves(table(*lines))


class TestForm:
    def test_decimal_comma(self, table):
        path = table("p (%);mAP (%);std;n", "10;5,5;1,5;5", "100;50,25;1;5")
        curve = read_curve(path, form=TableForm(decimal="comma"))
        assert curve.mean.tolist() == [5.5, 50.25]
        assert curve.deviation.tolist() == [1.5, 1]

    def test_a_thousand_is_not_a_decimal_comma(self, table):
        for cell in ("1.005,5", "1.005"):
            path = table("p (%);mAP (%)", f"10;{cell}")
            with pytest.raises(DataError, match=r"expected a number .*'1\.005"):
                read_curve(path, form=TableForm(decimal="comma"))

    def test_words(self):
        words = ["units=fraction", "spread=se", "videos=200", "decimal=comma"]
        assert TableForm.parse(words) == TableForm("fraction", "se", 200.0, "comma")
        assert TableForm.parse([]) == TableForm()

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("unit=percent", "expected one of units=..., .* got 'unit=percent'; did you mean 'uni"),
            ("units", "expected one of units="),
            ("units=points", "expected units to be percent or fraction, got 'points'"),
            ("spread=sem", "expected spread to be sd or se, got 'sem'"),
            ("videos=many", "expected a number of videos, got 'many'"),
            ("videos=0", "expected videos of at least 1, got 0"),
            ("decimal=,", "expected decimal to be point or comma"),
        ],
    )
    def test_refused(self, word, message):
        with pytest.raises(ConfigError, match=message):
            TableForm.parse([word])


class TestFit:
    ROWS = ("10,5,1,5", "30,20,1,5", "60,30,1,5", "100,36,1,5")

    def test_one_unfittable_curve_does_not_hide_the_others(self, table, tmp_path, capsys):
        rows = [f"{model},{row}" for model in ("A", "C") for row in self.ROWS]
        rows[4:4] = ["B,50,20,1,5", "B,100,30,1,5"]
        path = table("model,p (%),mAP (%),std,n", *rows)
        arguments = ["study", "fit", "--study", str(path), "--draws", "5"]
        arguments += ["--json", str(tmp_path / "fit.json"), "--picture", str(tmp_path / "fit")]
        assert cli.main(arguments) == 1
        captured = capsys.readouterr()
        assert "A: 4 levels" in captured.out
        assert "C: 4 levels" in captured.out
        assert "1 of 3 curves could not be fitted: B: expected at least 3 levels" in captured.err
        content = json.loads((tmp_path / "fit.json").read_text())
        assert [one["curve"]["name"] for one in content["fits"]] == ["A", "C"]
        assert list(content["failures"]) == ["B"]
        assert sorted(p.name for p in tmp_path.glob("*.png")) == ["fit-A.png", "fit-C.png"]

    def test_one_curve_alone(self, table, capsys):
        path = table("p (%),mAP (%)", "50,20", "100,30")
        assert cli.main(["study", "fit", "--study", str(path)]) == 1
        assert "error: paper: expected at least 3 levels of p, got 2" in capsys.readouterr().err

    def test_the_option(self, table, capsys):
        path = table("fraction;mAP;std;n", ".1;0,05;0,01;5", ".4;0,3;0,01;5", "1;0,5;0,01;5")
        arguments = ["study", "fit", "--study", str(path), "--draws", "5"]
        assert cli.main(arguments) == 1
        assert "--table decimal=comma" in capsys.readouterr().err
        arguments += ["--table", "decimal=comma", "--table", "units=fraction"]
        assert cli.main(arguments) == 0
        assert "paper: 3 levels from 10 to 100 %" in capsys.readouterr().out
