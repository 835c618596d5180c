# SPDX-License-Identifier: Apache-2.0
"""Checks that need the features: their headers, and their content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tal_fast.data.annotation_file import AnnotatedVideo
from tal_fast.data.annotations import TOLERANCE
from tal_fast.data.axes import other_layout, say_layout, swapped_axes
from tal_fast.data.extents import Extent, Layout, beside, read_array
from tal_fast.data.feature_index import unannotated
from tal_fast.data.feature_names import other_capitals
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.grid import Grid
from tal_fast.data.streams import Stream
from tal_fast.data.validation.annotation_checks import Faults
from tal_fast.data.validation.timing import Proposal, disagreement, propose
from tal_fast.data.windows import WindowRule
from tal_fast.errors import DataError, counted, same_to_the_eye
from tal_fast.typing import Floats, Mask, VideoProgress

__all__ = [
    "content_faults",
    "find_extents",
    "held_instances",
    "timing_faults",
]


def find_extents(
    streams: Sequence[Stream],
    wanted: Sequence[str],
    annotated: Sequence[str],
    layout: Layout,
    channels: int | None,
    faults: Faults,
    *,
    refuse_extra: bool = False,
) -> dict[str, Extent]:
    """Returns the extents of the videos that have sound ones, and collects what is wrong.

    None at all where the axes look swapped.

    Args:
        streams: where the features lie.
        wanted: videos of the splits.
        annotated: all videos of the annotation file.
        layout: of the arrays.
        channels: expected number; None takes that of most videos.
        faults: takes what is found.
        refuse_extra: features without annotation are an error.
    """
    parts: list[dict[str, Extent]] = []
    for stream in streams:
        of_stream: dict[str, Extent] = {}
        with OpenStream(stream) as opened:
            missing: list[str] = []
            for video in wanted:
                try:
                    of_stream[video] = opened.extent(video, layout)
                except (KeyError, FileNotFoundError):
                    missing.append(video)
                except (DataError, OSError) as error:
                    faults.add("unreadable", "error", "faulty, or not to be read in place",
                               f"video {video!r}: {error}")  # fmt: skip
            _missing_features(opened, missing, faults)
        parts.append(of_stream)
    for video in unannotated(streams, annotated):
        faults.add("extra-features", "error" if refuse_extra else "warning",
                   "features without annotation", f"video {video!r}")  # fmt: skip
    extents: dict[str, Extent] = {}
    for video in wanted:
        if not all(video in of_stream for of_stream in parts):
            continue
        try:
            extents[video] = beside([of_stream[video] for of_stream in parts])
        except DataError as error:
            faults.add(
                "unreadable", "error", "streams of unequal rows", f"video {video!r}: {error}"
            )
    swapped = swapped_axes(extents.values(), layout)
    if swapped:  # nothing else can be said of them
        faults.add("channels", "error", swapped, count=len(extents))
        return {}
    if extents:
        common = channels or Counter(e.width for e in extents.values()).most_common(1)[0][0]
        for video, extent in list(extents.items()):
            if extent.width != common:
                swapped = " (the axes look swapped: layout)" if extent.rows == common else ""
                faults.add("channels", "error", f"expected {counted(common, 'channel')}",
                           f"video {video!r}: {extent.width}{swapped}")  # fmt: skip
    return extents


def _missing_features(opened: OpenStream, missing: Sequence[str], faults: Faults) -> None:
    """Takes in the videos that a stream lacks, with names that may be theirs."""
    if not missing:
        return
    twins, entries = other_capitals(opened, missing), opened.entries(missing)
    for video in missing:
        entry = opened.entry(video)
        hint = same_to_the_eye(entry, entries)
        if video in twins:
            hint = f", but {twins[video]!r}: rename the file or the video, capitals must agree"
        faults.add("missing-features", "error", f"no features in {opened.stream.path}",
                   f"video {video!r}: no {entry!r}{hint}")  # fmt: skip


def timing_faults(
    videos: Mapping[str, AnnotatedVideo],
    extents: Mapping[str, Extent],
    given: Proposal,
    faults: Faults,
    layout: str = "TC",
) -> tuple[float | None, list[Proposal]]:
    """Compares rows with durations.

    Args:
        videos: by name.
        extents: of the videos that have features.
        given: the settings in use; ``fps`` None takes each video's own.
        faults: takes what is found.
        layout: that the features were read by.

    Returns:
        the share of videos that fit (None if none can be judged), and proposals that fit better.
    """
    names = []
    for name in extents:
        video = videos[name]
        if given.fps is None and video.rate is None:
            faults.add("timing", "error", "no fps in the annotations and none given",
                       f"video {name!r}")  # fmt: skip
        elif video.duration is not None:
            names.append(name)
    if not names:
        return None, []
    rows = np.array([extents[name].rows for name in names], dtype=np.float64)
    seconds = np.array([videos[name].duration for name in names], dtype=np.float64)
    rates = [videos[name].rate for name in names]
    own_fps = None if None in rates else np.array(rates, dtype=np.float64)
    fps = own_fps if given.fps is None else np.full_like(rows, given.fps)
    assert fps is not None
    over, wrong = disagreement(rows, seconds, fps, given.stride, given.frames)
    fitting = float(1 - wrong.mean())
    proposals = []
    if wrong.any():
        now = Proposal(given.stride, given.fps, given.frames, fitting)
        proposals = propose(rows, seconds, own_fps, now)
        widths = np.array([extents[name].width for name in names], dtype=np.float64)
        share = float(1 - disagreement(widths, seconds, fps, given.stride, given.frames)[1].mean())
        if share > max(fitting, 0.5):
            swapped = replace(now, fitting=share, layout=other_layout(layout))
            proposals = [swapped, *proposals]
    hint = "; see the settings that fit better" if proposals else ""
    if proposals and proposals[0].layout:
        hint = f"; the axes look swapped: {say_layout(layout)}"
    for i in np.flatnonzero(wrong):
        covered = ((rows[i] - 1) * given.stride + given.frames) / fps[i]
        faults.add("timing", "error", "duration disagrees with rows x stride / fps" + hint,
                   f"video {names[i]!r}: {seconds[i]:.2f} s, but {rows[i]:.0f} rows cover "
                   f"{covered:.2f} s ({over[i]:+.1f} rows)")  # fmt: skip
    return fitting, proposals


def held_instances(
    video: AnnotatedVideo, extent: Extent, grid: Grid, rule: WindowRule, out_of_range: str
) -> Mask:
    """Returns which instances of a video some training window owns: bool [N].

    Args:
        video: its annotations; what is faulty about them counts as owned.
        extent: of its features.
        grid: from seconds to rows.
        rule: of the windows.
        out_of_range: the rule that training will follow.
    """
    nowhere = (np.nan, np.nan)
    spans = [nowhere if item.span is None else item.span for item in video.instances]
    segments = np.array(spans, dtype=np.float64).reshape(-1, 2)
    cut = segments.copy()
    if out_of_range != "keep" and video.duration is not None:
        cut = np.clip(segments, 0.0, video.duration)
    sound = cut[:, 1] > cut[:, 0]
    if out_of_range == "error":
        sound &= np.abs(cut - segments).max(axis=1, initial=0.0) <= TOLERANCE
    segments = cut
    held = ~sound
    edges = grid.to_grid(segments[sound])
    held[sound] = rule.owned(edges, rule.windows(extent.rows)).any(axis=0)
    return held


def content_faults(
    extents: Mapping[str, Extent],
    split_of: Mapping[str, str],
    faults: Faults,
    progress: VideoProgress | None,
) -> None:
    """Reads all features, one video at a time: NaN, infinity, constant channels, copies.

    Args:
        extents: of the videos.
        split_of: video -> split.
        faults: takes what is found.
        progress: called with (videos done, videos in all, video).
    """
    low: Floats | None = None
    high: Floats | None = None
    first_of: dict[bytes, str] = {}
    for number, (video, extent) in enumerate(extents.items(), 1):
        try:
            values = read_array(extent)
        except DataError as error:
            faults.add("unreadable", "error", "faulty, or not to be read in place",
                       f"video {video!r}: {error}")  # fmt: skip
            continue
        # NaN and infinity both spoil a minimum or maximum, at the price of one pass each.
        least, most = values.min(axis=0), values.max(axis=0)
        if not (np.isfinite(least).all() and np.isfinite(most).all()):
            bad = ~np.isfinite(values)
            at = np.flatnonzero(bad.any(axis=1))
            channel = int(np.flatnonzero(bad[at[0]])[0])
            faults.add("not-finite", "error", "NaN or infinity in features",
                       f"video {video!r}: {len(at)} of {counted(len(values), 'row')}, first row "
                       f"{at[0]}, "
                       f"channel {channel}: {values[at[0], channel]}")  # fmt: skip
        elif low is None or high is None:
            low, high = least.astype(np.float64), most.astype(np.float64)
        elif len(low) == len(least):
            np.minimum(low, least, out=low)
            np.maximum(high, most, out=high)
        digest = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        first = first_of.setdefault(digest, video)
        if first != video:
            leak = split_of.get(first) != split_of.get(video)
            example = f"{first!r} ({split_of.get(first)}) and {video!r} ({split_of.get(video)})"
            if leak:
                faults.add("leakage", "error", "the same features in two splits", example)
            else:
                faults.add("same-features", "warning", "the same features twice", example)
        if progress is not None:
            progress(number, len(extents), video)
    if low is not None and high is not None:
        for channel in np.flatnonzero(low == high).tolist():
            faults.add("constant-channel", "warning", "a channel that never changes",
                       f"channel {channel}: {low[channel]:g} in every row")  # fmt: skip
