# SPDX-License-Identifier: Apache-2.0
"""Annotation files of the form that ActionFormer and OpenTAD write, checked segment by segment.

The form is ``{"database": {video: {"subset", "duration", "fps", "annotations": [{"segment": [start,
end], "label", "label_id"}]}}}`` with segments in seconds. Nothing is repaired silently: a faulty
segment is an error that names file, video and position, unless the caller asks for another rule.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tal_fast.data.annotation_file import (
    AnnotatedInstance,
    AnnotatedVideo,
    AnnotationFile,
    read_annotation_file,
)
from tal_fast.data.class_ids import ClassIds, ordered_classes
from tal_fast.data.files import write_text_atomically
from tal_fast.data.json_files import without_collector
from tal_fast.errors import ConfigError, DataError, argument, counted, listing, nearest
from tal_fast.typing import FilePath, Floats, Ints

__all__ = [
    "AnnotationReport",
    "Annotations",
    "OutOfRange",
    "Video",
    "annotations_of",
    "load_annotations",
    "save_annotations",
]

OutOfRange = Literal["error", "clamp", "keep"]

# Two decimals are usual for durations while segments come from frame counts: a segment that ends
# within this of its video's end (s) is inside it.
TOLERANCE = 1e-6
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
    segments: Floats
    labels: Ints

    @property
    def beyond(self) -> int:
        """How many of its segments start before 0 or end after it."""
        start, end = self.segments[:, 0], self.segments[:, 1]
        return int(((start < -TOLERANCE) | (end > self.duration + TOLERANCE)).sum())


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
        class_ids: the file's own numbers of the classes (``label_id``), which predictions may use;
            None where there is no file: a class's number is its place in ``classes`` then.
        listed: the file's own list ``classes``, without ignored labels; None without one. Some
            dialects of evaluation count what it names, also without an instance.
        origin: what these videos are, for messages; empty where nothing tells.
        elsewhere: videos of the same file that are not among these -> where they are, in words
            (``"split 'train'"``).
    """

    videos: dict[str, Video]
    classes: tuple[str, ...]
    report: AnnotationReport = field(default_factory=AnnotationReport)
    class_ids: ClassIds | None = None
    listed: tuple[str, ...] | None = None
    origin: str = ""
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Annotations({counted(self.num_instances, 'instance')} of "
            f"{counted(len(self.classes), 'class')} in "
            f"{counted(len(self.videos), 'video')})"
        )

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
        return replace(self, videos=chosen, report=AnnotationReport())

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
                    f"{nearest(name, self.videos, numbered=True)}"
                )
            chosen[name] = self.videos[name]
        return replace(self, videos=chosen, report=AnnotationReport())


def load_annotations(
    source: FilePath | Mapping[str, Any],
    *,
    classes: Sequence[str] | None = None,
    out_of_range: OutOfRange = "error",
    ignore_labels: Collection[str] = (),
) -> Annotations:
    """Reads and checks an annotation file.

    Args:
        source: path of a JSON file, plain or gzipped, or its content; numbers and lists in it may
            be NumPy's.
        classes: names in the order of the labels. Default: ordered by ``label_id`` when every
            annotation carries one, else sorted by name.
        out_of_range: what to do with a segment that starts before 0 or ends after its video:
            ``"error"``, ``"clamp"`` it to the video (and drop it when nothing is left), or
            ``"keep"`` it as it is. All of them are counted in ``report``.
        ignore_labels: labels to leave out, for example ``("Ambiguous",)``.

    Returns:
        The annotations; videos without instances are kept.

    Raises:
        DataError: if the file is missing or is not such a file, holds a video or another key twice,
            a segment is not two finite numbers or ends at or before its start, a label is not text
            or not in ``classes``, a label and its ``label_id`` contradict another annotation (and
            ``classes`` is not given), or (``"error"``) a segment is out of range. Faults of
            segments are collected: the message counts them and names the first few.
        ConfigError: if ``out_of_range`` is not one of the three rules.
    """
    if out_of_range not in ("error", "clamp", "keep"):
        raise ConfigError(
            "load_annotations: expected out_of_range 'error', 'clamp' or 'keep', "
            f"got {out_of_range!r}"
        )
    with without_collector():  # what is read goes before anyone else could drop it
        file = read_annotation_file(source)
        return annotations_of(
            file, classes=classes, out_of_range=out_of_range, ignore_labels=ignore_labels
        )


