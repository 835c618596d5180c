# SPDX-License-Identifier: Apache-2.0
"""Durations of videos whose annotations tell none: those of their rows, which check no rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tal_fast.data.annotation_file import AnnotatedVideo
from tal_fast.data.dataset import DatasetSpec
from tal_fast.data.extents import Extent
from tal_fast.data.feature_index import index_streams
from tal_fast.data.prepare.choices import FeatureChoice
from tal_fast.errors import DataError, argument, counted

__all__ = ["durations_of_rows", "unchecked_rate"]

# Where at least so many videos without a duration are so many times as long as their segments need,
# there may be more rows in a second than was said.
_MANY, _EARLY = 3, 1.25


def durations_of_rows(
    videos: Sequence[AnnotatedVideo], spec: DatasetSpec, work: Path, origin: str
) -> tuple[list[AnnotatedVideo], str]:
    """Gives videos without a duration that of their rows; returns a hint if that looks wrong.

    T rows cover ((T - 1) stride + frames) / fps seconds, and what is left over until a next row
    would begin is less than a stride. A segment that ends in there sets the duration; one that ends
    later is as much beyond its video as it is anywhere else.

    Raises:
        DataError: a video has neither a duration nor features, or no fps.
    """
    open_ones = [video.name for video in videos if video.duration is None and not video.faults]
    excluded = spec.excluded
    lost = [name for name in open_ones if name in excluded]
    if lost:
        raise DataError(
            f"{origin}: videos without features and without a duration: {len(lost)}, first "
            f"{lost[0]!r}: give the durations, or leave the videos out: {argument('exclude')}"
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
    most = min(
        (
            extents[video.name].rows / item.span[1]
            for video in timed
            if video.name in extents
            for item in video.instances
            if item.span is not None and item.span[1] > (video.duration or 0.0)
        ),
        default=None,
    )
    if most is None:
        return timed, ""
    return timed, (
        ". Durations are those of the rows here: is it right how many there are per second? With "
        f"at most {most:.4g} all segments end within their videos; or start and end are no seconds"
    )


def unchecked_rate(
    videos: Mapping[str, AnnotatedVideo],
    names: Sequence[str],
    extents: Mapping[str, Extent],
    features: FeatureChoice,
) -> list[str]:
    """Says of which videos rows and seconds could not be compared, and what segments tell of them.

    Their durations are those of the rows. Segments that end later are refused; but nothing is
    impossible about rows that lie closer than is said: the segments then end early.
    """
    if not names:
        return []
    room = []  # times as many rows a second with which a video's segments still end within it
    for name in names:
        duration = videos[name].duration
        last = max((item.span[1] for item in videos[name].instances if item.span), default=0.0)
        if duration and last > 0.0:
            room.append(duration / last)
    what = f"the rate is not checked for {len(names)} of {counted(len(extents), 'video')}"
    if len(names) == len(extents):
        what = "the rate is not checked"
    note = (
        f"{what}: without durations in the annotations they are those of the rows. Compare one by "
        "hand: rows / rate must be the length of the video in seconds"
    )
    if room and features.fps is not None and len(room) >= _MANY and min(room) >= _EARLY:
        rate = features.fps / features.stride
        note += (
            f". Is {rate:g} rows per second too low? No segment ends in the last "
            f"{100 * (1 - 1 / min(room)):.0f} % of any video; with up to {rate * min(room):.4g} "
            "rows per second all would still end within their videos"
        )
    return [note]
