# SPDX-License-Identifier: Apache-2.0
"""What ``make gpu-check`` found: its file, and tables that compare it with predictions and goals.

``python benchmarks/gpu_report.py FILE...`` prints the tables of one or more reports, so that those
of both calls are read as one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "PREDICTIONS",
    "compared",
    "counters",
    "model_error",
    "read_predictions",
    "table",
    "write_json",
]

PREDICTIONS = Path(__file__).with_name("gpu_predictions.json")
_NUMBERS = ("floor_us", "must_us", "aim_us")


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is whole at every moment: the old content, then the new."""
    text = json.dumps(content, indent=1) + "\n"
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


# ---- predictions and goals ---------------------------------------------------------------------


def read_predictions(path: Path = PREDICTIONS) -> dict[str, Any]:
    """Returns what is predicted of the benchmark's cases and wanted of them.

    ``{"source": text, "device": text, "rows": [...]}``. A row has ``op`` and ``case`` of the
    benchmark, or ``minus`` too: then it is about the difference of two cases (a backward pass is
    forward and backward without the forward). ``predicted_us`` is [least, most]; ``must_us``,
    ``aim_us``, ``floor_us`` and ``limiter`` may be null.

    Raises:
        ValueError: the file has another form; file and row are named.
    """
    if not path.exists():
        return {"source": f"{path.name} is absent", "device": None, "rows": []}
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        rows = found["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected JSON with 'source' and 'rows', got {error!r}") from None
    if not isinstance(found.get("source"), str):
        raise ValueError(f"{path}: expected a 'source' that says where the predictions come from")
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        for key in ("op", "case"):
            if not isinstance(row.get(key), str):
                raise ValueError(f"{where}: expected {key} to be a text, got {row.get(key)!r}")
        bounds = row.get("predicted_us")
        if bounds is not None and not (
            isinstance(bounds, list) and len(bounds) == 2 and 0 < bounds[0] <= bounds[1]
        ):
            raise ValueError(f"{where}: expected predicted_us to be [least, most], got {bounds!r}")
        for key in _NUMBERS:
            value = row.get(key)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{where}: expected {key} above 0 or null, got {value!r}")
    return found


def compared(rows: Iterable[Mapping[str, Any]], predictions: Mapping[str, Any]) -> list[Any]:
    """Returns a dict per prediction: its own entries, ``measured_us``, ``times`` and ``reached``.

    Args:
        rows: of the benchmark, in the order in which they were measured; the last one counts.
        predictions: of :func:`read_predictions`.

    Returns:
        ``measured_us``: graph time, or event time of what cannot be captured; None where it was not
        measured. ``times``: measured over the nearer bound of the prediction, 1 within it.
        ``reached``: ``aim``, ``must``, ``missed``, or empty without goal or time.
    """
    times: dict[tuple[str, str], float] = {}
    for row in rows:
        value = row.get("graph_us") or row.get("event_us")
        if row["name"] == "tal_fast" and value is not None:
            times[row["op"], row["case"]] = value
    found = []
    for row in predictions["rows"]:
        measured = times.get((row["op"], row["case"]))
        if row.get("minus") is not None:
            without = times.get((row["op"], row["minus"]))
            measured = None if measured is None or without is None else measured - without
        found.append(
            {
                **row,
                "measured_us": measured,
                "times": _times(measured, row.get("predicted_us")),
                "reached": _reached(measured, row.get("must_us"), row.get("aim_us")),
            }
        )
    return found


def model_error(rows: Iterable[Mapping[str, Any]]) -> str:
    """Says how far the predictions were off: measured time over the nearer bound, 1 within both.

    Args:
        rows: of :func:`compared`.
    """
    found = [row["times"] for row in rows if row["times"] is not None]
    if not found:
        return "error of the model: nothing was measured that is predicted"
    mean = math.exp(sum(math.log(max(times, 1e-9)) for times in found) / len(found))
    within = sum(times == 1 for times in found)
    return (
        f"error of the model: of {len(found)} predictions {within} hold; measured over the nearer "
        f"bound {mean:.2f} in the geometric mean, {min(found):.2f} to {max(found):.2f}"
    )


def _times(measured: float | None, bounds: Sequence[float] | None) -> float | None:
    if measured is None or bounds is None:
        return None
    return measured / min(max(measured, bounds[0]), bounds[1])


