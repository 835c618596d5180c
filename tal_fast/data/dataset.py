# SPDX-License-Identifier: Apache-2.0
"""A prepared data directory, opened: annotations and features that fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tal_fast.data.annotations import AnnotationReport, Annotations, load_annotations
from tal_fast.data.dataset_spec import (
    DatasetSpec,
    FeatureSpec,
    annotation_file,
    load_spec,
    save_spec,
    spec_file,
)
from tal_fast.data.feature_index import Extent, index_streams, unannotated, without_features
from tal_fast.data.grid import Grid
from tal_fast.data.streams import Stream
from tal_fast.errors import ConfigError, DataError, counted, nearest, same_to_the_eye
from tal_fast.typing import FilePath

__all__ = [
    "DatasetSpec",
    "FeatureSpec",
    "TALDataset",
    "dataset_annotations",
    "left_out_by_name",
    "load_spec",
    "open_dataset",
    "save_spec",
    "shown_names",
]

_SHOWN = 5


@dataclass(frozen=True)
class TALDataset:
    """Annotations and feature extents that were checked against each other.

    Attributes:
        name: short name of the data set.
        annotations: instances of all videos of the splits, as training wants them.
        truth: the same as detections are scored against: without the cuts of
            ``out_of_range: clamp``.
        features: extent of each of these videos.
        splits: split name -> names of its videos.
        spec: the ``dataset.yaml`` it came from.
        path: the directory.
        left_out: why -> names of videos of the splits that are in none of the above.
    """

    name: str
    annotations: Annotations
    truth: Annotations
    features: dict[str, Extent]
    splits: dict[str, list[str]]
    spec: DatasetSpec
    path: Path
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        return self.annotations.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.annotations.classes)

    @property
    def channels(self) -> int:
        """Channels of a feature row."""
        return next(iter(self.features.values())).width

    def __repr__(self) -> str:
        return (
            f"TALDataset({self.name!r}: {counted(len(self.features), 'video')} "
            f"({self._shown_splits()}), "
            f"{counted(self.annotations.num_instances, 'instance')} of "
            f"{counted(self.num_classes, 'class')}, "
            f"{counted(self.channels, 'channel')}, {str(self.path)!r})"
        )

    def _shown_splits(self) -> str:
        return ", ".join(f"{len(videos)} {name}" for name, videos in self.splits.items())

    def videos_of(self, which: str | Iterable[str], argument: str = "videos") -> list[str]:
        """Returns the names of some videos.

        Args:
            which: a split, ``"all"`` for the videos of all splits in the order of their names, or
                names.
            argument: what gave it, for messages.

        Raises:
            ConfigError: there is no such split.
            DataError: a video is not one of the data set, or is left out of it.
        """
        if which == "all":
            return sorted(self.annotations.videos)
        if isinstance(which, str):
            return list(self.splits[known_split(which, self.splits, argument)])
        names = list(which)
        for name in names:
            if name not in self.features:
                raise DataError(
                    f"{argument}: no video {name!r} in data set {self.name!r} ({self.path})"
                    f"{nearest(name, self.features, numbered=True)}"
                )
        return names

    def notes(self) -> list[str]:
        """Says in a line per reason which videos of the splits were left out; often none."""
        total = len(self.features) + sum(map(len, self.left_out.values()))
        return [
            f"{len(videos)} of the {counted(total, 'video')} of {self.path} left out of training "
            f"and prediction, {why}: {shown_names(videos)}"
            for why, videos in self.left_out.items()
        ]

    def grid(self, video: str) -> Grid:
        """Returns the map between seconds and feature rows of one video.

        Raises:
            DataError: if the video is unknown.
        """
        if video not in self.annotations.videos:
            raise DataError(
                f"{self.path}: no video {video!r} in data set {self.name!r}"
                f"{nearest(video, self.annotations.videos, numbered=True)}"
            )
        fps = self.spec.feature.fps or self.annotations.videos[video].fps
        if fps is None:  # open_dataset refuses such data; only a hand-made TALDataset comes here
            raise DataError(f"{self.path}: video {video!r} has no fps")
        return Grid(self.spec.feature.stride, self.spec.feature.frames, fps)

    def require_every_class(self, videos: Iterable[str], purpose: str) -> None:
        """Checks that each class has an instance in some of the given videos.

        Args:
            videos: names of videos of this data set.
            purpose: what they are for, as in ``"training"``.

        Raises:
            DataError: if a class has none: it could be neither learned nor told from a mistake.
        """
        names = list(videos)
        present = {int(label) for name in names for label in self.annotations.videos[name].labels}
        missing = [name for index, name in enumerate(self.classes) if index not in present]
        if missing:
            raise DataError(
                f"{self.path}: no {purpose} video has an instance of {', '.join(missing)} "
                f"({len(missing)} of {counted(self.num_classes, 'class')}, "
                f"{counted(len(names), 'video')}); annotate "
                "one, or list its label under `ignore_labels` in dataset.yaml"
            )


def open_dataset(
    path: FilePath,
    *,
    out_of_range: str | None = None,
    unmatched: str | None = None,
) -> TALDataset:
    """Opens a prepared data directory and checks that its parts agree.

    Every header is read and compared with its file's size; the features themselves are not read.

    Args:
        path: the directory, or its ``dataset.yaml``.
        out_of_range: overrides the rule of ``dataset.yaml`` for segments beyond their video:
            ``"error"``, ``"clamp"`` or ``"keep"`` (:func:`load_annotations`).
        unmatched: overrides its rule for videos without features and features without annotations:
            ``"error"``, or ``"skip"`` to leave them out.

    Returns:
        The data set; :attr:`TALDataset.left_out` names the videos of the splits that it lacks.

    Raises:
        DataError: if something is missing, unknown, faulty or does not fit together.
        ConfigError: if ``unmatched`` or ``out_of_range`` is unknown.
    """
    file = spec_file(path)
    folder = file.parent
    if unmatched not in (None, "error", "skip"):
        raise ConfigError(f"open_dataset: expected unmatched 'error' or 'skip', got {unmatched!r}")
    spec = load_spec(file)
    annotations = _annotations(folder, spec, out_of_range or spec.out_of_range)
    given = _splits(file, spec, annotations)
    names = [name for split in given.values() for name in split]
    left_out = left_out_by_name(file, spec, annotations.videos, names)
    excluded = spec.excluded
    names = [name for name in names if name not in excluded]
    streams = spec.streams(file)
    if (unmatched or spec.unmatched) == "skip":
        missing = without_features(streams, names)
        if missing:
            left_out["without features (unmatched: skip)"] = tuple(missing)
    elif spec.extra_features == "error":
        _refuse_extra(streams, annotations)
    gone = {video for videos in left_out.values() for video in videos}
    names = [name for name in names if name not in gone]
    splits = {name: [v for v in split if v not in gone] for name, split in given.items()}
    for name, split in splits.items():
        if not split:
            raise DataError(
                f"{file}: split {name!r} has no video with features; its "
                f"{counted(len(given[name]), 'video')} "
                "are left out"
            )
    feature = spec.feature
    extents = index_streams(
        streams,
        names,
        layout=feature.layout,  # type: ignore[arg-type]
        channels=feature.channels,
    )
    if feature.fps is None:
        without = [v for v in extents if annotations.videos[v].fps is None]
        if without:
            raise DataError(
                f"{file}: feature.fps is not set and {counted(len(without), 'video', 'have')} no "
                "fps in "
                f"{spec.annotations}, first {without[0]!r}"
            )
    selected = replace(annotations.select(extents), report=annotations.report)
    truth = selected
    if annotations.report.clamped or annotations.report.dropped:
        truth = _annotations(folder, spec, "keep").select(extents)
    return TALDataset(spec.name, selected, truth, extents, splits, spec, folder, left_out)


def known_split(which: str, splits: Iterable[str], argument: str) -> str:
    """Returns the name of a split.

    Raises:
        ConfigError: there is no such split; names ``argument``, which gave it.
    """
    known = [*splits, "all"]
    if which not in known:
        raise ConfigError(
            f"{argument}: expected one of {', '.join(known)}, got {which!r}{nearest(which, known)}"
        )
    return which


def dataset_annotations(source: FilePath | TALDataset, split: str = "all") -> Annotations:
    """Returns what predictions for a data directory are scored against.

    Features are not looked at, nor is ``exclude``: a video whose features are lost is annotated all
    the same. Segments are as the file has them: ``out_of_range: clamp`` makes targets for training,
    not truth.

    Args:
        source: the directory, its ``dataset.yaml``, or the opened data set.
        split: the videos of this split; ``"all"`` for those of all splits.

    Returns:
        These videos, with the classes of ``dataset.yaml`` and without its ``ignore_labels``.

    Raises:
        DataError: if ``dataset.yaml`` or the annotations are missing or faulty.
        ConfigError: there is no such split.
    """
    if isinstance(source, TALDataset):
        file, spec = source.path / "dataset.yaml", source.spec
    else:
        file = spec_file(source)
        spec = load_spec(file)
    folder = file.parent
    known_split(split, spec.splits, "split")
    rule = "keep" if spec.out_of_range == "clamp" else spec.out_of_range
    annotations = _annotations(file.parent, spec, rule)
    splits = _splits(file, spec, annotations)
    chosen = list(splits) if split == "all" else [split]
    selected = annotations.select(name for name in chosen for name in splits[name])
    where = {name: f"split {key!r}" for key, names in splits.items() for name in names}
    beyond = sum(video.beyond for video in selected.videos.values())
    return replace(
        selected,
        report=AnnotationReport(out_of_range=beyond),
        origin=f"split {split!r} of {folder}" if split != "all" else str(folder),
        elsewhere={name: place for name, place in where.items() if name not in selected.videos},
    )


def _annotations(folder: Path, spec: DatasetSpec, rule: str) -> Annotations:
    return load_annotations(
        annotation_file(folder, spec),
        classes=spec.classes,
        out_of_range=rule,  # type: ignore[arg-type]
        ignore_labels=spec.ignore_labels,
    )


def left_out_by_name(
    file: Path, spec: DatasetSpec, annotated: Iterable[str], wanted: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Returns why -> which of the wanted videos ``exclude`` in ``dataset.yaml`` leaves out.

    Args:
        file: the ``dataset.yaml``.
        spec: its content.
        annotated: all videos of the annotation file.
        wanted: those of the splits.

    Raises:
        DataError: if it names a video that is not annotated.
    """
    known, used = set(annotated), set(wanted)
    why_left_out = {}
    for reason, videos in spec.exclude.items():
        for video in videos:
            if video not in known:
                raise DataError(
                    f"{file}: exclude: expected annotated videos, got {video!r}"
                    f"{nearest(video, known, numbered=True)}"
                )
        mine = tuple(video for video in videos if video in used)
        if mine:
            why_left_out[f"{reason} (exclude)" if reason else "excluded by name (exclude)"] = mine
    return why_left_out


