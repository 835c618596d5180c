# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/adaptive-studies.md are those of recorded replays, which can be repeated."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tal_fast.study.adaptive.targets import parse_target

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/adaptive"
PAGE = (ROOT / "docs/adaptive-studies.md").read_text("utf-8")


def rows_of_page() -> dict[tuple[str, str], list[float]]:
    """(curve, target) -> the numbers of the row."""
    found = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 4 and "% (" in cells[2]:
            numbers = [float(x) for cell in cells[2:] for x in re.findall(r"[\d.]+", cell)]
            found[cells[0], cells[1]] = numbers
    return found


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_table(path):
    page = rows_of_page()
    for row in json.loads(path.read_text())["rows"]:
        said = page[row["curve"], row["target"]]
        share = row["share_of_seconds"]
        kept = [100 * share["median"], 100 * share["q25"], 100 * share["q75"], row["trials"]]
        kept += [100 * row["ends"].get("known", 0) / row["replays"], 100 * row["agrees"]]
        kept += [100 * row[key] for key in ("holds", "made_grids_agree") if key in row]
        assert said == pytest.approx(kept, abs=0.501), row["curve"]
        assert row["replays"] >= 200


def test_a_replay_can_be_repeated(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import replay_studies as replays

    from tal_fast.curves import read_curve

    recorded = json.loads((RESULTS / "level.json").read_text())["rows"][0]
    study = ROOT / "docs/results/hapt"
    world = replays.World.of(study, read_curve(study), 1.0)
    target = parse_target(recorded["target"])
    row = replays.row_of(target, [world], replays=recorded["replays"], repetitions=5, most=5)
    for key in ("share_of_seconds", "trials", "ends", "agrees", "holds", "seconds_of_grid"):
        assert row[key] == pytest.approx(recorded[key]), key
    sys.modules.pop("replay_studies")
