# SPDX-License-Identifier: Apache-2.0
"""Trainings of studies in which the distance to a start or an end stayed 0, and what that cost.

No timing. A distance that its ReLU holds at 0 for every point keeps the loss of the regression
(1 - DIoU) near that of a segment which reaches to one side alone; where both learn, it falls far
below. Only trainings with equal steps are looked at: short ones end high in any case.

    python benchmarks/dead_offsets.py --collect results/demohard-temporalmaxer …
    python benchmarks/dead_offsets.py --page docs/four-models.md

The first writes the table of all trainings from the studies' ``trials.csv`` and ``log.csv``, the
second the summary of that table between the page's markers.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from model_studies import MODELS, table

__all__ = ["Training", "collect", "read", "summary", "update_page"]

TABLE = Path("docs/results/four-models/offsets.csv")
DEAD = 0.5  # loss of the regression in the last epoch
_MARK = re.compile(r"(<!-- dead offsets -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Training:
    """One training with equal steps.

    Attributes:
        model: key of the model.
        start: ``model.offset_start``.
        p: share of the data.
        repetition: number of the draw.
        regression: loss of the regression in the last epoch.
        average_map: of the last weights, in points.
    """

    model: str
    start: float
    p: float
    repetition: int
    regression: float
    average_map: float

    @property
    def is_dead(self) -> bool:
        """Whether a distance never learned."""
        return self.regression > DEAD


def collect(studies: Sequence[Path]) -> list[Training]:
    """Reads the trainings with equal steps of some studies.

    Args:
        studies: folders that ``tal-fast study run`` wrote.
    """
    found = []
    for study in studies:
        with open(study / "trials.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["ema"] == "off"]
        for row in rows:
            folder = study / "trials" / row["trial"]
            if row["budget"] != "steps":
                continue
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            with open(folder / "log.csv", encoding="utf-8", newline="") as file:
                last = list(csv.DictReader(file))[-1]
            found.append(
                Training(
                    config["name"].removesuffix("-small"),
                    float(config["model"].get("offset_start", 0.0)),
                    float(row["p"]),
                    int(row["repetition"]),
                    round(float(last["regression"]), 4),
                    round(100 * float(row["average_map"]), 2),
                )
            )
    return found


def write(path: Path, trainings: Sequence[Training]) -> None:
    """Writes them as CSV."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Training.__annotations__)
        writer.writerows(
            [getattr(one, key) for key in Training.__annotations__] for one in trainings
        )


def read(path: Path = TABLE) -> list[Training]:
    """Reads what :func:`write` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            Training(
                row["model"], float(row["start"]), float(row["p"]), int(row["repetition"]),
                float(row["regression"]), float(row["average_map"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


def summary(trainings: Sequence[Training]) -> str:
    """Returns per model and start how many were dead, and their mAP with a higher start."""
    rows = []
    for model, start in sorted({(one.model, one.start) for one in trainings}):
        own = [one for one in trainings if (one.model, one.start) == (model, start)]
        dead = [one for one in own if one.is_dead]
        pairs = [
            f"{100 * one.p:g} %: {one.average_map:.1f} ({other.average_map:.1f})"
            for one in dead
            for other in trainings
            if (other.model, other.p, other.repetition) == (model, one.p, one.repetition)
            and other.start > start
        ]
        rows.append(
            [MODELS[model], f"{start:g}", f"{len(dead)} of {len(own)}", ", ".join(pairs) or ""]
        )
    return table(
        ["model", "`offset_start`", "dead", "mAP of a dead one (same draw, higher start)"], rows
    )


def update_page(text: str, trainings: Sequence[Training]) -> str:
    """Returns a page with its table made anew."""
    return _MARK.sub(lambda match: f"{match[1]}{summary(trainings)}\n{match[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", type=Path, nargs="+", metavar="STUDY")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if arguments.collect:
        write(arguments.table, collect(arguments.collect))
    trainings = read(arguments.table)
    if arguments.page is None:
        print(summary(trainings))
    else:
        page = arguments.page.read_text(encoding="utf-8")
        arguments.page.write_text(update_page(page, trainings), encoding="utf-8")


if __name__ == "__main__":
    main()
