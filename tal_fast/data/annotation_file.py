# SPDX-License-Identifier: Apache-2.0
"""The one reader of annotation files: what a file says, before anyone judges it.

What it finds has three views: the targets of training (:func:`tal_fast.data.load_annotations`), the
ground truth of an evaluation (:func:`tal_fast.evaluation.read_ground_truth`) and the findings of
the validator. What a file must be to be one is decided here; which faulty value is an error, and
how that is told, is the view's.
"""

from __future__ import annotations

import csv
import math
import os
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tal_fast.data.annotation_values import finite_or_none, number, plain, subset_name
from tal_fast.data.class_ids import ClassIds, collect_class_ids
from tal_fast.data.json_files import (
    parse_with_repeats,
    read_bytes,
    repeated_keys,
    without_collector,
)
from tal_fast.data.text_files import open_table
from tal_fast.errors import DataError, both_ways, counted, listing, os_reason
from tal_fast.typing import FilePath

__all__ = [
    "TABLES",
    "AnnotatedInstance",
    "AnnotatedVideo",
    "AnnotationFile",
    "Bare",
    "VideoFault",
    "prepare_command",
    "read_annotation_file",
]

#: Whether a file may be an object of videos without ``database`` around it (BMN, mmaction2): not at
#: all, if each video has a ``duration_second``, or in any case.
Bare = Literal["no", "timed", "any"]

#: No ``duration`` > 0; a faulty ``fps``; ``annotations`` that are no list; null in their place.
VideoFault = Literal["duration", "fps", "annotations", "null annotations"]


# Endings of files that hold segments as `prepare csv` reads them.
TABLES = (".csv", ".tsv")


def prepare_command(segments: str = "segments.csv", features: str = "FOLDER") -> str:
    """Returns how to make a data directory of a table of segments and a folder of features.

    Args:
        segments: the table.
        features: the folder.
    """
    words = ["--segments", segments, "--features", features, "--rate", "ROWS_PER_SECOND"]
    return both_ways(
        f"tal-fast prepare csv {shlex.join(words)} --out data/mine",
        "tal_fast.data.prepare.prepare_csv",
    )


class AnnotatedInstance(NamedTuple):
    """One entry of a video's annotations.

    Attributes:
        position: in the file's list.
        label: the label; None if there is no text.
        label_id: its number; None if there is no integer.
        segment: start and end in seconds, as they are: reversed, NaN or infinite, too; None if
            there are not two numbers.
        given: the entry of the file, to be shown where it is at fault.
        line: of the table that it came from, from 1; None where it came from none.
    """

    position: int
    label: str | None
    label_id: int | None
    segment: tuple[float, float] | None
    given: Any
    line: int | None = None

    @property
    def place(self) -> str:
        """Where it stands, for messages: the line of a table, else the position in the list."""
        return f"annotation {self.position}" if self.line is None else f"line {self.line}"

    @property
    def span(self) -> tuple[float, float] | None:
        """The segment if it is finite."""
        return self.segment if self.segment and all(map(math.isfinite, self.segment)) else None

    def value(self, key: str) -> Any:
        """Returns what the file has under a key, in Python's own types; None if nothing."""
        return plain(self.given.get(key)) if isinstance(self.given, Mapping) else None


class AnnotatedVideo(NamedTuple):
    """One video of an annotation file.

    Attributes:
        name: its key.
        subset: its subset; empty if none.
        duration: seconds (``duration``, else ``duration_second``); None if not a number > 0.
        fps: frames per second, as given; None if not a number > 0.
        rate: ``fps``, or what the number of frames (``frame``, ``duration_frame``) makes of the
            duration where there is none.
        instances: its annotations.
        faults: what is wrong with the entry itself -> in words, what was expected and what it is.
    """

    name: str
    subset: str
    duration: float | None
    fps: float | None
    rate: float | None
    instances: tuple[AnnotatedInstance, ...]
    faults: Mapping[VideoFault, str]


