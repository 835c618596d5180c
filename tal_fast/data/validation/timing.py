# SPDX-License-Identifier: Apache-2.0
"""Do rows and durations agree, and if not, which stride, fps and frames would make them?

A row sees ``frames`` frames and the next begins ``stride`` frames later, so T rows need
``(T - 1) * stride + frames`` frames, and a video of D seconds at f frames per second gives

``T = floor((D * f - frames) / stride) + 1``,

a straight line in D * f with slope 1 / stride and intercept 1/2 - frames / stride on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tal_fast.errors import counted
from tal_fast.typing import Floats, Mask

__all__ = ["Proposal", "disagreement", "propose"]


_FPS = (30.0, 25.0, 29.97, 24.0, 23.976, 15.0, 50.0, 60.0, 20.0, 12.5, 12.0, 10.0, 8.0, 5.0)
_FRAMES = (1, 5, 8, 10, 16, 25, 32, 64)
_SAMPLE = 300  # videos that a line is fitted to: 45,000 pairs


@dataclass(frozen=True)
class Proposal:
    """Settings that explain the rows.

    Attributes:
        stride: frames between two rows.
        fps: frames per second of all videos; None: each video's own of the annotations.
        frames: frames that a row sees, which set the offset of half of them before its centre.
        fitting: share of the videos that they fit.
        fixed_rows: rows of every video, when all have been resized to one number; then the others
            say nothing.
        layout: of the arrays, where it is another than the one in use.
    """

    stride: float
    fps: float | None
    frames: float
    fitting: float
    fixed_rows: int | None = None
    layout: str | None = None

    def __str__(self) -> str:
        """Says it in a line."""
        if self.layout is not None:
            return (
                f"layout {self.layout} (the axes look swapped): fits {100 * self.fitting:.1f} % of "
                "the videos"
            )
        if self.fixed_rows is not None:
            return (
                f"every video has {counted(self.fixed_rows, 'row')} whatever its duration: "
                "features resized "
                "to a fixed length, whose stride differs by video"
            )
        fps = "each video's own fps" if self.fps is None else f"fps {self.fps:g}"
        return (
            f"stride {self.stride:g}, {fps}, frames {self.frames:g} (offset "
            f"{self.frames / 2:g} frames): fits {100 * self.fitting:.1f} % of the videos"
        )


def disagreement(
    rows: Floats, seconds: Floats, fps: Floats, stride: float, frames: float
) -> tuple[Floats, Mask]:
    """Compares rows with durations.

    Some extractors pad the end, so that the last rows reach beyond the video; others drop the last
    frames. Both move the number by up to ``frames / stride``; durations are rounded, and decoders
    lose a frame: 2 rows and 1 % more are allowed.

    Args:
        rows: T of each video.
        seconds: D of each video.
        fps: of each video.
        stride: frames between rows.
        frames: frames that a row sees.

    Returns:
        rows that are too many (negative: too few), and whether that is more than allowed.
    """
    expected = np.maximum((seconds * fps - frames) / stride + 1, 1)
    over = rows - expected
    return over, np.abs(over) > frames / stride + 2 + 0.01 * expected


def propose(
    rows: Floats, seconds: Floats, own_fps: Floats | None, given: Proposal
) -> list[Proposal]:
    """Finds settings that fit more videos than the given ones.

    Args:
        rows: T of each video.
        seconds: D of each video.
        own_fps: fps of each video by the annotations, or None.
        given: the settings in use.

    Returns:
        The best proposals first, at most 3; none if nothing fits better.
    """
    if len(rows) < 3 or np.ptp(seconds) < 0.05 * seconds.mean():
        return []  # one duration tells a rate, but nothing of how rows follow from seconds
    if np.ptp(rows) == 0:
        return [Proposal(0, None, 0, 1.0, fixed_rows=int(rows[0]))]
    candidates: dict[tuple[float, float | None], Proposal] = {}
    kinds: list[tuple[float | None, Floats]] = []
    if own_fps is not None:
        kinds.append((None, own_fps))
    constants = dict.fromkeys([*([given.fps] if given.fps else []), *_FPS])
    kinds += [(fps, np.full_like(rows, fps)) for fps in constants]
    for fps, each in kinds:
        slope, intercept = _line(seconds * each, rows)
        if slope <= 0:
            continue
        stride = 1 / slope
        whole = round(stride)
        # Strides are whole numbers of frames; a line is not known better than to a percent.
        if whole < 1 or abs(stride - whole) > 0.01 * whole:
            continue
        frames = _frames(whole * (0.5 - intercept), whole)
        candidate = Proposal(whole, fps, frames, 0.0)
        share = _fitting(rows, seconds, each, candidate)
        candidates[whole, fps] = Proposal(whole, fps, frames, share)
    better = [c for c in candidates.values() if c.fitting > given.fitting + 0.01]

    def plausible(c: Proposal) -> tuple[float, ...]:
        # Any rate can be had from several fps; the given one, the given stride and strides that
        # are powers of two are likelier than others.
        return (
            -round(c.fitting, 2),
            c.fps != given.fps,
            c.stride != given.stride,
            c.stride not in (1, 2, 4, 8, 16, 32, 64),
            _FPS.index(c.fps) if c.fps in _FPS else -1,
        )

    return sorted(better, key=plausible)[:3]


def _fitting(rows: Floats, seconds: Floats, fps: Floats, proposal: Proposal) -> float:
    return float(1 - disagreement(rows, seconds, fps, proposal.stride, proposal.frames)[1].mean())


def _frames(estimate: float, stride: int) -> float:
    """Returns the usual number of frames near an estimate that is good to half a stride or so."""
    usual = min((*_FRAMES, stride), key=lambda n: (abs(n - estimate), n))
    return float(usual if abs(usual - estimate) <= 0.75 * stride else max(1, round(estimate)))


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Returns slope and intercept by Theil and Sen: up to 29 % of wrong videos do not move it."""
    order = np.argsort(x, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _SAMPLE)).astype(int)]
    x, y = x[chosen], y[chosen]
    i, j = np.triu_indices(len(x), 1)
    apart = x[j] - x[i] > 0.05 * np.ptp(x)
    slope = float(np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart]))
    return slope, float(np.median(y - slope * x))
