# SPDX-License-Identifier: Apache-2.0
"""Annotation files of the form that ActionFormer and OpenTAD write, checked segment by segment.

The form is ``{"database": {video: {"subset", "duration", "fps", "annotations": [{"segment": [start,
end], "label", "label_id"}]}}}`` with segments in seconds. Nothing is repaired silently: a faulty
segment is an error that names file, video and position, unless the caller asks for another rule.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tal_fast.data.files import write_text_atomically
from tal_fast.errors import ConfigError, DataError, nearest

__all__ = [
    "AnnotationReport",
    "Annotations",
    "OutOfRange",
    "Video",
    "load_annotations",
    "save_annotations",
]

OutOfRange = Literal["error", "clamp", "keep"]

# Two decimals are usual for durations while segments come from frame counts: a segment that ends
# within this of its video's end (s) is inside it.
_TOLERANCE = 1e-6
_SHOWN = 5


@dataclass(frozen=True)
class Video:
    """One video and its instances.

    Attributes:
        name: key of the video in the annotation file and stem of its feature file.
        subset: subset that the annotation file puts it in, for example ``"training"``.
        duration: length in seconds.
        fps: frames per second, or None when the file gives none.
        segments: float64 [N, 2], start and end in seconds, in the order of the file.
        labels: int64 [N], index into :attr:`Annotations.classes`.
    """

    name: str
    subset: str
    duration: float
    fps: float | None
    segments: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class AnnotationReport:
    """What :func:`load_annotations` counted besides the instances it kept.

    Attributes:
        out_of_range: segments that start before 0 or end after their video.
        clamped: those of them that were cut to the video (``out_of_range="clamp"``).
        dropped: those of them that lay outside it altogether.
        ignored: segments whose label was in ``ignore_labels``.
        examples: the first few of them, in words.
    """

    out_of_range: int = 0
    clamped: int = 0
    dropped: int = 0
    ignored: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """Videos with their instances, and the classes that labels index.

    Attributes:
        videos: by name, in the order of the file.
        classes: class names; a label is an index into it.
        report: what was counted while loading.
    """

    videos: dict[str, Video]
    classes: tuple[str, ...]
    report: AnnotationReport = field(default_factory=AnnotationReport)

    @property
    def num_instances(self) -> int:
        """Number of instances over all videos."""
        return sum(len(video.labels) for video in self.videos.values())

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets, in order of appearance."""
        return tuple(dict.fromkeys(video.subset for video in self.videos.values()))

    def subset(self, name: str) -> Annotations:
        """Returns the videos of one subset, with the same classes.

        Raises:
            DataError: if no video is in that subset.
        """
        chosen = {key: video for key, video in self.videos.items() if video.subset == name}
        if not chosen:
            known = ", ".join(repr(s) for s in self.subsets)
            raise DataError(
                f"annotations: expected a subset among {known}, got {name!r}"
                f"{nearest(name, self.subsets)}"
            )
        return Annotations(chosen, self.classes)

    def select(self, names: Iterable[str]) -> Annotations:
        """Returns the named videos in the order given, with the same classes.

        Raises:
            DataError: if a name is not annotated.
        """
        chosen: dict[str, Video] = {}
        for name in names:
            if name not in self.videos:
                raise DataError(
                    f"annotations: no video {name!r} among {len(self.videos)}"
                    f"{nearest(name, self.videos)}"
                )
            chosen[name] = self.videos[name]
        return Annotations(chosen, self.classes)


def load_annotations(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    classes: Sequence[str] | None = None,
    out_of_range: OutOfRange = "error",
    ignore_labels: Collection[str] = (),
) -> Annotations:
    """Reads and checks an annotation file.

    Args:
        source: path of a JSON file, or its content.
        classes: names in the order of the labels. Default: ordered by ``label_id`` when every
            annotation carries one, else sorted by name.
        out_of_range: what to do with a segment that starts before 0 or ends after its video:
            ``"error"``, ``"clamp"`` it to the video (and drop it when nothing is left), or
            ``"keep"`` it as it is. All of them are counted in ``report``.
        ignore_labels: labels to leave out, for example ``("Ambiguous",)``.

    Returns:
        The annotations; videos without instances are kept.

    Raises:
        DataError: if the file is missing or is not such a file, a segment is not two finite numbers
            or ends at or before its start, a label is not in ``classes``, a label and its
            ``label_id`` contradict another annotation, or (``"error"``) a segment is out of range.
            Faults are collected: the message counts them and names the first few.
        ConfigError: if ``out_of_range`` is not one of the three rules.
    """
    if out_of_range not in ("error", "clamp", "keep"):
        raise ConfigError(
            "load_annotations: expected out_of_range 'error', 'clamp' or 'keep', "
            f"got {out_of_range!r}"
        )
    origin, database = _read_database(source)
    return _Loader(origin, classes, out_of_range, frozenset(ignore_labels)).load(database)


