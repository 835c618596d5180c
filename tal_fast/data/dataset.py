# SPDX-License-Identifier: Apache-2.0
"""A prepared data directory: ``dataset.yaml``, annotations and a folder of features.

Example of a ``dataset.yaml``::

    format: 1
    name: hapt
    annotations: annotations.json
    features: features
    feature: {prefix: "", suffix: .npy, layout: TC, channels: 300, stride: 25, frames: 50, fps: 50}
    splits: {train: training, test: validation}
    citation: Reyes-Ortiz et al. 2015
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from tal_fast.data.annotations import Annotations, load_annotations
from tal_fast.data.feature_index import (
    Extent,
    feature_streams,
    index_streams,
    videos_of_streams,
)
from tal_fast.data.feature_streams import Stream
from tal_fast.data.files import write_text_atomically
from tal_fast.data.grid import Grid
from tal_fast.errors import ConfigError, DataError, nearest

__all__ = [
    "DatasetSpec",
    "FeatureSpec",
    "TALDataset",
    "dataset_annotations",
    "load_spec",
    "open_dataset",
    "save_spec",
]

FORMAT = 1
_SHOWN = 5


@dataclass(frozen=True)
class FeatureSpec:
    """What the feature files hold, the ``feature`` key of ``dataset.yaml``.

    Attributes:
        prefix: text before the video's name in a file name.
        suffix: text after it.
        layout: ``"TC"`` for arrays [T, C], ``"CT"`` for [C, T].
        channels: C; None takes that of the files.
        stride: frames between two rows.
        frames: frames that one row sees.
        fps: frames per second of all videos; None takes each video's own from the annotations.
        template: file or array name with ``%s`` for the video's name, instead of prefix and suffix;
            a list has one per stream.
        key: name of the array in each video's own file, when such a file holds several.
    """

    prefix: str = ""
    suffix: str = ".npy"
    layout: str = "TC"
    channels: int | None = None
    stride: float = 1.0
    frames: float = 1.0
    fps: float | None = None
    template: str | Sequence[str] | None = None
    key: str | Sequence[str] | None = None

    def streams(self, folder: Path, features: str | Sequence[str]) -> tuple[Stream, ...]:
        """Returns the streams of a data directory.

        Args:
            folder: the data directory.
            features: ``features`` of its ``dataset.yaml``.
        """
        paths = [features] if isinstance(features, str) else features
        return feature_streams(
            [folder / path for path in paths],
            prefix=self.prefix,
            suffix=self.suffix,
            template=self.template,
            key=self.key,
        )


@dataclass(frozen=True)
class DatasetSpec:
    """The content of a ``dataset.yaml``.

    Attributes:
        name: short name of the data set.
        format: version of this file's form, 1.
        annotations: annotation file, relative to the directory or absolute.
        features: feature folder, store or file, relative to the directory or absolute; a list of
            them are streams whose channels follow each other.
        feature: what its files hold.
        splits: split name -> subset name of the annotation file, or a list of them.
        classes: class names in the order of the labels; None derives them from the annotations.
        out_of_range: rule for segments beyond their video (``error``, ``clamp`` or ``keep``).
        ignore_labels: labels that are left out.
        unmatched: ``error``, or ``skip`` to leave out videos without features and features without
            annotations.
        citation: how to cite the data.
    """

    name: str
    format: int = FORMAT
    annotations: str = "annotations.json"
    features: str | Sequence[str] = "features"
    feature: FeatureSpec = field(default_factory=FeatureSpec)
    splits: dict[str, Any] = field(
        default_factory=lambda: {"train": "training", "test": "validation"}
    )
    classes: tuple[str, ...] | None = None
    out_of_range: str = "error"
    ignore_labels: tuple[str, ...] = ()
    unmatched: str = "error"
    citation: str = ""


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
    """

    name: str
    annotations: Annotations
    truth: Annotations
    features: dict[str, Extent]
    splits: dict[str, list[str]]
    spec: DatasetSpec
    path: Path

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

    def grid(self, video: str) -> Grid:
        """Returns the map between seconds and feature rows of one video.

        Raises:
            DataError: if the video is unknown.
        """
        if video not in self.annotations.videos:
            raise DataError(
                f"{self.path}: no video {video!r} in data set {self.name!r}"
                f"{nearest(video, self.annotations.videos)}"
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
                f"({len(missing)} of {self.num_classes} classes, {len(names)} videos); annotate "
                "one, or list the classes to use under `classes` in dataset.yaml"
            )