def _reached(measured: float | None, must: float | None, aim: float | None) -> str:
    if measured is None or (must is None and aim is None):
        return ""
    if aim is not None and measured <= aim:
        return "aim"
    return "must" if measured <= (math.inf if must is None else must) else "missed"


# ---- Nsight Compute ----------------------------------------------------------------------------


def counters(output: str) -> list[dict[str, Any]]:
    """Reads the CSV that ``ncu --csv`` prints among the program's own output.

    Returns:
        A dict per launch, ``kernel`` and its counters by name; numbers as ncu gave them.
    """
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if first is None:
        return []
    launches: dict[str, dict[str, Any]] = {}
    table = [lines[first], *(line for line in lines[first + 1 :] if line.startswith('"'))]
    for row in csv.DictReader(table):
        name, value = row.get("Metric Name"), row.get("Metric Value")
        if row.get("ID") is None or name is None or value is None:
            continue
        entry = launches.setdefault(row["ID"], {"kernel": row.get("Kernel Name", "")[:200]})
        try:
            entry[f"{name} [{row.get('Metric Unit', '')}]"] = float(value.replace(",", ""))
        except ValueError:
            entry[name] = value
    return list(launches.values())


# ---- tables ------------------------------------------------------------------------------------


def _show(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Returns what to read first: the steps, the rows of the benchmark, predictions and goals."""
    lines = []
    for report in reports:
        facts = report["machine"]
        lines.append(
            f"{facts.get('device') or 'no GPU'}, commit {facts.get('commit')}, {facts.get('date')}"
        )
        lines.append(f"{'step':16} {'status':10} {'seconds':>8}  problem")
        for entry in report["steps"]:
            problem = entry.get("problem") or ""
            lines.append(
                f"{entry['step']:16} {entry['status']:10} {entry['seconds']:8.1f}  {problem}"
            )
        lines.append("")
    benches = [bench for report in reports for bench in report["benches"].values()]
    rows = [row for bench in benches for row in bench["rows"]]
    if rows:
        lines.append(
            f"{'op':18} {'case':44} {'who':28} {'event us':>10} {'graph us':>10} {'of floor':>9} "
            f"{'ratio':>7} {'graphed':>8}"
        )
    for row in rows:
        lines.append(
            f"{row['op']:18} {row['case']:44} {row['name']:28} {_show(row['event_us']):>10} "
            f"{_show(row['graph_us']):>10} {_show(row['share_of_floor'], '.0%'):>9} "
            f"{_show(row['ratio_event'], '.1f'):>7} {_show(row['ratio_graph'], '.1f'):>8}"
            + (f"  {row['error']}" if row["error"] else "")
        )
    for bench in benches:
        lines += [f"no time was left for {case}" for case in bench.get("left_out", ())]
    return "\n".join([*lines, "", *_goals(rows)])


def _goals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    predictions = read_predictions()
    if not predictions["rows"]:
        return [f"no predictions: {predictions['source']}"]
    lines = [
        f"predictions for {predictions.get('device')}: {predictions['source']}",
        f"{'op':20} {'case':40} {'us':>8} {'predicted':>11} {'times':>6} {'floor':>6} {'must':>6} "
        f"{'aim':>6} {'reached':8} limiter",
    ]
    found = compared(rows, predictions)
    for row in found:
        bounds = row.get("predicted_us")
        predicted = "-" if bounds is None else "-".join(f"{b:g}" for b in dict.fromkeys(bounds))
        case = row["case"] if row.get("minus") is None else f"{row['case']} - {row['minus']}"
        lines.append(
            f"{row['op']:20} {case:40} {_show(row['measured_us']):>8} {predicted:>11} "
            f"{_show(row['times'], '.2f'):>6} {_show(row.get('floor_us')):>6} "
            f"{_show(row.get('must_us')):>6} {_show(row.get('aim_us')):>6} {row['reached']:8} "
            f"{row.get('limiter') or ''}"
        )
    return [*lines, model_error(found)]


def main() -> int:
    """Prints the tables of reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path)
    arguments = parser.parse_args()
    print(table([json.loads(path.read_text("utf-8")) for path in arguments.reports]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
