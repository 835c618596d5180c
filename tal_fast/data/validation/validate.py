# SPDX-License-Identifier: Apache-2.0
"""Runs all checks over an annotation file and its features."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tal_fast.data.annotation_file import AnnotatedVideo, AnnotationFile, read_annotation_file
from tal_fast.data.dataset_spec import annotation_file, load_spec, spec_file
from tal_fast.data.extents import Extent, Layout
from tal_fast.data.feature_index import without_features
from tal_fast.data.grid import Grid
from tal_fast.data.split_names import usual_split
from tal_fast.data.streams import Stream
from tal_fast.data.validation.annotation_checks import (
    Faults,
    annotation_faults,
    class_faults,
    classes_of,
    count_splits,
    leaks,
)
from tal_fast.data.validation.doubts import durations_of_rows, label_doubts, rate_doubts
from tal_fast.data.validation.feature_checks import (
    content_faults,
    find_extents,
    held_instances,
    timing_faults,
)
from tal_fast.data.validation.result import CHECKS, ValidationResult, VideoFacts
from tal_fast.data.validation.time_units import seconds_doubt
from tal_fast.data.validation.timing import Proposal
from tal_fast.data.windows import WindowRule
from tal_fast.errors import ConfigError, counted, nearest
from tal_fast.typing import FilePath, VideoProgress

__all__ = ["FeatureQuestion", "validate", "validate_dataset"]

_TADTR = WindowRule()


@dataclass(frozen=True)
class FeatureQuestion:
    """Which features should fit the annotations, and how.

    Attributes:
        streams: where they lie.
        stride: frames between two rows.
        frames: frames that a row sees.
        fps: of all videos; None takes each video's own.
        layout: ``"TC"`` or ``"CT"``.
        channels: expected number; None takes that of most videos.
        windows: how training cuts them; tells which instances are never learned.
        unmatched: ``"error"``, or ``"skip"`` where training leaves out videos without features.
        extra_features: ``"ignore"``, or ``"error"`` where training refuses features without
            annotations.
    """

    streams: tuple[Stream, ...]
    stride: float
    frames: float
    fps: float | None = None
    layout: Layout = "TC"
    channels: int | None = None
    windows: WindowRule = _TADTR
    unmatched: str = "error"
    extra_features: str = "ignore"


def validate(
    annotations: FilePath,
    features: FeatureQuestion | None = None,
    *,
    subsets: FilePath | None = None,
    splits: Mapping[str, str | Sequence[str]] | None = None,
    classes: Sequence[str] | None = None,
    ignore_labels: Collection[str] = (),
    out_of_range: str = "error",
    exclude: Collection[str] = (),
    group: str | None = None,
    accept: Collection[str] = (),
    content: bool = True,
    progress: VideoProgress | None = None,
) -> ValidationResult:
    """Checks annotations, and the features against them; changes nothing.

    Example::

        question = FeatureQuestion(streams_of("i3d"), stride=4, frames=16)
        result = validate("thumos14.json", question)
        print(result.table())

    Args:
        annotations: JSON of the form of ActivityNet, ActionFormer, OpenTAD and TadTR, or of BMN and
            mmaction2.
        features: what to compare with; None checks the annotations alone.
        subsets: CSV that tells the subsets, for a file that does not.
        splits: split -> subset or subsets; default: each subset is a split. The training split is
            the one named ``train``, or whose name tells; else the first.
        classes: class names; default: those of the file.
        ignore_labels: labels that will be left out, for example ``("Ambiguous",)``.
        out_of_range: what training will do with segments beyond their video: ``"error"``,
            ``"clamp"`` or ``"keep"``. The latter two make them a warning.
        exclude: videos that training leaves out; their annotations are looked at all the same.
        group: regular expression whose first group names what must not be in two splits.
        accept: checks (keys of ``CHECKS``) whose errors shall not keep training from starting.
        content: read the features, not just their headers.
        progress: called with (videos done, videos in all, video) while features are read.

    Returns:
        The findings; :attr:`ValidationResult.ok` says whether training may start.

    Raises:
        DataError: if the annotation file or the feature folder cannot be read at all.
        ConfigError: if an argument is unknown.
    """
    _check_arguments(accept, out_of_range, group)
    file = read_annotation_file(annotations, bare="timed", subsets=subsets, allow_repeated=True)
    if splits is None:
        subset_names = dict.fromkeys(video.subset for video in file.videos)
        chosen: dict[str, list[str]] = {name or "(none)": [name] for name in subset_names}
    else:
        chosen = {k: [v] if isinstance(v, str) else list(v) for k, v in splits.items()}
    faults = Faults(accept)
    names = classes_of(file, classes, ignore_labels)
    annotation_faults(file, names, chosen, ignore_labels, out_of_range, faults)
    if classes is None:
        for doubt in label_doubts(file.label_counts(ignore_labels)):
            faults.add("label", "warning", "may be a slip of another label", doubt)
    split_of = _split_of(chosen)
    left_out = _left_out(file, features, split_of, exclude, faults)
    used = [video for video in file.videos if video.name not in left_out]
    counts, lengths = count_splits(used, names, chosen)
    train = next(
        (name for name in chosen if usual_split(name) == "train"),
        "validation" if {n.lower() for n in chosen} == {"validation", "test"} else "",
    )
    train = next((name for name in chosen if name.lower() == train.lower()), next(iter(chosen)))
    class_faults(counts, train, faults)
    leaks(used, split_of, group, faults)
    extents: dict[str, Extent] = {}
    fitting: float | None = None
    proposals: list[Proposal] = []
    unit = seconds_doubt(used, None if features is None else features.fps, file.origin)
    doubts = [unit] if unit else []
    if features is not None:
        wanted = [video.name for video in used if split_of(video)]
        extents = find_extents(
            features.streams,
            wanted,
            [video.name for video in file.videos],
            features.layout,
            features.channels,
            faults,
            refuse_extra=features.extra_features == "error" and features.unmatched != "skip",
        )
        by_name = {video.name: video for video in file.videos}
        given = Proposal(features.stride, features.fps, features.frames, 0.0)
        fitting, proposals = timing_faults(by_name, extents, given, faults, features.layout)
        unjudged = durations_of_rows(by_name, extents, given)
        if len(unjudged) == len(extents):  # a few agree by chance
            doubts += rate_doubts(by_name, unjudged, extents, given)
        training = [by_name[name] for name in extents if split_of(by_name[name]) == train]
        _never_learned(training, extents, features, names, out_of_range, faults)
        if content:
            splits_by_name = {video.name: split_of(video) for video in file.videos}
            content_faults(extents, splits_by_name, faults, progress)
    return ValidationResult(
        source=_source(file, features),
        findings=faults.findings(),
        splits=counts,
        classes=names,
        videos=_facts(file.videos, split_of, extents, features),
        lengths=lengths,
        proposals=tuple(proposals),
        fitting=fitting,
        doubts=tuple(doubts),
        channels=next((extent.width for extent in extents.values()), None),
        content=content and bool(extents),
    )


def validate_dataset(
    path: FilePath,
    *,
    windows: WindowRule | None = None,
    group: str | None = None,
    accept: Collection[str] = (),
    content: bool = True,
    progress: VideoProgress | None = None,
) -> ValidationResult:
    """Checks a data directory by what its ``dataset.yaml`` says.

    Args:
        path: the directory, or its ``dataset.yaml``.
        windows: how training will cut the videos.
        group: as in :func:`validate`.
        accept: as in :func:`validate`.
        content: as in :func:`validate`.
        progress: as in :func:`validate`.

    Raises:
        DataError: if ``dataset.yaml``, the annotation file or the feature folder cannot be read.
        ConfigError: if an argument is unknown.
    """
    file = spec_file(path)
    spec = load_spec(file)
    question = FeatureQuestion(
        streams=spec.streams(file),
        stride=spec.feature.stride,
        frames=spec.feature.frames,
        fps=spec.feature.fps,
        layout=spec.feature.layout,  # type: ignore[arg-type]
        channels=spec.feature.channels,
        windows=windows or _TADTR,
        unmatched=spec.unmatched,
        extra_features=spec.extra_features,
    )
    return validate(
        annotation_file(file.parent, spec),
        question,
        splits=spec.splits,
        classes=spec.classes,
        ignore_labels=spec.ignore_labels,
        out_of_range=spec.out_of_range,
        exclude=spec.excluded,
        group=group,
        accept=accept,
        content=content,
        progress=progress,
    )


def _check_arguments(accept: Collection[str], out_of_range: str, group: str | None) -> None:
    for name in accept:
        if name not in CHECKS:
            raise ConfigError(
                f"validate: expected accept among {', '.join(CHECKS)}, got {name!r}"
                f"{nearest(name, CHECKS)}"
            )
    if out_of_range not in ("error", "clamp", "keep"):
        raise ConfigError(
            f"validate: expected out_of_range 'error', 'clamp' or 'keep', got {out_of_range!r}"
        )
    if group is not None:
        try:
            re.compile(group)
        except re.error as error:
            raise ConfigError(f"validate: group {group!r} is no expression: {error}") from error


def _split_of(splits: Mapping[str, Sequence[str]]) -> Callable[[AnnotatedVideo], str]:
    by_subset = {subset: name for name, subsets in splits.items() for subset in subsets}
    return lambda video: by_subset.get(video.subset, "")


def _left_out(
    file: AnnotationFile,
    features: FeatureQuestion | None,
    split_of: Callable[[AnnotatedVideo], str],
    exclude: Collection[str],
    faults: Faults,
) -> set[str]:
    """Returns the videos of the splits that training will leave out."""
    annotated = {video.name for video in file.videos}
    for name in exclude:
        if name not in annotated:
            faults.add("excluded", "error", "to be excluded, but not in the annotation file",
                       f"video {name!r}{nearest(name, annotated, numbered=True)}")  # fmt: skip
    wanted = [video.name for video in file.videos if split_of(video)]
    left_out = annotated.intersection(exclude)
    for name in wanted:
        if name in left_out:
            faults.add("excluded", "warning", "left out of training and prediction (exclude); "
                       "scoring counts them", f"video {name!r}")  # fmt: skip
    if features is not None and features.unmatched == "skip":
        rest = [name for name in wanted if name not in left_out]
        for name in without_features(features.streams, rest):
            left_out.add(name)
            faults.add("missing-features", "warning", "left out of training and prediction "
                       "(unmatched: skip); scoring counts them", f"video {name!r}")  # fmt: skip
    return left_out


def _never_learned(
    videos: Sequence[AnnotatedVideo],
    extents: Mapping[str, Extent],
    features: FeatureQuestion,
    classes: Sequence[str],
    out_of_range: str,
    faults: Faults,
) -> None:
    """Counts the instances of training videos that no window owns, by class."""
    total, unheld = Counter[str](), Counter[str]()
    for video in videos:
        fps = features.fps or video.rate
        if fps is None:
            continue  # which is a fault of its own
        grid = Grid(features.stride, features.frames, fps)
        held = held_instances(video, extents[video.name], grid, features.windows, out_of_range)
        for item, is_held in zip(video.instances, held.tolist(), strict=True):
            if item.label is not None and item.label in classes:
                total[item.label] += 1
                unheld[item.label] += not is_held
    length = features.windows.length
    for label in classes:
        if unheld[label]:
            gone = unheld[label] == total[label]
            faults.add("never-learned", "error" if gone else "warning",
                       f"{'no instance of the class fits' if gone else 'instances do not fit'} "
                       f"into any window of {counted(length, 'row')}",
                       f"{label!r}: {unheld[label]} of {total[label]}", unheld[label])  # fmt: skip


def _source(file: AnnotationFile, features: FeatureQuestion | None) -> str:
    if features is None:
        return file.origin
    return f"{file.origin} with {', '.join(stream.path for stream in features.streams)}"


def _facts(
    videos: Sequence[AnnotatedVideo],
    split_of: Callable[[AnnotatedVideo], str],
    extents: Mapping[str, Extent],
    features: FeatureQuestion | None,
) -> tuple[VideoFacts, ...]:
    fps = features.fps if features is not None else None
    return tuple(
        VideoFacts(
            name=video.name,
            split=split_of(video),
            duration=video.duration,
            fps=fps or video.rate,
            rows=extents[video.name].rows if video.name in extents else None,
        )
        for video in videos
        if video.duration is not None
    )