def shown_names(names: Sequence[str]) -> str:
    """Returns the first few names, in a form that any terminal can print."""
    first = ", ".join(name if name.isprintable() else ascii(name) for name in names[:_SHOWN])
    return f"{first}, …" if len(names) > _SHOWN else first


def _refuse_extra(streams: Sequence[Stream], annotations: Annotations) -> None:
    # Missing feature files are index_streams' to report, together with all other faults.
    extra = unannotated(streams, annotations.videos)
    if extra:
        raise DataError(
            f"{streams[0].path}: {len(extra)} feature files without annotation: "
            f"{shown_names(extra)}{same_to_the_eye(extra[0], annotations.videos)} "
            "(extra_features: ignore accepts them)"
        )


def _splits(file: Path, spec: DatasetSpec, annotations: Annotations) -> dict[str, list[str]]:
    subsets = annotations.subsets
    splits: dict[str, list[str]] = {}
    for name, value in spec.splits.items():
        wanted = [value] if isinstance(value, str) else list(value)
        for subset in wanted:
            if subset not in subsets:
                known = ", ".join(repr(s) for s in subsets)
                raise DataError(
                    f"{file}: splits.{name}: expected a subset among {known}, got {subset!r}"
                    f"{nearest(str(subset), subsets)}"
                )
        splits[name] = [v.name for v in annotations.videos.values() if v.subset in wanted]
    seen: dict[str, str] = {}
    for name, videos in splits.items():
        for video in videos:
            if video in seen:
                raise DataError(f"{file}: video {video!r} is in splits {seen[video]} and {name}")
            seen[video] = name
    return splits
