# SPDX-License-Identifier: Apache-2.0
"""The table of docs/reliability.md from the stored results: ``python tests/endurance/table.py``.

Of each kind of cases the newest results count; older ones stay in their files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "endurance"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- endurance: begin -->", "<!-- endurance: end -->"
_HEAD = ("part", "cases", "reached", "of", "right", "refused clearly", "lost", "measured")
#: In the order of the page; any other part follows.
_ORDER = ("studies", "trainings", "directories", "reader", "formats", "ops", "soak", "untrusted")


def newest(results: Path) -> list[dict[str, Any]]:
    """Returns the newest row of each kind of cases, with its part, date, commit and machine."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in content["kinds"]:
            facts = {key: content[key] for key in ("part", "date", "commits", "machine", "seed")}
            if row["tried"]:
                found[content["part"], row["name"]] = {**row, **facts, "file": path.name}
    order = {name: index for index, name in enumerate(_ORDER)}
    return sorted(found.values(), key=lambda row: order.get(row["part"], len(order)))


def _cells(row: Mapping[str, Any], before: str) -> tuple[str, ...]:
    lost = f"**{row['lost']:,}**" if row["lost"] else "0"
    measured = ", ".join(f"{name} {value:.3g}" for name, value in row["measured"].items())
    return (
        "" if row["part"] == before else f"[{row['part']}](results/endurance/{row['file']})",
        f"{row['what']}: {row['name']}",
        f"{row['tried']:,}",
        f"{row['goal']:,}",
        f"{row['done']:,}",
        f"{row['refused']:,}",
        lost,
        measured,
    )


def markdown(results: Path = RESULTS) -> str:
    """Returns the table, and below it what it was measured on."""
    rows = newest(results)
    lines = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    before = ""
    for row in rows:
        lines.append(f"| {' | '.join(_cells(row, before))} |".replace("  |", " |"))
        before = row["part"]
    short = [f"{row['part']} {row['name']}" for row in rows if row["tried"] < row["goal"]]
    lost = sum(row["lost"] for row in rows)
    machines = sorted(
        {f"{row['machine']['cores']} cores of an {row['machine']['cpu']}" for row in rows}
    )
    dates = sorted({row["date"] for row in rows})
    told = f"{lost:,} lost in {sum(row['tried'] for row in rows):,} cases"
    if short:
        told += f"; {len(short)} of {len(rows)} kinds have not reached the count of a full run yet"
    if rows:
        told += f". {', '.join(dates)}, {'; '.join(machines)}"
    return "\n".join([*lines, "", f"{told}."])


def shown(page: str) -> str:
    """Returns what stands between the markers of a page.

    Raises:
        ValueError: the markers are missing.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"{PAGE}: expected the markers {BEGIN} and {END}")
    return page.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def main() -> None:
    """Writes the table into the page, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--print", action="store_true", help="print it and write nothing")
    table = markdown()
    if parser.parse_args().print:
        print(table)
        return
    text = PAGE.read_text(encoding="utf-8")
    shown(text)
    head, tail = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
    PAGE.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