@dataclass(frozen=True)
class AnnotationFile:
    """What an annotation file holds.

    Attributes:
        origin: the file, for messages.
        videos: in the order of the file.
        listed: its own list ``classes``; None without one.
        repeated: videos that it holds more than once; only the last one's content counts.
        listed_fault: what is wrong with ``classes``; empty if nothing.
    """

    origin: str
    videos: tuple[AnnotatedVideo, ...]
    listed: tuple[str, ...] | None = None
    repeated: tuple[str, ...] = ()
    listed_fault: str = ""

    def refuse(self, *faults: VideoFault) -> None:
        """Checks that no video has one of some faults.

        Raises:
            DataError: naming file and video.
        """
        for video in self.videos:
            for fault, words in video.faults.items():
                if fault in faults:
                    raise DataError(f"{self.origin}: video {video.name!r}: {words}")

    def labels(self, ignored: Collection[str] = ()) -> set[str]:
        """Returns all labels but those that are ignored."""
        names = {item.label for video in self.videos for item in video.instances}
        return {label for label in names if label is not None and label not in ignored}

    def label_counts(self, ignored: Collection[str] = ()) -> Counter[str]:
        """Returns how often each label occurs, but for those that are ignored."""
        found = Counter(item.label for video in self.videos for item in video.instances)
        return Counter(
            {name: n for name, n in found.items() if name is not None and name not in ignored}
        )

    def class_ids(
        self, ignored: Collection[str] = (), given: Sequence[str] | None = None
    ) -> ClassIds:
        """Returns the numbers of the classes that all annotations together give.

        Args:
            ignored: labels that are no classes.
            given: class names in order, from elsewhere.
        """
        rows = (
            (video.name, item.position, item.label, item.label_id)
            for video in self.videos
            for item in video.instances
            if item.label is not None and item.label not in ignored
        )
        return collect_class_ids(rows, given, self.listed)


def read_annotation_file(
    source: FilePath | Mapping[str, Any],
    what: str = "annotations",
    *,
    bare: Bare = "no",
    subsets: FilePath | None = None,
    allow_repeated: bool = False,
) -> AnnotationFile:
    """Reads an annotation file without judging its instances.

    Args:
        source: path of a JSON file, plain or gzipped, of the form ``{"database": {video: {subset,
            duration, fps, annotations}}}``, or its content, in which numbers and lists may be
            NumPy's; or without ``database`` around it, as ``bare`` allows.
        what: what it is, for messages.
        bare: which files without ``database`` are taken.
        subsets: CSV with the columns ``video`` and ``subset``, for a file that names no subsets;
            UTF-8 with or without a byte order mark.
        allow_repeated: take the last of several entries of one video and list it in ``repeated``,
            where it is an error else.

    Raises:
        DataError: if a file is missing, not such a file, names no video, or holds a key twice.
    """
    origin, content, repeated = _read(source, what, allow_repeated)
    entries = _entries(origin, content, bare)
    table = {} if subsets is None else _read_subsets(os.fspath(subsets))
    with without_collector():
        videos = tuple([_video(origin, str(key), entry, table) for key, entry in entries.items()])
    listed, listed_fault = _listed_classes(content)
    return AnnotationFile(origin, videos, listed, repeated, listed_fault)


def _read(source: Any, what: str, allow_repeated: bool) -> tuple[str, Any, tuple[str, ...]]:
    """Returns (name for messages, content, repeated videos)."""
    if isinstance(source, Mapping):
        return what, source, ()
    origin, raw = read_bytes(source, what)
    if origin.lower().endswith(TABLES):
        raise DataError(
            f"{origin}: expected {what} as JSON or a data directory, got a table; make a data "
            f"directory of it: {prepare_command(origin)}"
        )
    content, repeats = parse_with_repeats(origin, raw)
    refused = [repeat for repeat in repeats if not (allow_repeated and repeat.video)]
    if refused:
        raise repeated_keys(origin, refused)
    return origin, content, tuple(repeat.key for repeat in repeats)


def _entries(origin: str, parsed: Any, bare: Bare) -> Mapping[str, Any]:
    """Returns the videos of a file."""
    if not isinstance(parsed, Mapping):
        raise DataError(f"{origin}: expected an object of videos, got {type(parsed).__name__}")
    without = bare != "no" and "database" not in parsed
    entries = parsed if without else parsed.get("database")
    timed = bare == "timed" and without
    if timed and not (parsed and all(isinstance(entry, Mapping) for entry in parsed.values())):
        entries = None
    if not isinstance(entries, Mapping):
        form = "with a 'database' object"
        if bare == "timed":
            form = "'database' of videos, or an object of videos with duration_second"
        raise DataError(
            f"{origin}: expected an object {form}, got no object 'database' among "
            f"{sorted(map(str, parsed))[:5]}"
        )
    if not entries:
        raise DataError(f"{origin}: expected at least one video, got an empty database")
    for key, entry in entries.items() if timed else ():
        if "duration_second" not in entry:
            raise DataError(f"{origin}: video {key!r}: expected duration_second")
    return entries