def open_dataset(
    path: str | os.PathLike[str],
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

    Raises:
        DataError: if something is missing, unknown, faulty or does not fit together.
    """
    folder, file = _place(path)
    spec = load_spec(file)
    rule = unmatched or spec.unmatched
    if rule not in ("error", "skip"):
        raise DataError(f"{file}: expected unmatched 'error' or 'skip', got {rule!r}")
    annotations = _annotations(folder, spec, out_of_range or spec.out_of_range)
    splits = _splits(file, spec, annotations)
    names = list(dict.fromkeys(name for split in splits.values() for name in split))
    feature = spec.feature
    try:
        streams = feature.streams(folder, spec.features)
    except ConfigError as error:
        raise DataError(f"{file}: {error}") from error
    kept = _match(streams, annotations, names, rule)
    splits = {name: [v for v in split if v in kept] for name, split in splits.items()}
    for name, split in splits.items():
        if not split:
            raise DataError(f"{file}: split {name!r} has no video with features")
    extents = index_streams(
        streams,
        [v for v in names if v in kept],
        layout=feature.layout,  # type: ignore[arg-type]
        channels=feature.channels,
    )
    if feature.fps is None:
        without = [v for v in extents if annotations.videos[v].fps is None]
        if without:
            raise DataError(
                f"{file}: feature.fps is not set and {len(without)} videos have no fps in "
                f"{spec.annotations}, first {without[0]!r}"
            )
    selected = replace(annotations.select(extents), report=annotations.report)
    truth = selected
    if annotations.report.clamped or annotations.report.dropped:
        truth = _annotations(folder, spec, "keep").select(extents)
    return TALDataset(spec.name, selected, truth, extents, splits, spec, folder)


def dataset_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Returns what predictions for a data directory are scored against.

    Features are not looked at: a video whose features are lost is annotated all the same. Segments
    are as the file has them: ``out_of_range: clamp`` makes targets for training, not truth.

    Args:
        path: the directory, or its ``dataset.yaml``.

    Returns:
        The videos of the splits, with the classes of ``dataset.yaml`` and without its
        ``ignore_labels``.

    Raises:
        DataError: if ``dataset.yaml`` or the annotations are missing or faulty.
    """
    folder, file = _place(path)
    spec = load_spec(file)
    rule = "keep" if spec.out_of_range == "clamp" else spec.out_of_range
    annotations = _annotations(folder, spec, rule)
    splits = _splits(file, spec, annotations)
    return annotations.select(name for names in splits.values() for name in names)


def _place(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Returns a data directory and its ``dataset.yaml``, of which ``path`` is one."""
    place = Path(path)
    return (place, place / "dataset.yaml") if place.is_dir() else (place.parent, place)


def _annotations(folder: Path, spec: DatasetSpec, rule: str) -> Annotations:
    return load_annotations(
        folder / spec.annotations,
        classes=spec.classes,
        out_of_range=rule,  # type: ignore[arg-type]
        ignore_labels=spec.ignore_labels,
    )


def _match(
    streams: Sequence[Stream], annotations: Annotations, names: list[str], rule: str
) -> set[str]:
    """Returns the videos to use, after comparing the features with the annotations."""
    there = set(videos_of_streams(streams))
    if rule == "skip":
        return {name for name in names if name in there}
    extra = sorted(there - set(annotations.videos))
    if extra:
        more = ", …" if len(extra) > _SHOWN else ""
        raise DataError(
            f"{streams[0].path}: {len(extra)} feature files without annotation: "
            f"{', '.join(extra[:_SHOWN])}{more} (unmatched: skip leaves them out)"
        )
    # Missing feature files are index_features' to report, together with all other faults.
    return set(names)


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


def load_spec(file: Path) -> DatasetSpec:
    """Reads and checks a ``dataset.yaml``.

    Raises:
        DataError: if it is missing, not valid YAML, or a key or value is not as it should be.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file; a data directory holds a dataset.yaml (tal-fast prepare)"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {error}") from error
    values = _checked(file, "", content, DatasetSpec)
    values["feature"] = FeatureSpec(
        **_checked(file, "feature.", values.get("feature", {}), FeatureSpec)
    )
    if "name" not in values:
        raise DataError(f"{file}: expected a key 'name'")
    if values.get("format", FORMAT) != FORMAT:
        raise DataError(f"{file}: expected format {FORMAT}, got {values['format']!r}")
    splits = values.get("splits", {"train": "training", "test": "validation"})
    if not isinstance(splits, dict) or not splits:
        raise DataError(f"{file}: expected splits: {{train: <subset>, …}}, got {splits!r}")
    for key in ("classes", "ignore_labels"):
        if values.get(key) is not None:
            if not isinstance(values[key], list):
                raise DataError(f"{file}: expected {key} to be a list, got {values[key]!r}")
            values[key] = tuple(str(item) for item in values[key])
    if values.get("ignore_labels") is None:
        values["ignore_labels"] = ()
    feature: FeatureSpec = values["feature"]
    if feature.layout not in ("TC", "CT"):
        raise DataError(f"{file}: expected feature.layout TC or CT, got {feature.layout!r}")
    for name, value in (
        ("features", values.get("features", "features")),
        ("feature.template", feature.template),
        ("feature.key", feature.key),
    ):
        texts = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(text, str) for text in texts):
            raise DataError(f"{file}: expected {name} to be text or a list of it, got {value!r}")
    for key in ("channels", "stride", "frames", "fps"):
        value = getattr(feature, key)
        if value is None and key in ("channels", "fps"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise DataError(f"{file}: expected feature.{key} > 0, got {value!r}")
    return DatasetSpec(**values)


def _checked(file: Path, where: str, content: Any, kind: type[Any]) -> dict[str, Any]:
    """Returns ``content`` as a dict whose keys are all fields of ``kind``."""
    known = [f.name for f in fields(kind)]
    if not isinstance(content, Mapping):
        what = where.rstrip(".") or "the file"
        raise DataError(f"{file}: expected {what} to hold keys {known}, got {content!r:.60}")
    for key in content:
        if key not in known:
            raise DataError(
                f"{file}: unknown key '{where}{key}'{nearest(str(key), known)} "
                f"(known: {', '.join(known)})"
            )
    return dict(content)


def save_spec(spec: DatasetSpec, folder: str | os.PathLike[str]) -> Path:
    """Writes ``dataset.yaml`` into a data directory.

    Raises:
        DataError: if it cannot be written.
    """
    values: dict[str, Any] = {"format": spec.format}
    for item in fields(DatasetSpec):
        value = getattr(spec, item.name)
        if item.name == "feature":
            value = {f.name: getattr(value, f.name) for f in fields(FeatureSpec)}
            # Where they say nothing, they stay out: a folder of .npy files is older than they are.
            for optional in ("template", "key"):
                if value[optional] is None:
                    del value[optional]
        elif item.name in ("classes", "ignore_labels"):
            if not value:
                continue
            value = list(value)
        values[item.name] = value
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return write_text_atomically(Path(folder) / "dataset.yaml", text)
