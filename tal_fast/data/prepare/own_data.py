# SPDX-License-Identifier: Apache-2.0
"""A data directory from one's own files: labelled segments, and features of the videos.

``docs/own-data.md`` walks through it. Segments come as a CSV file with a line each
(:mod:`tal_fast.data.prepare.segment_table`) or as annotations of ActivityNet's form. Features stay
where they are, unless they have to be converted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tal_fast.data.annotation_file import (
    AnnotatedInstance,
    AnnotatedVideo,
    AnnotationFile,
    read_annotation_file,
)
from tal_fast.data.prepare.choices import FeatureChoice, Repairs, VideoReport
from tal_fast.data.prepare.segment_table import SegmentTable, read_segment_table
from tal_fast.data.prepare.video_features import prepare_videos
from tal_fast.data.split_names import USUAL_NAMES, usual_split, whole_choice
from tal_fast.data.validation.doubts import label_doubts
from tal_fast.errors import ConfigError, DataError, argument, counted, listing, nearest
from tal_fast.typing import FilePath, VideoProgress

__all__ = ["prepare_csv", "prepare_json"]

_MOST_DRAWS = 1000
_SPLITS = argument("splits", option="--split")


def prepare_csv(
    segments: FilePath,
    features: FeatureChoice,
    out: FilePath,
    *,
    columns: Mapping[str, str] | None = None,
    unit: str = "seconds",
    splits: Mapping[str, Sequence[str]] | None = None,
    test_share: float | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    repairs: Repairs | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> VideoReport:
    """Makes a data directory from a CSV file of segments and a folder of features.

    Columns are ``video``, ``start``, ``end``, ``label`` and, where there are, ``subset`` (or
    ``split``), ``duration`` and ``fps``; see
    :func:`~tal_fast.data.prepare.segment_table.read_segment_table`. A video without a duration has
    that of its rows.

    Args:
        segments: the file.
        features: which features, and what a row of them is in time.
        out: directory to make; it appears when it is complete.
        columns: columns that are called otherwise, ``{"label": "class"}``.
        unit: of start and end: ``"seconds"``, or ``"frames"`` (start / fps is seconds).
        splits: split -> its subsets, where those are not called train, val or test (or training,
            validation, testing, ...).
        test_share: share of the videos that is drawn as split ``test`` where the file has no
            subsets; 0.2 when None.
        seed: of that draw.
        classes: names of the classes in their order; another label is an error then. Those that
            occur, sorted, by default.
        repairs: what may be done about faults; default: nothing.
        name: of the data set; that of ``out`` by default.
        overwrite: replace an existing ``out``.
        progress: called while packing with (videos done, videos in all, video).

    Raises:
        DataError: the file is faulty (the message names lines), videos lack features, segments lie
            beyond their videos, rows and durations disagree, or no draw leaves every class in
            training.
        ConfigError: an argument is unknown, or contradicts the file.
    """
    repairs = repairs or Repairs()
    allow_empty = repairs.non_positive == "drop"
    table = read_segment_table(segments, columns, classes=classes, allow_empty=allow_empty)
    file = _annotation_file(table, unit, features.fps)
    notes = []
    if table.unused:
        notes.append(f"columns that are not used: {', '.join(table.unused)}")
    return _prepare(
        file, features, out, notes, splits, test_share, seed, classes, repairs, name, overwrite,
        progress, unit,
    )  # fmt: skip


def prepare_json(
    annotations: FilePath,
    features: FeatureChoice,
    out: FilePath,
    *,
    splits: Mapping[str, Sequence[str]] | None = None,
    test_share: float | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    repairs: Repairs | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> VideoReport:
    """Makes a data directory from annotations of ActivityNet's form and a folder of features.

    Args:
        annotations: ``{"database": {video: {"subset", "duration", "fps", "annotations":
            [{"segment": [start, end], "label"}]}}}``, plain or gzipped; every video has a duration.
        features: as of :func:`prepare_csv`, and so are the other arguments.
        out: directory to make.
        splits: as there.
        test_share: as there.
        seed: as there.
        classes: as there.
        repairs: as there.
        name: as there.
        overwrite: as there.
        progress: as there.

    Raises:
        DataError: as :func:`prepare_csv`.
        ConfigError: as :func:`prepare_csv`.
    """
    file = read_annotation_file(annotations, bare="timed")
    file.refuse("duration")
    return _prepare(
        file, features, out, [], splits, test_share, seed, classes, repairs or Repairs(), name,
        overwrite, progress,
    )  # fmt: skip


def _prepare(
    file: AnnotationFile,
    features: FeatureChoice,
    out: FilePath,
    notes: list[str],
    splits: Mapping[str, Sequence[str]] | None,
    test_share: float | None,
    seed: int,
    classes: Sequence[str] | None,
    repairs: Repairs,
    name: str | None,
    overwrite: bool,
    progress: VideoProgress | None,
    unit: str = "seconds",
) -> VideoReport:
    if features.fps is None and not features.resized:
        without = [video.name for video in file.videos if video.rate is None]
        if without:
            raise DataError(
                f"{file.origin}: {counted(len(without), 'video', 'have')} no fps, first "
                f"{without[0]!r}: say how "
                "many rows of features there are per second (--rate), or how many frames (--fps)"
            )
    if classes is None:
        notes = [*notes, *label_doubts(file.label_counts())]
    has_subsets = any(video.subset for video in file.videos)
    if has_subsets:
        if test_share is not None:
            raise ConfigError(
                f"{argument('test_share')}: {file.origin} has subsets, so no videos are drawn; "
                f"got {test_share:g}"
            )
        file, chosen, told = _named_splits(file, splits)
    else:
        if splits:
            raise ConfigError(f"{_SPLITS}: {file.origin} has no subsets, got {dict(splits)!r}")
        file, told = _drawn_splits(
            file, 0.2 if test_share is None else test_share, seed, repairs.exclude
        )
        chosen = {"train": ["train"], "test": ["test"]}
    return prepare_videos(
        name or Path(out).name,
        file,
        features,
        out,
        splits=chosen,
        classes=classes,
        repairs=repairs,
        notes=[*notes, *told],
        unit=unit,
        overwrite=overwrite,
        progress=progress,
    )


def _annotation_file(table: SegmentTable, unit: str, fps: float | None) -> AnnotationFile:
    """Returns a table as what is read of annotations, in seconds."""
    if unit not in ("seconds", "frames"):
        raise ConfigError(f"unit: expected 'seconds' or 'frames', got {unit!r}")
    videos = []
    for name, rows in table.segments.items():
        rate = table.fps.get(name)
        per_second = 1.0
        if unit == "frames":
            frames_per_second = rate or fps
            if frames_per_second is None:
                raise ConfigError(
                    f"unit: frames become seconds by their rate; expected fps for video {name!r} "
                    "(a column fps, or one for all)"
                )
            per_second = frames_per_second
        instances = tuple(
            AnnotatedInstance(
                at,
                row.label,
                None,
                (row.start / per_second, row.end / per_second),
                None,
                row.line,
            )
            for at, row in enumerate(rows)
        )
        subset, duration = table.subsets.get(name, ""), table.durations.get(name)
        videos.append(AnnotatedVideo(name, subset, duration, rate, rate, instances, {}))
    return AnnotationFile(table.origin, tuple(videos))


def _asked(subsets: Sequence[str], given: Mapping[str, Sequence[str]] | None = None) -> str:
    """Returns how to say which splits the subsets are, of all splits: those given are all taken."""
    return argument("splits", whole_choice(subsets, given), option="--split")


def _named_splits(
    file: AnnotationFile, given: Mapping[str, Sequence[str]] | None
) -> tuple[AnnotationFile, dict[str, list[str]], list[str]]:
    """Returns the file, split -> its subset in small letters, and what is to be told of them."""
    subsets = list(dict.fromkeys(video.subset for video in file.videos))
    without = [video.name for video in file.videos if not video.subset]
    if without:
        raise DataError(
            f"{file.origin}: expected a subset for every video, got none for {len(without)}, first "
            f"{without[0]!r}"
        )
    small = {name.lower(): name for name in subsets}
    for name in subsets:
        if small[name.lower()] != name:
            raise DataError(
                f"{file.origin}: subsets {name!r} and {small[name.lower()]!r} differ in case "
                "alone; spell them alike"
            )
    if given:
        unknown = [
            f"{name!r} for {split}{nearest(name, subsets)}"
            for split, names in given.items()
            for name in names
            if name not in subsets
        ]
        if unknown:
            raise DataError(
                f"{file.origin}: {_SPLITS}: expected subsets among {', '.join(subsets)}, got "
                f"{listing(unknown)}"
            )
        chosen = {split: [name.lower() for name in names] for split, names in given.items()}
        notes: list[str] = []
    else:
        chosen, notes = _usual_splits(file, subsets)
    used = {name for names in chosen.values() for name in names}
    unused = [name for name in subsets if name.lower() not in used]
    if unused:
        notes.append(f"subsets that are in no split: {', '.join(unused)}")
    lacking = [split for split in ("train", "test") if split not in chosen]
    if lacking:
        advice = f"say which are which, all of them: {_asked(subsets, given)}"
        if len(subsets) == 1:
            advice = "name others, or no subset at all to have some videos drawn as test"
        raise DataError(
            f"{file.origin}: no split {' and no '.join(map(repr, lacking))}: expected subsets for "
            f"train and test, got {', '.join(subsets)}; {advice}"
        )
    split_of = {name: split for split, names in chosen.items() if len(names) > 1 for name in names}
    if split_of:  # a split is one subset: several become one of its name
        videos = [
            video._replace(subset=split_of.get(video.subset.lower(), video.subset))
            for video in file.videos
        ]
        file = replace(file, videos=tuple(videos))
        chosen |= {split: [split] for split in split_of.values()}
    return file, chosen, notes


def _usual_splits(
    file: AnnotationFile, subsets: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    known = [name for names in USUAL_NAMES.values() for name in names]
    chosen: dict[str, list[str]] = {}
    faults = []
    for name in subsets:
        split = usual_split(name)
        if split is None:
            faults.append(f"subset {name!r} is none of {', '.join(known)}")
        elif split in chosen:
            faults.append(
                f"subsets {chosen[split][0]!r} and {name!r} both look like split {split!r}"
            )
        else:
            chosen[split] = [name]
    if faults:
        raise DataError(
            f"{file.origin}: {listing(faults)}; say which are which, all of them: {_asked(subsets)}"
        )
    chosen = {split: [names[0].lower()] for split, names in chosen.items()}
    labelled = {video.subset.lower() for video in file.videos if video.instances}
    notes = []
    if "test" in chosen and "val" in chosen and chosen["test"][0] not in labelled:
        notes.append(f"subset {chosen['test'][0]} has no segment and is left out")
        del chosen["test"]
    if "test" not in chosen and "val" in chosen:
        chosen["test"] = chosen.pop("val")
        notes.append(f"split test is the subset {chosen['test'][0]}")
    return chosen, notes


def _drawn_splits(
    file: AnnotationFile, share: float, seed: int, exclude: Collection[str]
) -> tuple[AnnotationFile, list[str]]:
    """Draws the test videos: the first draw of the seed that leaves every class in training.

    Among the videos that are used: those to exclude are neither drawn nor do they teach a class.
    """
    used = [video for video in file.videos if video.name not in exclude]
    count = round(share * len(used)) if 0.0 < share < 1.0 else 0
    if not 0 < count < len(used):
        raise ConfigError(
            f"{argument('test_share')}: expected a share above 0 and below 1 that leaves videos "
            f"on both sides of {len(used)}, got {share:g}"
        )
    labels = {item.label for video in used for item in video.instances}
    for draw in range(_MOST_DRAWS):

        def place(video: AnnotatedVideo, draw_number: int = draw) -> bytes:
            return hashlib.sha256(f"{seed}\x1f{draw_number}\x1f{video.name}".encode()).digest()

        ordered = sorted(used, key=place)
        held, kept = ordered[:count], ordered[count:]
        left = {item.label for video in kept for item in video.instances}
        if left >= labels and any(video.instances for video in held):
            names = {video.name for video in held}
            told = (
                f"split test: {count} of {counted(len(used), 'video')}, drawn with seed "
                f"{seed}"
                f"{'' if not draw else f' (draw {draw + 1}, the first with all classes in train)'}"
            )
            videos = tuple(
                video._replace(subset="test" if video.name in names else "train")
                for video in file.videos
            )
            return replace(file, videos=videos), [told]
    raise DataError(
        f"{file.origin}: none of {counted(_MOST_DRAWS, 'draw')} of {count} test videos leaves "
        "every class in "
        f"training; name the splits in a column subset, or draw fewer: {argument('test_share')}"
    )
