# SPDX-License-Identifier: Apache-2.0
"""Profiles side by side: trainings by step and epoch, predictions by length and minute of video.

Times of different machines compare machines. They are refused; where that is overruled, only shares
of each machine's own ceilings are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tal_fast.curves.figures import save_pictures
from tal_fast.data.files import check_writable, write_text_atomically
from tal_fast.errors import ConfigError, DataError, argument
from tal_fast.profiling.drawings import lengths_picture
from tal_fast.profiling.figures import csv_text, value_of
from tal_fast.profiling.prediction_profile import DISTURBING
from tal_fast.profiling.report import read_profile

__all__ = ["Comparison", "compare", "comparison_tables", "write_comparison"]

# What makes a machine another one. Threads are a choice, and told.
_MACHINE = ("cpu", "cores", "gpu", "isa", "torch")

_TRAINING: tuple[tuple[str, Any, bool], ...] = (
    ("ms/step", lambda p: value_of(p, "step", "wall"), False),
    ("CPU ms", lambda p: value_of(p, "step", "cpu"), False),
    ("clips/s", lambda p: _clips_per_second(p), False),
    ("s/epoch", lambda p: _epoch(p), False),
    ("MB read", lambda p: _scaled(p, 1e-6, "reading", "read"), False),
    ("peak MB", lambda p: _scaled(p, 1e-6, "memory", "peak"), False),
    ("saved MB", lambda p: _scaled(p, 1e-6, "memory", "saved"), False),
    ("GFLOP", lambda p: _scaled(p, 1e-9, "work", "flops"), False),
    ("GFLOP/s", lambda p: value_of(p, "work", "flops_rate"), False),
    ("% of product", lambda p: _scaled(p, 100.0, "work", "mfu"), True),
    ("% of memory", lambda p: _of_memory(p), True),
    ("% calling", lambda p: _scaled(p, 100.0, "work", "host"), True),
)
_PREDICTION: tuple[tuple[str, Any, bool], ...] = (
    ("padded", lambda e: e["padded"], True),
    ("network ms", lambda e: value_of(e, "network"), False),
    ("CPU ms", lambda e: value_of(e, "network_cpu"), False),
    ("candidates ms", lambda e: value_of(e, "candidates"), False),
    ("suppression ms", lambda e: value_of(e, "suppression"), False),
    ("GMAC", lambda e: _scaled(e, 1e-9, "macs"), True),
    ("GMAC/s", lambda e: value_of(e, "macs_rate"), False),
    ("% of product", lambda e: _scaled(e, 100.0, "peak_share"), True),
    ("MB", lambda e: _scaled(e, 1e-6, "memory"), False),
    ("ms/min of video", lambda e: value_of(e, "minute"), False),
    ("step ms", lambda e: value_of(e, "step"), False),
    ("step CPU ms", lambda e: value_of(e, "step_cpu"), False),
    ("step MB", lambda e: _scaled(e, 1e-6, "step_memory"), False),
    ("step GMAC", lambda e: _scaled(e, 1e-9, "step_macs"), True),
    ("step % of product", lambda e: _scaled(e, 100.0, "step_share"), True),
)


def _scaled(figure: Mapping[str, Any], scale: float, *path: str) -> float | None:
    value = value_of(figure, *path)
    return None if value is None else scale * value


def _clips_per_second(profile: Mapping[str, Any]) -> float | None:
    batch, wall = value_of(profile, "training", "batch"), value_of(profile, "step", "wall")
    return 1e3 * batch / wall if batch and wall else None


def _epoch(profile: Mapping[str, Any]) -> float | None:
    clips, rate = value_of(profile, "training", "clips_of_epoch"), _clips_per_second(profile)
    return clips / rate if clips and rate else None


def _of_memory(profile: Mapping[str, Any]) -> float | None:
    rate, best = value_of(profile, "work", "bytes_rate"), value_of(profile, "limits", "bytes")
    return 100.0 * rate / best if rate and best else None


def _is_disturbed(profile: Mapping[str, Any]) -> bool:
    if "phases" in profile:
        return bool(profile.get("disturbed"))
    others = value_of(profile, "disturbance", "others") or 0.0
    return bool(others > DISTURBING * profile.get("usable_cores", 1))


class Comparison:
    """Profiles by name, and whether their times may be compared.

    Args:
        profiles: name and content of each ``profile.json``.

    Attributes:
        profiles: the same.
        differences: what the machines differ in, as ``cpu: A; B``; empty for one machine.
        disturbed: names of profiles whose times others disturbed.
    """

    def __init__(self, profiles: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.profiles = list(profiles)
        self.differences: list[str] = []
        for key in _MACHINE:
            kinds = dict.fromkeys(
                str(own.get("environment", {}).get(key)) for _, own in self.profiles
            )
            if len(kinds) > 1:
                self.differences.append(f"{key}: {'; '.join(kinds)}")
        self.disturbed = [name for name, own in self.profiles if _is_disturbed(own)]

    @property
    def of_one_machine(self) -> bool:
        """Whether all were made on machines that are the same as far as profiles tell."""
        return not self.differences


def compare(folders: Sequence[str | Path], *, force: bool = False) -> Comparison:
    """Reads profiles to compare.

    Args:
        folders: of the profiles, two or more; their names are the last parts that differ.
        force: also those of different machines.

    Raises:
        ConfigError: fewer than two, one twice, or of different machines without ``force``.
        DataError: one cannot be read, or holds what another profiler found alone.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(paths) < 2:
        raise ConfigError(f"compare: expected two profiles or more, got {len(paths)}")
    if len(set(paths)) < len(paths):
        raise ConfigError("compare: expected different profiles, got one twice")
    comparison = Comparison(list(zip(_names(paths), map(read_profile, paths), strict=True)))
    for folder, (_, profile) in zip(folders, comparison.profiles, strict=True):
        if not {"phases", "lengths"} & profile.keys():
            raise DataError(f"{folder}: its profile has neither steps nor lengths to compare")
    if not force and not comparison.of_one_machine:
        raise ConfigError(
            "compare: the profiles are of different machines "
            f"({', '.join(comparison.differences)}): {argument('force', True)} compares their "
            "shares of each machine's ceilings"
        )
    return comparison


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the ends of paths, as long as they have to be to differ."""
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _training_rows(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    columns = [
        (title, value) for title, value, safe in _TRAINING if safe or comparison.of_one_machine
    ]
    names = ["profile", "model", "amp", "threads", *(title for title, _ in columns)]
    rows = []
    for name, profile in comparison.profiles:
        if "phases" not in profile:
            continue
        setting = profile.get("training", {})
        told = [setting.get(key) for key in ("model", "amp", "threads")]
        rows.append([name, *told, *(value(profile) for _, value in columns)])
    return names, rows


def _prediction_rows(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    columns = [
        (title, value) for title, value, safe in _PREDICTION if safe or comparison.of_one_machine
    ]
    names = ["rows", "profile", "model", "amp", "threads", *(title for title, _ in columns)]
    rows = []
    for name, profile in comparison.profiles:
        for entry in profile.get("lengths") or []:
            told = [profile["prediction"].get(key) for key in ("model", "amp", "threads")]
            rows.append([entry["rows"], name, *told, *(value(entry) for _, value in columns)])
    return names, sorted(rows, key=lambda row: row[0])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_common(
    names: list[str], rows: list[list[Any]]
) -> tuple[list[str], list[list[Any]], list[str]]:
    """Takes columns that nothing is in, and settings that are the same in all rows, out of a table.

    Returns:
        Names and rows that stay, and the common settings as a note.
    """
    same = [
        place
        for place, name in enumerate(names)
        if name in ("model", "amp", "threads") and len({row[place] for row in rows}) == 1
    ]
    told = [f"{names[place]} {rows[0][place]}" for place in same if rows[0][place] is not None]
    # A profile that is called like its model needs no second name.
    named = names.index("profile"), names.index("model")
    if all(row[named[0]] == row[named[1]] for row in rows):
        same.append(named[1])
    same += [place for place in range(len(names)) if all(row[place] is None for row in rows)]
    kept = [place for place in range(len(names)) if place not in same]
    common = [f"All: {', '.join(told)}."] if told else []
    return [names[i] for i in kept], [[row[i] for i in kept] for row in rows], common


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Returns trainings, and predictions by length, as far as there are any."""
    notes = []
    if not comparison.of_one_machine:
        notes.append(f"Of different machines ({', '.join(comparison.differences)}): no times.")
    if comparison.disturbed:
        notes.append(f"Disturbed by others: {', '.join(comparison.disturbed)}.")
    tables = []
    for names, rows in (_training_rows(comparison), _prediction_rows(comparison)):
        if not rows:
            continue
        names, rows, common = _without_common(names, rows)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption_justify="left",
                      caption="\n".join([*common, *notes]) or None)  # fmt: skip
        for name in names:
            left = name in ("profile", "model", "amp")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(_cell, row))
        tables.append(table)
    return tables


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Writes the tables as CSV, and time, arithmetic and memory over length as a picture.

    Args:
        comparison: to write.
        out: directory, made when missing.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: a file cannot be written.
    """
    check_writable(out)
    files = []
    for name, (titles, rows) in (
        ("trainings", _training_rows(comparison)),
        ("predictions", _prediction_rows(comparison)),
    ):
        if rows:
            files.append(write_text_atomically(out / f"{name}.csv", csv_text([titles, *rows])))
    if comparison.of_one_machine:
        for name, training in (("lengths", False), ("training", True)):
            picture = lengths_picture(comparison.profiles, training=training)
            if picture is not None:
                files += save_pictures(picture, out, name)
    return files
