# SPDX-License-Identifier: Apache-2.0
"""mAP that looks as if it were of the scale from 0 to 1."""

from __future__ import annotations

import pytest
from made_curves import HAPT

from tal_fast import cli
from tal_fast.curves.points import note_on_difference, require_level
from tal_fast.errors import ConfigError
from tal_fast.study.adaptive.targets import AdaptiveRequest

TABLE = "p,n,mean,sd\n0.1,3,20,2\n0.2,3,30,2\n0.4,3,40,2\n0.7,3,47,2\n1.0,3,50,2\n"


def test_levels():
    for value in (1.01, 65.0, 100.0):
        require_level("--target", value)
    message = (
        r"--target: expected mAP in points, above 1 and at most 100, got 0\.65: 0\.65 points are "
        r"next to nothing; if the scale from 0 to 1 is meant, that is --target 65$"
    )
    with pytest.raises(ConfigError, match=message):
        require_level("--target", 0.65)
    with pytest.raises(ConfigError, match=r"got 1: .*--target 100$"):
        require_level("--target", 1.0)
    for value in (0.0, -3.0, 101.0, float("nan")):
        with pytest.raises(ConfigError, match=r"at most 100, got [-\w]+$"):
            require_level("--target", value)


def test_differences():
    assert note_on_difference("--deviation", 0.1) is None
    assert note_on_difference("--deviation", 0.015) == (
        "--deviation: 0.015 is taken as points of 100; if the scale from 0 to 1 is meant, that is "
        "--deviation 1.5"
    )


@pytest.mark.parametrize(
    ("target", "other"),
    [
        ("±0.015 at 100 %", "--target '±1.5 at 100 %'"),
        ("gain at 3x ±0.03", "--target 'gain at 3x ±3'"),
        ("rank ±0.005", "--target 'rank ±0.5'"),
    ],
)
def test_targets_of_adaptive_studies(target, other):
    (note,) = AdaptiveRequest(target).notes()
    assert note.endswith(f"if the scale from 0 to 1 is meant, that is {other}")


@pytest.mark.parametrize("target", ["±1.5 at 100 %", "gain at 3x ±0.1", "rank", "rank ±0.5"])
def test_targets_in_points_are_not_doubted(target):
    assert AdaptiveRequest(target).notes() == []


def test_on_the_command_line(tmp_path, capsys):
    (tmp_path / "curve.csv").write_text(TABLE)
    study = ["--study", str(tmp_path / "curve.csv"), "--draws", "5"]
    assert cli.main(["study", "plan", *study, "--target", "0.65"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "", "before the curve is fitted"
    assert "that is --target 65" in printed.err
    words = ["study", "extrapolate", "--study", str(HAPT), "--draws", "5", "--times", "2"]
    assert cli.main([*words, "--deviation", "0.02"]) == 0
    assert "note: --deviation: 0.02 is taken as points" in capsys.readouterr().err