def _listed_classes(parsed: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, str]:
    """Returns the list ``classes``, and what is wrong with it."""
    names = plain(parsed.get("classes"))
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return tuple(dict.fromkeys(map(str, names))), ""
    if names is None or isinstance(names, Mapping):  # some keep a tree of classes there
        return None, ""
    return None, f"expected 'classes' as a list of names, got {names!r:.60}"


def _video(origin: str, name: str, entry: Any, subsets: Mapping[str, str]) -> AnnotatedVideo:
    if type(entry) is not dict and not isinstance(entry, Mapping):
        kind = "list " if isinstance(entry, list) else ""
        raise DataError(f"{origin}: video {name!r}: expected an object, got {kind}{entry!r:.60}")
    subset = entry.get("subset")
    if type(subset) is not str:
        subset = subset_name(f"{origin}: video {name!r}", entry)
    duration, fps, rate, faults = _times(entry)
    items = entry.get("annotations", ())
    if type(items) is not list:
        items = plain(items)
        if not isinstance(items, Sequence) or isinstance(items, str):
            fault: VideoFault = "null annotations" if items is None else "annotations"
            faults[fault] = f"expected a list of annotations, got {type(items).__name__}"
            items = ()
    return AnnotatedVideo(
        name,
        subset or subsets.get(name, ""),
        duration,
        fps,
        rate,
        tuple([_instance(i, item) for i, item in enumerate(items)]),
        faults,
    )


def _times(
    entry: Mapping[str, Any],
) -> tuple[float | None, float | None, float | None, dict[VideoFault, str]]:
    """Returns duration, fps, rate and faults."""
    faults: dict[VideoFault, str] = {}
    given, frames_per_second = entry.get("duration"), entry.get("fps")
    duration = _positive(given)
    if duration is None:
        faults["duration"] = f"expected a duration > 0 in seconds, got {given!r:.60}"
        if "duration" not in entry:
            duration = _positive(entry.get("duration_second"))
    fps = rate = _positive(frames_per_second)
    if fps is None and frames_per_second is not None:
        faults["fps"] = f"expected fps > 0, got {frames_per_second!r:.60}"
    if duration is not None and finite_or_none(frames_per_second) is None:
        frames = _positive(entry.get("frame", entry.get("duration_frame")))
        rate = None if frames is None else frames / duration
    return duration, fps, rate, faults


def _positive(value: Any) -> float | None:
    finite = finite_or_none(value)
    return finite if finite is not None and finite > 0 else None


def _instance(position: int, item: Any) -> AnnotatedInstance:
    # What JSON gives is told by its type alone: there are many of these.
    if type(item) is not dict and not isinstance(item, Mapping):
        return AnnotatedInstance(position, None, None, None, item)
    label, label_id, segment = item.get("label"), item.get("label_id"), item.get("segment")
    if type(label) is not str:
        label = plain(label)
        label = str(label) if isinstance(label, str) else None
    if type(label_id) is not int:
        label_id = plain(label_id)
        label_id = label_id if type(label_id) is int else None
    if type(segment) is list and list(map(type, segment)) == [float, float]:
        return AnnotatedInstance(position, label, label_id, (segment[0], segment[1]), item)
    return AnnotatedInstance(position, label, label_id, _segment(plain(segment)), item)


def _segment(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    start, end = number(value[0]), number(value[1])
    return None if start is None or end is None else (start, end)


def _read_subsets(path: str) -> dict[str, str]:
    try:
        with open_table(path) as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [[cell.strip() for cell in row] for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
    except csv.Error as error:
        raise DataError(f"{path}: expected CSV, got {error}") from error
    columns = rows[0] if rows else []
    if "video" not in columns or "subset" not in columns:
        raise DataError(
            f"{path}: line 1: expected the names of columns, video and subset among them, got "
            f"{', '.join(columns)}"
        )
    video, subset = columns.index("video"), columns.index("subset")
    table: dict[str, str] = {}
    faults = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if len(row) <= max(video, subset):
            faults.append(f"row {line}: expected {counted(len(columns), 'column')}, got {len(row)}")
        elif table.setdefault(row[video], row[subset]) != row[subset]:
            faults.append(
                f"row {line}: video {row[video]!r} is in subset {row[subset]!r}, above it is in "
                f"{table[row[video]]!r}"
            )
    if faults:
        raise DataError(f"{path}: {listing(faults)}")
    return table
