# SPDX-License-Identifier: Apache-2.0
"""Durations of videos whose annotations tell none: those of their rows, which check no rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tal_fast.data.annotation_file import AnnotatedVideo
from tal_fast.data.axes import say_layout
from tal_fast.data.dataset import DatasetSpec, shown_names
from tal_fast.data.feature_index import index_streams
from tal_fast.data.validation.time_units import seconds_doubt
from tal_fast.errors import DataError, argument, counted

__all__ = ["durations_of_rows", "leave_out"]

# So many options a command may take; more videos are better left out of the table.
_NAMED = 20


def durations_of_rows(
    videos: Sequence[AnnotatedVideo], spec: DatasetSpec, work: Path, origin: str
) -> tuple[list[AnnotatedVideo], str]:
    """Gives videos without a duration that of their rows; returns a hint if that looks wrong.

    T rows cover ((T - 1) stride + frames) / fps seconds, and what is left over until a next row
    would begin is less than a stride. A segment that ends in there sets the duration; one that ends
    later is as much beyond its video as it is anywhere else.

    Raises:
        DataError: a video has neither a duration nor features, or no fps; or segments beyond
            their video are errors, and the axes of the features look swapped, or the rate does not
            fit most of the segments.
    """
    open_ones = [video.name for video in videos if video.duration is None and not video.faults]
    excluded = spec.excluded
    lost = [name for name in open_ones if name in excluded]
    if lost:
        raise DataError(
            f"{origin}: no features and no duration for {counted(len(lost), 'video')}: "
            f"{shown_names(lost)}; {leave_out(lost, origin)}"
        )
    feature = spec.feature
    extents = index_streams(
        spec.streams(work / "dataset.yaml"),
        open_ones,
        layout=feature.layout,  # type: ignore[arg-type]
    )

    def duration(video: AnnotatedVideo) -> float:
        fps = feature.fps or video.rate
        if fps is None:
            raise DataError(f"{origin}: video {video.name!r} has no fps, and none is given for all")
        covered = ((extents[video.name].rows - 1) * feature.stride + feature.frames) / fps
        ends = [item.span[1] for item in video.instances if item.span is not None]
        last = max(ends, default=0.0)
        return last if covered < last < covered + feature.stride / fps else covered

    timed = [
        video._replace(duration=duration(video)) if video.name in extents else video
        for video in videos
    ]
    segments = [
        (video, item.span[1])
        for video in timed
        if video.name in extents
        for item in video.instances
        if item.span is not None
    ]
    beyond = [(video, end) for video, end in segments if end > (video.duration or 0.0)]
    if not beyond:
        return timed, ""
    most = min(extents[video.name].rows / end for video, end in beyond)
    rate = f"With at most {most:.4g} rows per second all segments end within their videos"
    swapped = all(
        end <= ((extents[video.name].width - 1) * feature.stride + feature.frames)
        / (feature.fps or video.rate or math.inf)
        for video, end in segments
    )  # fmt: skip
    # One video alone is always like itself; and who wants segments cut has seen that they end late.
    alike = len(extents) > 1 and len({extent.rows for extent in extents.values()}) == 1
    mostly = spec.out_of_range == "error" and 2 * len(beyond) >= len(segments)
    if swapped and alike and mostly:
        raise DataError(
            f"{next(iter(extents.values())).path}: the axes look swapped: every video has "
            f"{counted(extents[beyond[0][0].name].rows, 'row')}, and {len(beyond)} of "
            f"{counted(len(segments), 'segment')} end after them. Say "
            f"{say_layout(feature.layout)}: then none does. If the layout is right, the "
            f"rate is not. {rate}"
        )
    doubt = (
        "durations are those of the rows here: is it right how many there are per second? "
        f"{rate}; or start and end are no seconds"
    )
    # Where most are beyond, each of them is no fault of its own.
    if mostly:
        frames = seconds_doubt(timed, feature.fps, origin)
        if frames:
            raise DataError(frames)
        raise DataError(
            f"{origin}: {len(beyond)} of {counted(len(segments), 'segment')} end after their "
            f"video; {doubt}"
        )
    return timed, f"; {doubt}"


def leave_out(names: Sequence[str], origin: str) -> str:
    """Returns what to do about videos without features and without a duration.

    To skip them in training alone takes a duration: scoring counts them.

    Args:
        names: the videos.
        origin: the annotations.
    """
    skipped = f"with durations, {argument('missing', 'skip')} keeps them out of training alone"
    if len(names) > _NAMED:
        return f"leave their lines out of {origin}; {skipped}"
    return f"to leave out such a video: {argument('exclude', list(names))}; {skipped}"