def _read_database(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, Any]:
    """Returns (name for messages, the ``database`` mapping)."""
    if isinstance(source, Mapping):
        origin, content = "annotations", source
    else:
        origin = os.fspath(source)
        try:
            content = json.loads(Path(source).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{origin}: no such annotation file") from None
        except OSError as error:
            raise DataError(f"{origin}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{origin}: expected JSON in UTF-8, got {error}") from error
        except json.JSONDecodeError as error:
            size = os.path.getsize(origin)
            cut = "; the file looks truncated" if error.pos >= size - 2 else ""
            raise DataError(
                f"{origin}: not valid JSON at line {error.lineno}, column {error.colno}: "
                f"{error.msg}{cut}"
            ) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("database"), Mapping):
        found = sorted(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise DataError(f"{origin}: expected an object with a 'database' object, got {found}")
    if not content["database"]:
        raise DataError(f"{origin}: expected at least one video, got an empty database")
    return origin, content["database"]


class _Loader:
    """Collects faults and counts over one file."""

    def __init__(
        self,
        origin: str,
        classes: Sequence[str] | None,
        rule: str,
        ignored: frozenset[str],
    ) -> None:
        self.origin = origin
        self.given_classes = classes
        self.rule = rule
        self.ignored = ignored
        self.faults: list[str] = []
        self.strays: list[str] = []
        self.total = self.clamped = self.dropped = self.left_out = 0

    def load(self, database: Mapping[str, Any]) -> Annotations:
        classes = self._classes(database)
        index = {name: i for i, name in enumerate(classes)}
        videos = {str(name): self._video(str(name), v, index) for name, v in database.items()}
        problems = list(self.faults)
        if self.rule == "error" and self.strays:
            problems += self.strays
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            hint = (
                f" ({len(self.strays)} out of range: out_of_range='clamp' would cut them)"
                if self.rule == "error" and self.strays
                else ""
            )
            raise DataError(
                f"{self.origin}: {len(problems)} faulty of {self.total} segments{hint}: "
                + "; ".join(problems[:_SHOWN])
                + more
            )
        report = AnnotationReport(
            out_of_range=len(self.strays),
            clamped=self.clamped,
            dropped=self.dropped,
            ignored=self.left_out,
            examples=tuple(self.strays[:_SHOWN]),
        )
        return Annotations(videos, classes, report)

    def _classes(self, database: Mapping[str, Any]) -> tuple[str, ...]:
        if self.given_classes is not None:
            given = tuple(str(name) for name in self.given_classes)
            if len(set(given)) != len(given) or not given:
                raise DataError(
                    f"{self.origin}: expected class names that are all different, got {given}"
                )
            return given
        id_of: dict[str, int] = {}
        name_of: dict[int, str] = {}
        complete = True
        for video, entry in database.items():
            for position, item in enumerate(_items(entry)):
                label = item.get("label") if isinstance(item, Mapping) else None
                if not isinstance(label, str) or label in self.ignored:
                    continue
                number = item.get("label_id")
                if not isinstance(number, int):
                    complete = False
                    id_of.setdefault(label, -1)
                    continue
                if id_of.setdefault(label, number) not in (number, -1) or (
                    name_of.setdefault(number, label) != label
                ):
                    raise DataError(
                        f"{self.origin}: video {video!r}, annotation {position}: label {label!r} "
                        f"with label_id {number} contradicts label_id {id_of[label]} of "
                        f"{name_of.get(number, label)!r} elsewhere in the file"
                    )
        if not id_of:
            raise DataError(f"{self.origin}: no label in any annotation, and no class list given")
        return tuple(sorted(id_of, key=id_of.__getitem__ if complete else None))

    def _video(self, name: str, entry: Any, index: Mapping[str, int]) -> Video:
        where = f"video {name!r}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{self.origin}: {where}: expected an object, got {entry!r:.60}")
        duration = _number(entry.get("duration"))
        if duration is None or not duration > 0 or math.isinf(duration):
            raise DataError(
                f"{self.origin}: {where}: expected a duration > 0 in seconds, "
                f"got {entry.get('duration')!r}"
            )
        fps = None if entry.get("fps") is None else _number(entry["fps"])
        if entry.get("fps") is not None and (fps is None or not 0 < fps < math.inf):
            raise DataError(f"{self.origin}: {where}: expected fps > 0, got {entry['fps']!r}")
        items = entry.get("annotations") or []
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise DataError(f"{self.origin}: {where}: expected a list of annotations")
        segments: list[tuple[float, float]] = []
        labels: list[int] = []
        for position, item in enumerate(items):
            kept = self._instance(f"{where}, annotation {position}", item, duration, index)
            if kept is not None:
                segments.append(kept[:2])
                labels.append(kept[2])
        return Video(
            name=name,
            subset=str(entry.get("subset", "")),
            duration=duration,
            fps=fps,
            segments=np.asarray(segments, dtype=np.float64).reshape(-1, 2),
            labels=np.asarray(labels, dtype=np.int64),
        )

    def _instance(
        self, where: str, item: Any, duration: float, index: Mapping[str, int]
    ) -> tuple[float, float, int] | None:
        """Returns (start, end, label), or None for an instance that is left out or faulty."""
        self.total += 1
        label = item.get("label") if isinstance(item, Mapping) else None
        segment = item.get("segment") if isinstance(item, Mapping) else None
        if not isinstance(label, str):
            self.faults.append(f"{where}: expected a label, got {label!r}")
            return None
        if label in self.ignored:
            self.left_out += 1
            return None
        if label not in index:
            self.faults.append(
                f"{where}: label {label!r} is not among the {len(index)} classes"
                f"{nearest(label, index)}"
            )
            return None
        numbers = (
            [_number(x) for x in segment]
            if isinstance(segment, Sequence) and not isinstance(segment, str)
            else []
        )
        if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
            self.faults.append(f"{where}: expected segment [start, end] in seconds, got {segment}")
            return None
        start, end = numbers[0], numbers[1]
        if not (math.isfinite(start) and math.isfinite(end)):
            self.faults.append(f"{where}: segment [{start}, {end}] is not finite")
            return None
        if end <= start:
            self.faults.append(f"{where}: segment end {end} is not after its start {start}")
            return None
        if start < -_TOLERANCE or end > duration + _TOLERANCE:
            self.strays.append(
                f"{where}: segment [{start}, {end}] is not inside the video, [0, {duration}]"
            )
            if self.rule == "clamp":
                start, end = max(start, 0.0), min(end, duration)
                if end <= start:
                    self.dropped += 1
                    return None
                self.clamped += 1
        return start, end, index[label]


def _items(entry: Any) -> Sequence[Any]:
    items = entry.get("annotations") if isinstance(entry, Mapping) else None
    return items if isinstance(items, Sequence) and not isinstance(items, str) else ()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def save_annotations(
    annotations: Annotations, path: str | os.PathLike[str], *, version: str = "1.0"
) -> Path:
    """Writes annotations in the form that :func:`load_annotations` reads, in one step.

    Args:
        annotations: what to write.
        path: file to write; replaced when complete.
        version: free text for the ``version`` key.

    Raises:
        DataError: if the file cannot be written.
    """
    database = {}
    for video in annotations.videos.values():
        entry: dict[str, Any] = {"subset": video.subset, "duration": video.duration}
        if video.fps is not None:
            entry["fps"] = video.fps
        entry["annotations"] = [
            {
                "label": annotations.classes[label],
                "label_id": label,
                "segment": [start, end],
            }
            for (start, end), label in zip(
                video.segments.tolist(), video.labels.tolist(), strict=True
            )
        ]
        database[video.name] = entry
    text = json.dumps({"version": version, "database": database}, ensure_ascii=False)
    return write_text_atomically(path, text + "\n")
