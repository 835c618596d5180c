# SPDX-License-Identifier: Apache-2.0
"""Whether times are in the unit that is said: seconds or frames. The numbers alone can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tal_fast.data.annotation_file import AnnotatedVideo
from tal_fast.errors import argument, counted

__all__ = ["frames_doubt", "seconds_doubt"]

_NEAR = 1.02  # a last frame may lie a little behind what the rows cover
_SLOWEST, _FASTEST = 10.0, 125.0  # frames per second of videos
# So unlikely must it be that segments anywhere in their videos all lie so early in them.
_CHANCE = 1e-3


def seconds_doubt(videos: Sequence[AnnotatedVideo], fps: float | None, origin: str) -> str:
    """Says that times which are taken for seconds look like frames; nothing where they do not.

    Most segments end after their videos, all times are whole numbers, and as frames, of a rate that
    is known or that videos have, all segments would end within them.

    Args:
        videos: with durations in seconds; those without are not judged.
        fps: frames per second of all videos; None takes each video's own.
        origin: the annotations.
    """
    ends = _ends(videos, fps)
    times = [time for video in videos for item in video.instances for time in item.span or ()]
    beyond = sum(end > duration for end, duration, _ in ends)
    if not beyond or 2 * beyond < len(ends) or not all(time.is_integer() for time in times):
        return ""
    needed = max(end / duration for end, duration, _ in ends)
    if all(rate is not None and end <= _NEAR * duration * rate for end, duration, rate in ends):
        given = {f"{rate:g}" for _, _, rate in ends}
        rates = given.pop() if len(given) == 1 else "each video's own number of"
        fits = f"at {rates} frames per second all end within them"
        lacks = ""
    elif _SLOWEST <= needed <= _FASTEST:
        fits = f"at {needed:.4g} or more frames per second all would end within them"
        lacks = ", with the frames per second of the videos in a column fps"
    else:
        return ""
    advice = f"{argument('unit', 'frames')}{lacks}"
    if all(item.line is None for video in videos for item in video.instances):
        advice = "divide them by the frames per second, the file must have seconds"
    return (
        f"{origin}: {beyond} of {counted(len(ends), 'segment', 'end')} after their video, and all "
        f"times are whole numbers. Frames, not seconds? Then {fits}: {advice}"
    )


def frames_doubt(videos: Sequence[AnnotatedVideo], fps: float | None) -> str:
    """Says that times which are taken for frames look like seconds; nothing where they do not.

    As seconds they would end within their videos as well: by chance that hardly happens to several
    segments, as frames then all lie at the very beginning.

    Args:
        videos: as of :func:`seconds_doubt`, with the times in seconds that frames became.
        fps: as there.
    """
    ends = _ends(videos, fps)
    rates = [rate for _, _, rate in ends if rate is not None and rate > 1.0]
    if not ends or len(rates) < len(ends) or sum(map(math.log, rates)) < -math.log(_CHANCE):
        return ""
    if any(end * rate > duration for (end, duration, _), rate in zip(ends, rates, strict=True)):
        return ""
    last = max(end / duration for end, duration, _ in ends)
    return (
        f"all segments end in the first {100 * last:.2g} % of their videos: are the times frames? "
        f"As seconds they would end within the videos, too ({argument('unit', 'seconds')})"
    )


def _ends(
    videos: Sequence[AnnotatedVideo], fps: float | None
) -> list[tuple[float, float, float | None]]:
    """Returns end of the segment, duration and frames per second of the video, of each segment."""
    return [
        (item.span[1], video.duration, video.fps or fps)
        for video in videos
        if video.duration is not None
        for item in video.instances
        if item.span is not None
    ]
