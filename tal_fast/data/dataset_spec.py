# SPDX-License-Identifier: Apache-2.0
"""``dataset.yaml``, which says what a data directory holds.

Example::

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
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tal_fast.data.annotation_file import TABLES, prepare_command
from tal_fast.data.feature_folder import is_file_name
from tal_fast.data.files import write_text_atomically
from tal_fast.data.streams import Stream, streams_of
from tal_fast.data.text_files import not_utf8
from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError, DataError, nearest, os_reason
from tal_fast.typing import FilePath

__all__ = [
    "DatasetSpec",
    "FeatureSpec",
    "annotation_file",
    "load_spec",
    "save_spec",
    "spec_file",
]

FORMAT = 1


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
        exclude: reason -> videos that are neither trained on nor predicted; in the file, a list
            stands for one without a reason. They stay in the annotations, so scoring counts them.
        classes: class names in the order of the labels; None derives them from the annotations.
        out_of_range: rule for segments beyond their video (``error``, ``clamp`` or ``keep``).
        ignore_labels: labels that are left out.
        unmatched: ``error``, or ``skip`` to leave out videos without features and features without
            annotations.
        extra_features: ``error``, or ``ignore`` where the features are also those of other videos.
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
    exclude: Mapping[str, Sequence[str]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    out_of_range: str = "error"
    ignore_labels: tuple[str, ...] = ()
    unmatched: str = "error"
    extra_features: str = "error"
    citation: str = ""

    @property
    def excluded(self) -> frozenset[str]:
        """All videos of :attr:`exclude`."""
        return frozenset(video for videos in self.exclude.values() for video in videos)

    @property
    def timing(self) -> str:
        """How rows lie in time, as the file says it."""
        feature = self.feature
        fps = "each video's own fps" if feature.fps is None else f"fps {feature.fps:g}"
        return f"stride {feature.stride:g}, frames {feature.frames:g}, {fps}"

    def streams(self, file: Path) -> tuple[Stream, ...]:
        """Returns the streams of the features.

        Args:
            file: the ``dataset.yaml`` that this was read from.

        Raises:
            DataError: if templates and features do not go together.
        """
        paths = [self.features] if isinstance(self.features, str) else self.features
        try:
            return streams_of(
                [file.parent / path for path in paths],
                self.feature.template,
                self.feature.key,
                around=(self.feature.prefix, self.feature.suffix),
            )
        except ConfigError as error:
            raise DataError(f"{file}: {error}") from error


def spec_file(path: FilePath) -> Path:
    """Returns the ``dataset.yaml`` of a data directory, or the path itself if it is no folder."""
    given = Path(path)
    # Path.is_dir raises where a folder above cannot be searched or the system is out of files:
    # what reads the file says that better.
    return given / "dataset.yaml" if os.path.isdir(given) else given


def annotation_file(folder: Path, spec: DatasetSpec) -> Path:
    """Returns the path of a data directory's annotations.

    Raises:
        DataError: it leads to a device or a pipe. They may have no end (``/dev/zero``), and whoever
            opens a data directory has not chosen what ``dataset.yaml`` names.
    """
    path = folder / spec.annotations
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise DataError(f"{path}: expected a file of annotations, got a device or a pipe")
    return path


def _no_dataset(file: Path) -> str:
    """Says what is wrong with a path at which there is no ``dataset.yaml``."""
    if file.name != "dataset.yaml":
        return f"{file}: no such directory; {prepare_command()} makes a data directory"
    return (
        f"{file.parent}: expected a data directory, with a dataset.yaml, found none in it; "
        f"{prepare_command()} makes one"
    )


def is_dataset(path: FilePath) -> bool:
    """Whether a path leads to a data directory, and not to a file of annotations alone."""
    return os.path.isdir(path) or Path(path).suffix.lower() in (".yaml", ".yml")


# What a value should be, in words, and whether it is.
_Kind = tuple[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and is_file_name(value)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and 0 < value <= sys.float_info.max


def _list_of(item: Callable[[Any], bool], *, empty: bool = False) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (list, tuple)) and (empty or bool(value)) and all(map(item, value))
    )


def _some(item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """One, or a list of at least one."""
    return lambda value: item(value) or _list_of(item)(value)


def _is_splits(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(_is_text(name) and _some(_is_text)(subset) for name, subset in value.items())
    )


def _is_exclude(value: Any) -> bool:
    names = _list_of(_is_text, empty=True)
    return names(value) or (
        isinstance(value, Mapping)
        and all(_is_text(reason) and names(videos) for reason, videos in value.items())
    )


def _one_of(*words: str) -> _Kind:
    shown = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"
    return shown, lambda value: isinstance(value, str) and value in words


# YAML reads 2024, 1e5 and no as something else than text.
_QUOTED = "(in quotes what YAML takes for a number or for yes and no)"
_TEXT: _Kind = "to be text", _is_text
_TEXT_OR_TEXTS: _Kind = "to be text or a list of it", _some(_is_text)
_ABOVE_0: _Kind = "> 0", _is_number

# A key that is left empty is as one that is not there, where that has a meaning.
_OPTIONAL = frozenset(
    ("exclude", "classes", "ignore_labels", "citation", "feature.channels", "feature.fps",
     "feature.template", "feature.key")
)  # fmt: skip
_KINDS: dict[str, _Kind] = {
    "name": (f"to be text {_QUOTED}", lambda value: _is_text(value) and bool(value)),
    "format": (str(FORMAT), lambda value: type(value) is int and value == FORMAT),
    "annotations": ("to be the path of a file", _is_path),
    "features": ("to be a path or a list of paths", _some(_is_path)),
    "splits": ("to be {train: <subset>, …}, with a name or a list of names each", _is_splits),
    "exclude": (f"to be a list of videos, or a list per reason {_QUOTED}", _is_exclude),
    "classes": (f"to be a list of class names {_QUOTED}", _list_of(_is_text)),
    "out_of_range": _one_of("error", "clamp", "keep"),
    "ignore_labels": (f"to be a list of labels {_QUOTED}", _list_of(_is_text, empty=True)),
    "unmatched": _one_of("error", "skip"),
    "extra_features": _one_of("error", "ignore"),
    "citation": _TEXT,
    "feature.prefix": _TEXT,
    "feature.suffix": _TEXT,
    "feature.layout": _one_of("TC", "CT"),
    "feature.channels": (
        "> 0, a whole number",
        lambda value: isinstance(value, int) and _is_number(value),
    ),
    "feature.stride": _ABOVE_0,
    "feature.frames": _ABOVE_0,
    "feature.fps": _ABOVE_0,
    "feature.template": _TEXT_OR_TEXTS,
    "feature.key": _TEXT_OR_TEXTS,
}


def load_spec(file: Path) -> DatasetSpec:
    """Reads and checks a ``dataset.yaml``.

    Raises:
        DataError: if it is missing, not valid YAML, has a key twice, or a key or value is not as it
            should be; the message names file, key, what was expected and what was found.
    """
    # Unlike Path.is_file, it never fails: the reason of a refusal is told by reading.
    if os.path.isfile(file) and file.suffix.lower() not in (".yaml", ".yml"):
        table = str(file) if file.suffix.lower() in TABLES else "segments.csv"
        raise DataError(
            f"{file}: expected a data directory, got a file; make one: {prepare_command(table)}"
        )
    try:
        parsed = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise DataError(_no_dataset(file)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise DataError(not_utf8(file, "YAML")) from error
    except ValueError as error:  # a NUL in the path
        raise DataError(f"{str(file)!r}: cannot be read: {error}") from error
    values = _checked(file, "", parsed, DatasetSpec)
    feature = _checked(file, "feature.", values.get("feature", {}), FeatureSpec)
    values["feature"] = FeatureSpec(**feature)
    if "name" not in values:
        raise DataError(f"{file}: expected a key 'name'")
    exclude = values.get("exclude") or {}
    groups: Mapping[str, list[str]] = {"": exclude} if isinstance(exclude, list) else exclude
    values["exclude"] = {reason: tuple(videos) for reason, videos in groups.items() if videos}
    values["ignore_labels"] = tuple(values.get("ignore_labels") or ())
    values["classes"] = None if values.get("classes") is None else tuple(values["classes"])
    values["citation"] = values.get("citation") or ""
    for key, items in (
        ("exclude", [video for videos in groups.values() for video in videos]),
        ("classes", values["classes"] or ()),
    ):
        repeated = [item for item, count in Counter(items).items() if count > 1]
        if repeated:
            raise DataError(f"{file}: expected each item of {key} once, got {repeated[0]!r} twice")
    return DatasetSpec(**values)


def _checked(file: Path, where: str, values: Any, kind: type[Any]) -> dict[str, Any]:
    """Returns ``values`` as a dict whose keys are all fields of ``kind``, with sound values."""
    known = [f.name for f in fields(kind)]
    if not isinstance(values, Mapping):
        what = where.rstrip(".") or "the file"
        raise DataError(f"{file}: expected {what} to hold keys {known}, got {values!r:.60}")
    for key, value in values.items():
        if key not in known:
            raise DataError(
                f"{file}: unknown key '{where}{key}'{nearest(str(key), known)} "
                f"(known: {', '.join(known)})"
            )
        full = f"{where}{key}"
        if full == "feature" or (value is None and full in _OPTIONAL):
            continue
        expected, fits = _KINDS[full]
        if not fits(value):
            raise DataError(f"{file}: expected {full} {expected}, got {value!r:.200}")
    return dict(values)


def save_spec(spec: DatasetSpec, folder: FilePath) -> Path:
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
        elif item.name == "exclude":
            if not value:
                continue
            value = {reason: list(videos) for reason, videos in value.items()}
            value = value[""] if list(value) == [""] else value
        elif item.name == "extra_features" and value == "error":
            continue  # as above
        values[item.name] = value
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return write_text_atomically(Path(folder) / "dataset.yaml", text)