def annotations_of(
    file: AnnotationFile,
    *,
    classes: Sequence[str] | None = None,
    out_of_range: OutOfRange = "error",
    ignore_labels: Collection[str] = (),
) -> Annotations:
    """Checks what was read of an annotation file or a table.

    Args:
        file: what was read.
        classes: as of :func:`load_annotations`, and so are the other arguments.
        out_of_range: as there.
        ignore_labels: as there.

    Raises:
        DataError: as there.
    """
    loader = _Loader(file.origin, out_of_range, frozenset(ignore_labels))
    names, class_ids = _classes(file, classes, loader.ignored)
    file.refuse("duration", "fps", "annotations")
    videos = loader.load(file.videos, names)
    listed = file.listed
    if listed is not None:
        listed = tuple(name for name in listed if name not in loader.ignored)
    return Annotations(videos, names, loader.report(), class_ids, listed)


def _classes(
    file: AnnotationFile, given: Sequence[str] | None, ignored: Collection[str]
) -> tuple[tuple[str, ...], ClassIds]:
    """Returns the class names in the order of the labels, and the file's numbers of them."""
    if given is not None:
        names = tuple(str(name) for name in given)
        if len(set(names)) != len(names) or not names:
            raise DataError(
                f"{file.origin}: expected class names that are all different, got {names}"
            )
        return names, file.class_ids(ignored, names)
    class_ids = file.class_ids(ignored)
    if class_ids.contradiction:
        raise DataError(f"{file.origin}: {class_ids.contradiction}")
    names = ordered_classes(file.labels(ignored), class_ids)
    if not names:
        raise DataError(f"{file.origin}: {_why_no_label(file)}")
    return names, class_ids


def _why_no_label(file: AnnotationFile) -> str:
    for video in file.videos:
        for item in video.instances:
            if item.label is None:
                return f"video {video.name!r}, {item.place}: {_bad_label(item)}"
    return "no label in any annotation, and no class list given"


