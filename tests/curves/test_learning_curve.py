# SPDX-License-Identifier: Apache-2.0
"""Reading learning curves: studies, tables, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tal_fast.curves import read_curve, read_curves
from tal_fast.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
TRIALS = "trial,model,p,repetition,seed,videos,average_map,total_seconds"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_study_of_this_repository():
    curve = read_curve(ROOT / "docs/results/hapt")
    assert curve.name == "tadtr-small"
    assert curve.share.tolist() == list(range(10, 101, 10))
    assert curve.mean[0] == pytest.approx(36.348, abs=1e-4)
    assert curve.deviation[-1] == pytest.approx(0.7814, abs=1e-4)
    assert curve.videos == pytest.approx(42)
    assert [len(point.draws) for point in curve.points] == [5] * 10
    # curve.csv tells the same but for the draws.
    table = read_curve(ROOT / "docs/results/hapt/curve.csv")
    assert table.mean == pytest.approx(curve.mean, abs=1e-4)
    assert table.deviation == pytest.approx(curve.deviation, abs=1e-4)
    assert [point.draws for point in table.points] == [()] * 10


def test_trials_by_hand(tmp_path):
    path = write(
        tmp_path / "trials.csv",
        TRIALS,
        "a,m,0.5,0,1,5,0.20,10",
        "b,m,0.5,0,2,5,0.30,20",  # another seed of the same draw
        "c,m,0.5,1,3,5,0.45,30",
        "d,m,1,0,4,10,0.60,40",
    )
    curve = read_curve(tmp_path)
    draws = [point.draws for point in curve.points]
    assert draws == [(pytest.approx(25.0), pytest.approx(45.0)), (pytest.approx(60.0),)]
    assert curve.repetitions.tolist() == [2, 1]
    assert curve.deviation[0] == pytest.approx(math.sqrt(200))
    assert math.isnan(curve.deviation[1])
    assert curve.seconds.tolist() == [20, 40]
    assert curve.videos == 10
    assert read_curve(path).mean.tolist() == curve.mean.tolist()


def test_curves_of_a_study_are_kept_apart(tmp_path):
    write(
        tmp_path / "trials.csv",
        "model,budget,ema,p,repetition,average_map",
        "tadtr,epochs,off,0.5,0,0.2",
        "tadtr,epochs,plain,0.5,0,0.1",
        "tadtr,epochs,off,1,0,0.3",
    )
    assert [curve.name for curve in read_curves(tmp_path)] == ["tadtr, off", "tadtr, plain"]
    assert len(read_curve(tmp_path, "tadtr, off")) == 2
    with pytest.raises(ConfigError, match="curves 'tadtr, off', 'tadtr, plain'; choose one"):
        read_curve(tmp_path)


def test_labels_that_no_other_curve_has_are_enough(tmp_path):
    lines = ["model,budget,ema,repetition,p,average_map"]
    for budget in ("epochs", "steps"):
        lines += [f"tadtr-small,{budget},{ema},0,1.0,0.5" for ema in ("off", "plain")]
    path = write(tmp_path / "trials.csv", *lines)
    whole = "tadtr-small, steps, plain"
    for name in (whole, "steps, plain", "plain,steps", "steps, EMA plain"):
        assert read_curve(path, name).name == whole
    with pytest.raises(ConfigError, match=r"of one curve, got 'steps': it fits .*off', .*plain'$"):
        read_curve(path, "steps")
    with pytest.raises(ConfigError, match=r"expected one of .*, got 'steps, warmup'"):
        read_curve(path, "steps, warmup")


def test_table_of_a_paper(tmp_path):
    path = write(
        tmp_path / "paper.csv",
        "model,percent,videos,map_mean,map_std,n",
        "A,100,200,50,1,5",
        "A,10,20,5,2,5",
        "B,100,,60,,1",
    )
    first, second = read_curves(path)
    assert first.share.tolist() == [10, 100]
    assert first.standard_error.tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert first.videos == 200
    assert second.videos is None
    assert np.isnan(second.deviation).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["percent,map_mean,map_std", "10,5,1"], "line 2: expected a column n.*--repetitions"),
        (["percent,map_mean,map_std,n", "10,x,1,5"], "line 2: .* column map_mean, got 'x'"),
        (["percent,map_mean,map_std,n", "10,5,1,2.5"], "whole number of repetitions, got 2.5"),
        (["percent,map_mean,map_std,n", "110,5,1,5"], r"at most 1 \(100 %\), got 110 %"),
        (["percent,map_mean,map_std,n", "10,5,1,5", "10,6,1,5"], "10 % again"),
        (["percent,map_mean,map_std,n", "10,5"], "line 2: expected 4 values, got fewer"),
        (["percent,map_mean,map_std,n"], "at least one row"),
        (["x,y", "1,2"], "expected a column of p .*; got x, y"),
        (
            ["p,mean,sd,n", "1.5,0.2,0.1,5"],
            r"line 2: expected p of at most 1 \(100 %\), .* got 1.5",
        ),
        (
            [TRIALS, "a,m,1.2,0,1,5,0.2,10"],
            r"line 2: expected p of at most 1 \(100 %\), .* got 1.2",
        ),
        ([TRIALS, "a,m,1,0,1,5,nan,10"], "number in column average_map, got 'nan'"),
    ],
)
def test_refused(tmp_path, lines, message):
    path = write(tmp_path / "curve.csv", *lines)
    with pytest.raises(DataError, match=message):
        read_curves(path)


def test_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file or study"):
        read_curves(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00p")
    with pytest.raises(DataError, match="expected a table"):
        read_curves(tmp_path / "binary.csv")
