# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/data-efficiency.md are those of the studies beside it."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/data-efficiency.md").read_text("utf-8")
RESULTS = ROOT / "docs/results"
STUDIES = {"HAPT": "hapt-budgets", "synthetic": "synthetic-budgets"}

Points = dict[tuple[str, str, str, float], dict[str, str]]


def curves(study: str) -> Points:
    """The rows of curve.csv by sampling, budget, average and p in percent."""
    with open(RESULTS / STUDIES[study] / "curve.csv", encoding="utf-8", newline="") as file:
        return {
            (row["sampling"], row["budget"], row["ema"], 100 * float(row["p"])): row
            for row in csv.DictReader(file)
        }


def tables(header: str) -> list[tuple[list[str], list[list[str]]]]:
    """Heads and rows of all tables whose header begins so."""
    found = []
    for block in PAGE.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith(header):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            found.append((cells[0], cells[2:]))
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize(("index", "study"), list(enumerate(STUDIES)))
def test_curves(index, study):
    points = curves(study)
    head, rows = tables("| trained for | tested | 5 % ")[index]
    assert len(rows) == 8
    for budget, ema, *cells in rows:
        for title, cell in zip(head[2:], cells, strict=True):
            point = points["video", budget, ema, numbers(title)[0]]
            expected = [100 * float(point["mean"]), 100 * float(point["sd"])]
            assert numbers(cell) == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize(("index", "study"), list(enumerate(STUDIES)))
def test_slopes(index, study):
    points = curves(study)
    head, rows = tables("| trained for | tested | 0 to 5 % ")[index]
    for budget, ema, *cells in rows:
        shares = [0.0, *(numbers(title)[1] for title in head[2:])]
        values = [0.0]
        values += [100 * float(points["video", budget, ema, p]["mean"]) for p in shares[1:]]
        slopes = [
            10 * (after - before) / (b - a)
            for (a, b), (before, after) in zip(pairwise(shares), pairwise(values), strict=True)
        ]
        assert [numbers(cell)[0] for cell in cells] == pytest.approx(slopes, abs=0.051)


def test_weights_of_the_start():
    points = curves("HAPT")
    config = (RESULTS / "hapt-budgets/config.yaml").read_text("utf-8")
    decay = float(re.search(r"ema_decay: (\S+)", config)[1])
    ((_, rows),) = tables("| trained for | p | steps | start keeps |")
    for budget, share, steps, keeps, *cells in rows:
        p = numbers(share)[0]
        point = points["video", budget, "off", p]
        assert numbers(steps)[0] == pytest.approx(float(point["steps"]), abs=0.51)
        assert numbers(keeps)[0] == pytest.approx(100 * decay ** float(point["steps"]), abs=0.51)
        for ema, cell in zip(("plain", "warmup", "corrected"), cells, strict=True):
            change = float(points["video", budget, ema, p]["mean"]) - float(point["mean"])
            assert numbers(cell)[0] == pytest.approx(100 * change, abs=0.051)


def test_samplings():
    ((_, rows),) = tables("| data | trained for | p | drawn |")
    assert len(rows) >= 12
    for study, budget, share, drawn, videos, instances, classes, off, plain in rows:
        point, average = (
            curves(study)[drawn, budget, ema, numbers(share)[0]] for ema in ("off", "plain")
        )
        assert numbers(videos)[0] == pytest.approx(float(point["videos"]), abs=0.51)
        assert numbers(instances)[0] == pytest.approx(float(point["instances"]), abs=0.51)
        assert numbers(classes)[0] == pytest.approx(float(point["classes"]), abs=0.051)
        for cell, row in ((off, point), (plain, average)):
            expected = [100 * float(row["mean"]), 100 * float(row["sd"])]
            assert numbers(cell) == pytest.approx(expected, abs=0.051)


def test_extrapolations():
    ((_, rows),) = tables("| data | trained for | tested | at 100 % |")
    for study, budget, ema, last, value, interval, gain, gains in rows:
        content = json.loads((RESULTS / STUDIES[study] / "fits.json").read_text("utf-8"))
        names = (f"{budget}, EMA {ema}", f"video, {budget}, EMA {ema}")
        (found,) = (c["extrapolation"] for c in content["curves"] if c["name"] in names)
        assert found["times_largest_p"] == 3.0
        said = [float(number) for number in numbers(last.replace("±", " "))[:1]]
        said += [numbers(value)[0], *numbers(interval), numbers(gain)[0], *numbers(gains)]
        expected = [found["last_value"], found["map"], *found["interval"]]
        expected += [found["gain"], *found["gain_interval"]]
        assert said == pytest.approx(expected, abs=0.051)