class _Loader:
    """Turns videos into targets; collects faults and counts over one file."""

    def __init__(self, origin: str, rule: str, ignored: frozenset[str]) -> None:
        self.origin = origin
        self.rule = rule
        self.ignored = ignored
        self.faults: list[str] = []
        self.strays: list[str] = []
        self.total = self.clamped = self.dropped = self.left_out = 0

    def load(self, given: Iterable[AnnotatedVideo], classes: Sequence[str]) -> dict[str, Video]:
        index = {name: i for i, name in enumerate(classes)}
        videos: dict[str, Video] = {}
        for video in given:
            if video.name in videos:  # a mapping may hold 1 and "1"
                raise DataError(f"{self.origin}: video {video.name!r} is listed more than once")
            videos[video.name] = self._video(video, index)
        problems = self.faults + (self.strays if self.rule == "error" else [])
        if problems:
            hint = (
                f" ({len(self.strays)} out of range: {argument('out_of_range', 'clamp')} cuts them)"
                if self.rule == "error" and self.strays
                else ""
            )
            raise DataError(
                f"{self.origin}: {len(problems)} faulty of {counted(self.total, 'segment')}{hint}: "
                f"{listing(problems, _SHOWN)}"
            )
        return videos

    def report(self) -> AnnotationReport:
        return AnnotationReport(
            out_of_range=len(self.strays),
            clamped=self.clamped,
            dropped=self.dropped,
            ignored=self.left_out,
            examples=tuple(self.strays[:_SHOWN]),
        )

    def _video(self, given: AnnotatedVideo, index: Mapping[str, int]) -> Video:
        assert given.duration is not None  # else it is a fault of the file
        segments: list[tuple[float, float]] = []
        labels: list[int] = []
        for item in given.instances:
            where = f"video {given.name!r}, {item.place}"
            kept = self._instance(where, item, given.duration, index)
            if kept is not None:
                segments.append(kept[:2])
                labels.append(kept[2])
        return Video(
            name=given.name,
            subset=given.subset,
            duration=given.duration,
            fps=given.fps,
            segments=np.asarray(segments, dtype=np.float64).reshape(-1, 2),
            labels=np.asarray(labels, dtype=np.int64),
        )

    def _instance(
        self, where: str, item: AnnotatedInstance, duration: float, index: Mapping[str, int]
    ) -> tuple[float, float, int] | None:
        """Returns (start, end, label), or None for an instance that is left out or faulty."""
        self.total += 1
        if item.label is not None and item.label in self.ignored:
            self.left_out += 1
            return None
        fault = _fault(item, index)
        if fault or item.label is None or item.segment is None:
            self.faults.append(f"{where}: {fault}")
            return None
        start, end = item.segment
        if start < -TOLERANCE or end > duration + TOLERANCE:
            self.strays.append(
                f"{where}: segment [{start}, {end}] is not inside the video, [0, {duration}]"
            )
            if self.rule == "clamp":
                start, end = max(start, 0.0), min(end, duration)
                if end <= start:
                    self.dropped += 1
                    return None
                self.clamped += 1
        return start, end, index[item.label]


def _fault(item: AnnotatedInstance, index: Mapping[str, int]) -> str:
    """Returns what makes an instance no target of training, in words; empty if nothing."""
    if item.label is None:
        return _bad_label(item)
    if item.label not in index:
        return (
            f"label {item.label!r} is not among the {counted(len(index), 'class')}"
            f"{nearest(item.label, index)}"
        )
    if item.segment is None:
        return f"expected segment [start, end] in seconds, got {item.value('segment')!r:.60}"
    start, end = item.segment
    if item.span is None:
        return f"segment [{start}, {end}] is not finite"
    if end <= start:
        return f"segment end {end} is not after its start {start}"
    return ""


def _bad_label(item: AnnotatedInstance) -> str:
    label = item.value("label")
    hint = "" if label is None else "; a label is a class name, its number is label_id"
    return f"expected a label, got {label!r:.60}{hint}"


def save_annotations(annotations: Annotations, path: FilePath, *, version: str = "1.0") -> Path:
    """Writes annotations in the form that :func:`load_annotations` reads, in one step.

    ``label_id`` is the number that :attr:`Annotations.class_ids` gives a class, and left out where
    the numbers of some classes are in doubt; where no class has one, it is the label.

    Args:
        annotations: what to write.
        path: file to write; replaced when complete.
        version: free text for the ``version`` key.

    Raises:
        DataError: if the file cannot be written.
    """
    ids = annotations.class_ids
    numbers = ids.numbers if ids is not None and ids.numbers else None
    database = {}
    for video in annotations.videos.values():
        entry: dict[str, Any] = {"subset": video.subset, "duration": video.duration}
        if video.fps is not None:
            entry["fps"] = video.fps
        entry["annotations"] = [
            {
                "label": annotations.classes[label],
                **_label_id(annotations.classes[label], label, numbers),
                "segment": [start, end],
            }
            for (start, end), label in zip(
                video.segments.tolist(), video.labels.tolist(), strict=True
            )
        ]
        database[video.name] = entry
    text = json.dumps({"version": version, "database": database}, ensure_ascii=False)
    return write_text_atomically(path, text + "\n")


def _label_id(name: str, label: int, numbers: Mapping[str, int] | None) -> dict[str, int]:
    if numbers is None:
        return {"label_id": label}
    return {"label_id": numbers[name]} if name in numbers else {}
