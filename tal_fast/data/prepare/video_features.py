# SPDX-License-Identifier: Apache-2.0
"""Data directories from an annotation file and features as other codebases distribute them.

The features stay where they are when they can be read in place; ``pack`` converts them otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tal_fast.data.annotation_file import AnnotatedVideo, AnnotationFile, read_annotation_file
from tal_fast.data.annotations import annotations_of
from tal_fast.data.dataset import (
    DatasetSpec,
    FeatureSpec,
    open_dataset,
    save_spec,
    shown_names,
)
from tal_fast.data.feature_index import index_streams, without_features
from tal_fast.data.feature_names import other_capitals, rename
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.files import directory_in_one_step, write_text_atomically
from tal_fast.data.packing import pack_features
from tal_fast.data.prepare.choices import FeatureChoice, Repairs, VideoReport
from tal_fast.data.prepare.row_durations import durations_of_rows, leave_out
from tal_fast.data.streams import Stream, streams_of
from tal_fast.data.validation.annotation_checks import Faults
from tal_fast.data.validation.doubts import rate_doubts
from tal_fast.data.validation.feature_checks import timing_faults
from tal_fast.data.validation.time_units import frames_doubt, seconds_doubt
from tal_fast.data.validation.timing import Proposal
from tal_fast.errors import ConfigError, DataError, argument, counted, nearest
from tal_fast.typing import FilePath, VideoProgress

__all__ = ["prepare_videos"]

# Why dataset.yaml excludes a video.
WITHOUT_FEATURES = "without features"
# Features of more videos than this must fit stride and fps; the rest may be cut or damaged.
_MUST_FIT = 0.5


def prepare_videos(
    name: str,
    annotations: FilePath | AnnotationFile,
    features: FeatureChoice,
    out: FilePath,
    *,
    splits: dict[str, list[str]],
    subsets: FilePath | None = None,
    ignore_labels: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    repairs: Repairs | None = None,
    notes: Sequence[str] = (),
    unit: str = "seconds",
    citation: str = "",
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> VideoReport:
    """Makes a data directory and opens it once, so that it is known to work.

    Args:
        name: of the data set.
        annotations: annotation file, of any form of
            :func:`tal_fast.data.annotation_file.read_annotation_file`, or what was read of one.
            There, a video without a duration has that of its rows
            (:func:`~tal_fast.data.prepare.row_durations.durations_of_rows`).
        features: which features.
        out: directory to make; it appears when it is complete.
        splits: split -> names of its subset, in any case; the first of each that occurs counts.
        subsets: CSV that tells the subsets, for a file that does not.
        ignore_labels: labels that are left out where they occur.
        classes: class names in order; those of the annotations by default.
        repairs: what may be done about faults.
        notes: lines for the report.
        unit: what the times of an :class:`AnnotationFile`, which are seconds, were before.
        citation: how to cite the data.
        overwrite: replace an existing ``out``.
        progress: called while packing with (videos done, videos in all, video).

    Raises:
        DataError: if a file is missing or faulty, videos lack features, segments are faulty and no
            rule says what to do, or stride and fps do not fit the rows; the message proposes those
            that do.
        ConfigError: if an argument is unknown.
    """
    repairs = repairs or Repairs()
    _check_arguments(features, repairs)
    file = annotations
    if not isinstance(file, AnnotationFile):
        file = read_annotation_file(file, bare="timed", subsets=subsets)
    chosen = _splits(file, splits)
    wanted = [v for v in file.videos if v.subset in set(chosen.values())]
    unknown = sorted(set(repairs.exclude) - {video.name for video in file.videos})
    if unknown:
        raise DataError(
            f"{file.origin}: no video {unknown[0]!r} to exclude"
            f"{nearest(unknown[0], [video.name for video in file.videos], numbered=True)}"
        )
    excluded = tuple(video.name for video in wanted if video.name in repairs.exclude)
    wanted = [video for video in wanted if video.name not in repairs.exclude]
    annotated = [video.name for video in wanted]
    streams = _with_templates(features, annotated)
    missing = tuple(without_features(streams, annotated, allow_pickle=features.allow_pickle))
    if missing:
        lacking = (each for each in streams if without_features(
            [each], missing, allow_pickle=features.allow_pickle))  # fmt: skip
        with OpenStream(next(lacking), allow_pickle=features.allow_pickle) as opened:
            if repairs.missing == "error":
                raise _no_features(file, opened, annotated, missing)
            twins = other_capitals(opened, missing)
            if twins:
                notes = (*notes, rename(opened, twins, len(missing), file.origin))
    there = [name for name in annotated if name not in set(missing)]
    if not there:
        raise DataError(f"{streams[0].path}: no annotated video has features")
    labels = {item.label for video in wanted for item in video.instances}
    ignored = tuple(label for label in ignore_labels if label in labels)
    with directory_in_one_step(out, overwrite=overwrite) as work:
        spec = _spec(name, features, streams, chosen, missing, ignored, repairs, citation)
        if classes is not None:
            spec = replace(spec, classes=tuple(classes))
        if features.pack is not None:
            pack_features(
                streams,
                work / "features",
                dtype=features.pack,
                layout=features.layout,  # type: ignore[arg-type]
                videos=there,
                allow_pickle=features.allow_pickle,
                progress=progress,
            )
        doubt = ""
        known = {video.name for video in wanted if video.duration is not None}
        wanted, dropped = _without_empty(wanted, repairs.non_positive, file.origin)
        if features.resized:
            wanted = _own_rates(wanted, spec, work)
        else:
            wanted, doubt = durations_of_rows(wanted, spec, work, file.origin)
        notes = (*notes, *_unit_doubts(wanted, features, unit, repairs, file.origin))
        _write(work, spec, wanted, name)
        try:
            if any(item.line is not None for video in wanted for item in video.instances):
                # What is read back of the copy knows no lines of the table.
                annotations_of(
                    replace(file, videos=tuple(wanted)),
                    classes=spec.classes,
                    out_of_range=repairs.out_of_range,  # type: ignore[arg-type]
                    ignore_labels=spec.ignore_labels,
                )
            data = open_dataset(work)
        except DataError as error:  # the caller knows the original, not the copy in the making
            copy = str(work / "annotations.json")
            raise DataError(str(error).replace(copy, file.origin) + doubt) from None
        by_name = {video.name: video for video in wanted}
        fitting = None
        if not features.resized:
            given = Proposal(features.stride, features.fps, features.frames, 0.0)
            judged = {name: data.features[name] for name in data.features if name in known}
            fitting, proposals = timing_faults(by_name, judged, given, Faults(()), features.layout)
            if fitting is not None and fitting < _MUST_FIT:
                better = "; ".join(str(proposal) for proposal in proposals) or "none found"
                raise DataError(
                    f"{streams[0].path}: stride {features.stride:g} and frames {features.frames:g} "
                    f"agree with the durations of only {100 * fitting:.1f} % of the videos; "
                    f"settings that fit better: {better}"
                )
            unjudged = [name for name in data.features if name not in known]
            notes = (*notes, *rate_doubts(by_name, unjudged, data.features, given))
        report = data.annotations.report
        result = VideoReport(
            path=Path(out),
            splits={split: len(videos) for split, videos in data.splits.items()},
            instances=data.truth.num_instances,
            classes=data.num_classes,
            channels=data.channels,
            rows=sum(extent.rows for extent in data.features.values()),
            fitting=fitting,
            dropped=dropped,
            out_of_range=report.out_of_range,
            missing=missing,
            excluded=excluded,
            template=streams[0].template or "",
            notes=tuple(notes),
            cut=report.clamped,
            outside=report.dropped,
        )
    return result


def _unit_doubts(
    videos: Sequence[AnnotatedVideo],
    features: FeatureChoice,
    unit: str,
    repairs: Repairs,
    origin: str,
) -> list[str]:
    """Returns what speaks against the unit of the times.

    Raises:
        DataError: they look like frames, and segments beyond their video are errors.
    """
    if unit == "frames":
        doubt = frames_doubt(videos, features.fps)
    else:
        doubt = seconds_doubt(videos, features.fps, origin)
        if doubt and repairs.out_of_range == "error":
            raise DataError(doubt)
    return [doubt] if doubt else []


def _no_features(
    file: AnnotationFile, opened: OpenStream, annotated: Sequence[str], missing: Sequence[str]
) -> DataError:
    """Returns the error of videos without features, with what works about them."""
    stream = opened.stream
    twins = other_capitals(opened, missing)
    if len(missing) == len(annotated) and not twins:
        example = min(opened.entries(missing), default=None)
        holds = "it is empty" if example is None else f"it holds, for example, {example!r}"
        return DataError(
            f"{stream.path}: no annotated video has features there ({stream.template}; the first "
            f"is {missing[0]!r}{_meant(opened, missing[0])}); {holds}. Another place "
            f"({argument('features')}), or other names ({argument('template')})?"
        )
    timed = {video.name for video in file.videos if video.duration is not None}
    untimed = [name for name in missing if name not in timed]
    advice = f"{argument('missing', 'skip')} leaves them out of training and prediction"
    if twins:
        advice = rename(opened, twins, len(missing), file.origin)
    elif untimed:
        advice = leave_out(missing, file.origin)
    return DataError(
        f"{stream.path}: no features ({stream.template}) for {len(missing)} of "
        f"{counted(len(annotated), 'video')}: {shown_names(missing)}"
        f"{'' if twins else _meant(opened, missing[0])}; {advice}"
    )


def _check_arguments(features: FeatureChoice, repairs: Repairs) -> None:
    for name, value, known in (
        ("layout", features.layout, ("TC", "CT")),
        ("out_of_range", repairs.out_of_range, ("error", "clamp", "keep")),
        ("non_positive", repairs.non_positive, ("error", "drop")),
        ("missing", repairs.missing, ("error", "skip")),
    ):
        if value not in known:
            raise ConfigError(f"prepare: expected {name} among {', '.join(known)}, got {value!r}")
    for name, count in (("stride", features.stride), ("frames", features.frames)):
        if not count > 0:
            raise ConfigError(f"prepare: expected {name} > 0, got {count}")


def _splits(file: AnnotationFile, wanted: dict[str, list[str]]) -> dict[str, str]:
    """Returns split -> subset as the file spells it."""
    spelt = {video.subset.lower(): video.subset for video in file.videos}
    chosen = {}
    for split, names in wanted.items():
        subset = next((spelt[name] for name in names if name in spelt), None)
        if subset is None:
            raise DataError(
                f"{file.origin}: expected a subset {' or '.join(names)} for split {split!r}, got "
                f"{', '.join(sorted(map(repr, spelt.values())))}"
            )
        chosen[split] = subset
    return chosen


def _meant(opened: OpenStream, video: str) -> str:
    """Returns a hint at the features that a name may mean."""
    stem = os.path.splitext(video)[0]
    # A hint must not fail where the search itself did not.
    with contextlib.suppress(DataError):
        if stem != video and opened.holds(stem):
            return f"; there are features of {stem!r}: does the name have the ending of a file?"
        return nearest(video, opened.videos([video]), numbered=True)
    return ""


def _with_templates(features: FeatureChoice, names: Sequence[str]) -> tuple[Stream, ...]:
    """Returns the streams with the templates that fit most of these videos."""
    streams = []
    for stream in streams_of(features.paths, features.template, features.key):
        with OpenStream(stream, allow_pickle=features.allow_pickle) as opened:
            best = opened.template
            if stream.template is None:
                # ActivityNet's ids come without v_ in the annotations and with it in file names.
                plain, prefixed = (
                    sum(opened.holds(prefix + name) for name in names) for prefix in ("", "v_")
                )
                if prefixed > plain:
                    best = f"v_{best}"
        streams.append(replace(stream, template=best, path=os.path.abspath(stream.path)))
    return tuple(streams)


def _spec(
    name: str,
    features: FeatureChoice,
    streams: Sequence[Stream],
    splits: dict[str, str],
    missing: tuple[str, ...],
    ignored: tuple[str, ...],
    repairs: Repairs,
    citation: str,
) -> DatasetSpec:
    packed = features.pack is not None
    keys = [stream.key for stream in streams]
    paths: str | list[str] = "features" if packed else [stream.path for stream in streams]
    templates: Any = None if packed else [stream.template for stream in streams]
    if not packed and len(streams) == 1:
        paths, templates = streams[0].path, streams[0].template
    return DatasetSpec(
        name=name,
        features=paths,
        feature=FeatureSpec(
            template=templates,
            key=None if packed or None in keys else [key for key in keys if key is not None],
            layout="TC" if packed else features.layout,
            stride=1.0 if features.resized else features.stride,
            frames=1.0 if features.resized else features.frames,
            fps=None if features.resized else features.fps,
        ),
        splits=dict(splits),
        out_of_range=repairs.out_of_range,
        ignore_labels=ignored,
        exclude={WITHOUT_FEATURES: missing} if missing else {},
        # Features of videos that are in no split, or in another data set, are no mistake here.
        extra_features="ignore",
        citation=citation,
    )


def _without_empty(
    videos: Sequence[AnnotatedVideo], rule: str, path: str
) -> tuple[list[AnnotatedVideo], int]:
    """Returns the videos without the segments that are none, and how many those were."""
    kept, dropped, first = [], 0, ""
    for video in videos:
        good = tuple(
            item for item in video.instances if item.span is None or item.span[1] > item.span[0]
        )
        lost = len(video.instances) - len(good)
        if lost and not first:
            first = video.name
        dropped += lost
        kept.append(video._replace(instances=good))
    if dropped and rule == "error":
        raise DataError(
            f"{path}: {counted(dropped, 'segment', 'have')} no length (end <= start), first in "
            f"video {first!r}; {argument('non_positive', 'drop')} leaves such out"
        )
    return kept, dropped


def _own_rates(
    videos: Sequence[AnnotatedVideo], spec: DatasetSpec, work: Path
) -> list[AnnotatedVideo]:
    """Gives each video the rate that spreads its rows over its duration: one row, one frame."""
    excluded = spec.excluded
    extents = index_streams(
        spec.streams(work / "dataset.yaml"),
        [video.name for video in videos if video.name not in excluded],
        layout=spec.feature.layout,  # type: ignore[arg-type]
    )
    lengths = {extent.rows for extent in extents.values()}
    if len(lengths) > 1:
        raise DataError(
            f"{next(iter(extents.values())).path}: expected resized features of one number of rows,"
            f" got {min(lengths)} to {max(lengths)}"
        )
    return [
        video._replace(rate=extents[video.name].rows / video.duration if video.duration else None)
        if video.name in extents
        else video
        for video in videos
    ]


def _write(work: Path, spec: DatasetSpec, videos: Sequence[AnnotatedVideo], name: str) -> None:
    database = {
        video.name: {
            "subset": video.subset,
            "duration": video.duration,
            **({} if video.rate is None else {"fps": video.rate}),
            "annotations": [
                {
                    "label": item.label,
                    **({} if item.label_id is None else {"label_id": item.label_id}),
                    "segment": item.value("segment") if item.segment is None else item.segment,
                }
                for item in video.instances
            ],
        }
        for video in videos
    }
    text = json.dumps({"version": name, "database": database}, ensure_ascii=False)
    write_text_atomically(work / "annotations.json", text + "\n")
    save_spec(spec, work)
