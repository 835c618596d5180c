# SPDX-License-Identifier: Apache-2.0
"""Annotation files as they are, faults and all: for the validator, which counts the faults.

:func:`tal_fast.data.load_annotations` is the strict reader. This one gives every instance a place,
also one without numbers, and tells what the JSON parser would hide (a video listed twice).
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tal_fast.errors import DataError

__all__ = ["RawAnnotations", "RawInstance", "RawVideo", "read_raw_annotations"]


@dataclass(frozen=True)
class RawInstance:
    """One entry of a video's annotations.

    Attributes:
        position: in the file's list.
        label: the label, or None if there is no text.
        label_id: its number, or None.
        start: seconds, or None if there is no finite number.
        end: seconds, or None.
    """

    position: int
    label: str | None
    label_id: int | None
    start: float | None
    end: float | None


@dataclass(frozen=True)
class RawVideo:
    """One video of an annotation file.

    Attributes:
        name: its key.
        subset: its subset; empty if none.
        duration: seconds, or None if there is no positive number.
        fps: frames per second, or None.
        instances: its annotations.
    """

    name: str
    subset: str
    duration: float | None
    fps: float | None
    instances: tuple[RawInstance, ...]


@dataclass(frozen=True)
class RawAnnotations:
    """What a file holds.

    Attributes:
        path: the file.
        form: ``"database"`` (ActivityNet, ActionFormer, OpenTAD, TadTR) or ``"flat"`` (BMN,
            mmaction2).
        videos: in the order of the file.
        repeated: keys that the file holds more than once; only the last one's content counts.
    """

    path: str
    form: str
    videos: tuple[RawVideo, ...]
    repeated: tuple[str, ...] = field(default=())


def read_raw_annotations(
    path: str | os.PathLike[str], *, subsets: str | os.PathLike[str] | None = None
) -> RawAnnotations:
    """Reads an annotation file without judging its instances.

    Args:
        path: JSON of the form ``{"database": {video: {subset, duration, fps, annotations}}}``, or
            ``{video: {duration_second, duration_frame, annotations}}``.
        subsets: CSV with the columns ``video`` and ``subset``, for a file that names no subsets.

    Raises:
        DataError: if a file is missing, not such a file, or names no video.
    """
    name = os.fspath(path)
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) < len(items):
            seen: set[str] = set()
            for key, value in items:
                # Only videos: a repeated key of an instance shows in its content.
                if key in seen and isinstance(value, Mapping):
                    repeated.append(key)
                seen.add(key)
        return content

    try:
        content = json.loads(Path(name).read_bytes(), object_pairs_hook=pairs)
    except FileNotFoundError:
        raise DataError(f"{name}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{name}: expected an object of videos, got {type(content).__name__}")
    form = "database" if isinstance(content.get("database"), Mapping) else "flat"
    entries: Mapping[str, Any] = content["database"] if form == "database" else content
    if not entries or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise DataError(
            f"{name}: expected an object 'database' of videos, or an object of videos with "
            f"duration_second, got {sorted(content)[:5]}"
        )
    if form == "flat" and not all("duration_second" in entry for entry in entries.values()):
        without = next(k for k, entry in entries.items() if "duration_second" not in entry)
        raise DataError(f"{name}: video {without!r}: expected duration_second")
    table = {} if subsets is None else _read_subsets(os.fspath(subsets))
    videos = tuple(_video(str(key), entry, table) for key, entry in entries.items())
    return RawAnnotations(name, form, videos, tuple(repeated))


def _read_subsets(path: str) -> dict[str, str]:
    try:
        # utf-8-sig: spreadsheets begin their files with a byte order mark.
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            columns = [name.strip() for name in next(reader, [])]
            if columns.count("video") != 1 or columns.count("subset") != 1:
                raise DataError(
                    f"{path}: expected columns video and subset, got {', '.join(columns)}"
                )
            places = columns.index("video"), columns.index("subset")
            table: dict[str, str] = {}
            for row in reader:
                if not any(map(str.strip, row)):
                    continue
                if len(row) <= max(places):
                    raise DataError(
                        f"{path}: line {reader.line_num}: expected {len(columns)} columns, "
                        f"got {len(row)}"
                    )
                video, subset = (row[place].strip() for place in places)
                if table.setdefault(video, subset) != subset:
                    raise DataError(
                        f"{path}: line {reader.line_num}: video {video!r} is in subset {subset!r}, "
                        f"and in {table[video]!r} above"
                    )
            return table
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8, got {error}") from error


def _video(name: str, entry: Mapping[str, Any], subsets: Mapping[str, str]) -> RawVideo:
    duration = _number(entry.get("duration", entry.get("duration_second")))
    fps = _number(entry.get("fps"))
    frames = _number(entry.get("frame", entry.get("duration_frame")))
    if fps is None and frames is not None and duration:
        fps = frames / duration  # OpenTAD and BMN give the frames instead
    items = entry.get("annotations") or ()
    if not isinstance(items, Sequence) or isinstance(items, str):
        items = ()
    return RawVideo(
        name=name,
        subset=str(entry.get("subset") or subsets.get(name, "")),
        duration=duration if duration and duration > 0 else None,
        fps=fps if fps and fps > 0 else None,
        instances=tuple(_instance(i, item) for i, item in enumerate(items)),
    )


def _instance(position: int, item: Any) -> RawInstance:
    if not isinstance(item, Mapping):
        return RawInstance(position, None, None, None, None)
    label, number, segment = item.get("label"), item.get("label_id"), item.get("segment")
    edges: list[float | None] = [None, None]
    if isinstance(segment, Sequence) and not isinstance(segment, str) and len(segment) == 2:
        edges = [_number(segment[0]), _number(segment[1])]
    return RawInstance(
        position=position,
        label=label if isinstance(label, str) else None,
        label_id=number if isinstance(number, int) and not isinstance(number, bool) else None,
        start=edges[0],
        end=edges[1],
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None
