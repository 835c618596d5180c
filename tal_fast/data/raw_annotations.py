# SPDX-License-Identifier: Apache-2.0
"""Annotation files as they are, faults and all: for the validator, which counts the faults.

:func:`tal_fast.data.load_annotations` is the strict reader. This one gives every instance a place,
also one without numbers, and tells what the JSON parser would hide (a video listed twice).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tal_fast.data.annotation_values import finite_or_none, subset_name
from tal_fast.data.json_files import parse_with_repeats, read_bytes, repeated_keys
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
        repeated: videos that the file holds more than once; only the last one's content counts.
    """

    path: str
    form: str
    videos: tuple[RawVideo, ...]
    repeated: tuple[str, ...] = field(default=())


def read_raw_annotations(
    path: str | os.PathLike[str],
    *,
    subsets: str | os.PathLike[str] | None = None,
    allow_repeated: bool = False,
) -> RawAnnotations:
    """Reads an annotation file without judging its instances.

    Args:
        path: JSON of the form ``{"database": {video: {subset, duration, fps, annotations}}}``, or
            ``{video: {duration_second, duration_frame, annotations}}``; plain or gzipped.
        subsets: CSV with the columns ``video`` and ``subset``, for a file that names no subsets;
            UTF-8 with or without a byte order mark.
        allow_repeated: take the last of several entries of one video and list it in ``repeated``,
            where it is an error else.

    Raises:
        DataError: if a file is missing, not such a file, names no video, or holds a key twice.
    """
    name, text = read_bytes(path, "annotations")
    content, repeats = parse_with_repeats(name, text)
    refused = [repeat for repeat in repeats if not (allow_repeated and repeat.video)]
    if refused:
        raise repeated_keys(name, refused)
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
    videos = tuple(
        _video(f"{name}: video {key!r}", str(key), entry, table) for key, entry in entries.items()
    )
    return RawAnnotations(name, form, videos, tuple(repeat.key for repeat in repeats))


def _read_subsets(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [[cell.strip() for cell in row] for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8, got {error}") from error
    columns = rows[0] if rows else []
    if "video" not in columns or "subset" not in columns:
        raise DataError(f"{path}: expected columns video and subset, got {', '.join(columns)}")
    video, subset = columns.index("video"), columns.index("subset")
    table: dict[str, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if len(row) <= max(video, subset):
            raise DataError(f"{path}: row {line}: expected {len(columns)} columns, got {len(row)}")
        if table.setdefault(row[video], row[subset]) != row[subset]:
            raise DataError(
                f"{path}: row {line}: video {row[video]!r} is in subset {row[subset]!r}, above it "
                f"is in {table[row[video]]!r}"
            )
    return table


def _video(where: str, name: str, entry: Mapping[str, Any], subsets: Mapping[str, str]) -> RawVideo:
    duration = finite_or_none(entry.get("duration", entry.get("duration_second")))
    fps = finite_or_none(entry.get("fps"))
    frames = finite_or_none(entry.get("frame", entry.get("duration_frame")))
    if fps is None and frames is not None and duration:
        fps = frames / duration  # OpenTAD and BMN give the frames instead
    items = entry.get("annotations") or ()
    if not isinstance(items, Sequence) or isinstance(items, str):
        items = ()
    return RawVideo(
        name=name,
        subset=subset_name(where, entry) or subsets.get(name, ""),
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
        edges = [finite_or_none(segment[0]), finite_or_none(segment[1])]
    return RawInstance(
        position=position,
        label=label if isinstance(label, str) else None,
        label_id=number if isinstance(number, int) and not isinstance(number, bool) else None,
        start=edges[0],
        end=edges[1],
    )
