# SPDX-License-Identifier: Apache-2.0
"""The trainings whose offsets stayed 0 are those of the committed table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import dead_offsets  # noqa: E402


def test_the_page_shows_the_committed_trainings():
    text = (ROOT / "docs/four-models.md").read_text("utf-8")
    made = dead_offsets.update_page(text, dead_offsets.read(ROOT / dead_offsets.TABLE))
    assert "<!-- dead offsets -->" in text
    assert made == text, "run: python benchmarks/dead_offsets.py --page docs/four-models.md"


@pytest.fixture
def study(tmp_path):
    """Two trainings with equal steps, one of them dead, and one with equal epochs."""
    lines = ["trial,ema,budget,p,repetition,average_map"]
    for trial, p, regression in (("steps.a", 0.1, 0.2), ("steps.b", 1.0, 0.6), ("c", 0.1, 0.9)):
        folder = tmp_path / "trials" / trial
        folder.mkdir(parents=True)
        budget = "steps" if trial.startswith("steps") else "epochs"
        lines += [f"{trial},{ema},{budget},{p},0,0.25" for ema in ("off", "plain")]
        start = "\n  offset_start: 1" if trial == "steps.a" else ""
        (folder / "config.yaml").write_text(
            f"name: actionformer-small\nmodel:\n  width: 8{start}\n"
        )
        (folder / "log.csv").write_text(f"epoch,regression\n1,0.7\n2,{regression}\n")
    (tmp_path / "trials.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_trainings_are_collected_written_and_read(study, tmp_path):
    trainings = dead_offsets.collect([study])
    assert [(one.start, one.p, one.is_dead) for one in trainings] == [
        (1.0, 0.1, False),
        (0.0, 1.0, True),
    ]
    assert {one.average_map for one in trainings} == {25.0}
    dead_offsets.write(tmp_path / "table.csv", trainings)
    assert dead_offsets.read(tmp_path / "table.csv") == trainings


def test_summary():
    of = dead_offsets.Training
    text = dead_offsets.summary([
        of("tridet", 0.0, 0.1, 0, 0.2, 20.0), of("tridet", 0.0, 1.0, 1, 0.6, 30.0),
        of("tridet", 1.0, 1.0, 1, 0.1, 50.0), of("tridet", 1.0, 1.0, 0, 0.1, 40.0),
    ])  # fmt: skip
    assert "| TriDet | 0 | 1 of 2 | 100 %: 30.0 (50.0) |" in text
    assert "| TriDet | 1 | 0 of 2 |  |" in text
