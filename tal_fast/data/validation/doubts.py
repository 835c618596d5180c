# SPDX-License-Identifier: Apache-2.0
"""What may be a mistake and may not: said in the same words by ``prepare`` and ``validate``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from tal_fast.data.annotation_file import AnnotatedVideo
from tal_fast.data.extents import Extent
from tal_fast.data.validation.timing import Proposal
from tal_fast.errors import counted

__all__ = ["durations_of_rows", "label_doubts", "lookalikes", "rate_doubts"]

# A label that is so many times rarer than one it looks like may be a slip.
_RARE = 20
# Where at least so many videos without a duration are so many times as long as their segments need,
# there may be more rows in a second than was said.
_MANY, _EARLY = 3, 1.25


def lookalikes(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns (label, label that it may be a slip of), for those that are suspicious.

    Labels that differ in case, spaces, hyphens or underscores alone are; and a rare label that is
    spelt nearly as a frequent one.

    Args:
        counts: label -> how often it occurs.
    """
    pairs = []
    by_form: dict[str, str] = {}
    for label in sorted(counts, key=lambda name: (-counts[name], name)):
        form = re.sub(r"[\s_-]+", "", label.casefold())
        other = by_form.setdefault(form, label)
        if other != label:
            pairs.append((label, other))
            continue
        frequent = [name for name in by_form.values() if counts[name] >= _RARE * counts[label]]
        close = difflib.get_close_matches(label, frequent, n=1, cutoff=0.75)
        pairs += [(label, other) for other in close]
    return pairs


def label_doubts(counts: Mapping[str, int]) -> list[str]:
    """Says which labels look like others; arguments as of :func:`lookalikes`."""
    return [
        f"label {label!r} ({counts[label]}) looks like {other!r} ({counts[other]}): the same class?"
        for label, other in lookalikes(counts)
    ]


def durations_of_rows(
    videos: Mapping[str, AnnotatedVideo], extents: Mapping[str, Extent], given: Proposal
) -> list[str]:
    """Returns the videos whose duration is just what the rows cover, and so checks no rate.

    Or the end of the last segment, where that comes before a next row would begin: ``prepare``
    makes both of rows, where annotations tell no duration.

    Args:
        videos: by name.
        extents: of the videos that have features.
        given: the settings in use.
    """
    names = []
    for name, extent in extents.items():
        fps, seconds = given.fps or videos[name].rate, videos[name].duration
        if fps is None or seconds is None:
            continue
        covered = ((extent.rows - 1) * given.stride + given.frames) / fps
        last = _last_end(videos[name])
        is_last = seconds == last and covered < last < covered + given.stride / fps
        if is_last or abs(covered - seconds) <= 1e-9 * seconds:
            names.append(name)
    return names


def rate_doubts(
    videos: Mapping[str, AnnotatedVideo],
    names: Sequence[str],
    extents: Mapping[str, Extent],
    given: Proposal,
) -> list[str]:
    """Says of which videos rows and seconds could not be compared, and what segments tell of them.

    Their durations are those of the rows. Segments that end later are refused; but nothing is
    impossible about rows that lie closer than is said: the segments then end early.

    Args:
        videos: by name.
        names: of those whose duration checks no rate.
        extents: of the videos that have features.
        given: the settings in use.
    """
    if not names:
        return []
    room = []  # times as many rows a second with which a video's segments still end within it
    for name in names:
        duration, last = videos[name].duration, _last_end(videos[name])
        if duration and last > 0.0:
            room.append(duration / last)
    what = f"the rate is not checked for {len(names)} of {counted(len(extents), 'video')}"
    if len(names) == len(extents):
        what = "the rate is not checked"
    note = (
        f"{what}: durations are those of the rows, so that any rate would fit. Compare one "
        "by hand: rows / rate must be the length of the video in seconds"
    )
    if given.fps is not None and len(room) >= _MANY and min(room) >= _EARLY:
        rate = given.fps / given.stride
        note += (
            f". Is {rate:g} rows per second too low? No segment ends in the last "
            f"{100 * (1 - 1 / min(room)):.0f} % of any video; with up to {rate * min(room):.4g} "
            "rows per second all would still end within their videos"
        )
    return [note]


def _last_end(video: AnnotatedVideo) -> float:
    return max((item.span[1] for item in video.instances if item.span), default=0.0)
