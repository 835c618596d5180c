# SPDX-License-Identifier: Apache-2.0
"""Seeded data with the statistics of THUMOS14, for demos, tests and benchmarks.

**Where the numbers come from.** :data:`CLASS_STATISTICS` and the constants below it were computed
from the published THUMOS14 annotations (412 videos with 6365 instances; Jiang et al. 2014, the file
that ActionFormer and its successors use), all videos of both subsets together:

* ``videos``: videos that hold the class. Two pairs share videos: all CliffDiving is also annotated
  as Diving (26 videos), and 27 videos hold CricketBowling and CricketShot.
* ``number``: of its instances in such a video of typical length. The logarithm of the number was
  fitted by least squares with a constant per class and one slope on the logarithm of the video's
  length: slope 0.850, residual standard deviation 0.781; ``number`` is the exponential of the
  constant at log length 4.980.
* ``length``, ``length_spread``: median in seconds of the instances' length, and the standard
  deviation of its natural logarithm.
* ``gap``, ``gap_spread``: the same of the time from the end of an instance to the start of the next
  of its class in the same video (the 1.2 % that overlap are left out).
* The length of a video: natural logarithm with mean 4.980 and standard deviation 0.878 (median
  154.6 s), from 8.9 to 1673.4 s.
* fps: 30 (381 videos), 29.97 (18), 25 (11), 24 (2). Segments are rounded to 0.1 s.

**What the features hold.** Each row is what ``frames`` frames see: the part of them that an
instance covers scales its pattern. A class has three patterns, for start, middle and end; a shared
motion pattern says "something happens"; a video adds its own style (offset, gain, and a variation
of the class pattern, part of it towards the class's look-alike), a faint scene that related classes
share, events without a class, and noise that is correlated in time. So classes and boundaries can
be learnt, and more videos show more of the variation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotations import Annotations, Video, save_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, save_spec
from tal_fast.data.files import directory_in_one_step
from tal_fast.errors import ConfigError, nearest
from tal_fast.typing import FilePath, Floats

__all__ = ["CLASSES", "CLASS_STATISTICS", "SIZES", "SyntheticSize", "make_synthetic"]

Matrix = npt.NDArray[np.float32]


class ClassStatistics(NamedTuple):
    """What THUMOS14 says about a class; see the module's docstring."""

    videos: int
    number: float
    length: float
    length_spread: float
    gap: float
    gap_spread: float


CLASS_STATISTICS = {
    "BaseballPitch": ClassStatistics(22, 3.61, 3.00, 0.47, 8.00, 1.74),
    "BasketballDunk": ClassStatistics(20, 17.31, 1.50, 0.52, 2.70, 0.98),
    "Billiards": ClassStatistics(20, 5.31, 2.20, 0.72, 7.40, 0.77),
    "CleanAndJerk": ClassStatistics(23, 4.07, 8.75, 0.68, 2.70, 1.53),
    "CliffDiving": ClassStatistics(26, 9.36, 2.70, 0.55, 2.50, 1.49),
    "CricketBowling": ClassStatistics(33, 7.73, 1.20, 0.62, 4.40, 1.19),
    "CricketShot": ClassStatistics(35, 8.69, 1.10, 0.55, 4.05, 1.21),
    "Diving": ClassStatistics(46, 10.42, 2.50, 0.53, 1.50, 1.42),
    "FrisbeeCatch": ClassStatistics(17, 9.61, 2.30, 0.67, 2.30, 1.57),
    "GolfSwing": ClassStatistics(19, 3.36, 4.20, 0.99, 6.40, 1.55),
    "HammerThrow": ClassStatistics(20, 7.91, 7.10, 0.40, 6.20, 1.38),
    "HighJump": ClassStatistics(21, 7.07, 4.50, 0.53, 3.75, 1.45),
    "JavelinThrow": ClassStatistics(21, 5.39, 6.30, 0.40, 11.85, 1.21),
    "LongJump": ClassStatistics(21, 5.18, 7.10, 0.46, 7.90, 1.35),
    "PoleVault": ClassStatistics(20, 7.19, 6.40, 0.48, 2.45, 1.58),
    "Shotput": ClassStatistics(26, 7.28, 4.65, 0.75, 4.80, 1.36),
    "SoccerPenalty": ClassStatistics(21, 6.17, 2.90, 0.52, 3.70, 1.51),
    "TennisSwing": ClassStatistics(19, 11.53, 1.50, 0.69, 1.70, 1.27),
    "ThrowDiscus": ClassStatistics(21, 5.92, 4.25, 0.97, 0.70, 1.95),
    "VolleyballSpiking": ClassStatistics(23, 11.37, 1.70, 0.79, 2.10, 1.31),
}
CLASSES = tuple(CLASS_STATISTICS)
LOG_SECONDS, COUNT_SLOPE, COUNT_SPREAD = 4.980, 0.850, 0.781
FPS = ((30.0, 381), (29.97, 18), (25.0, 11), (24.0, 2))
CLIFF, DIVING = CLASSES.index("CliffDiving"), CLASSES.index("Diving")
BOWLING, SHOT = CLASSES.index("CricketBowling"), CLASSES.index("CricketShot")
BOWLING_WITH_SHOT = 27 / 33

# Made up here, not measured: which classes look alike, and which share a scene.
LOOK_ALIKES = (
    ("CliffDiving", "Diving"), ("CricketBowling", "CricketShot"), ("Shotput", "ThrowDiscus"),
    ("HighJump", "PoleVault"), ("JavelinThrow", "LongJump"), ("TennisSwing", "VolleyballSpiking"),
    ("BaseballPitch", "GolfSwing"), ("BasketballDunk", "FrisbeeCatch"),
    ("CleanAndJerk", "HammerThrow"), ("Billiards", "SoccerPenalty"),
)  # fmt: skip


@dataclass(frozen=True)
class SyntheticSize:
    """How much to make.

    Attributes:
        train_videos: videos of subset ``training``.
        test_videos: videos of subset ``validation``.
        channels: features per row.
        stride: frames between two rows.
        frames: frames that a row sees.
        log_seconds: mean of the logarithm of a video's length.
        log_seconds_spread: its standard deviation.
        min_seconds: shortest video.
        max_seconds: longest video.
        signal: length of a class pattern, in standard deviations of the noise of one channel.
        nuisance: strength of what a video adds of its own: style, variation, events, slow noise.
        empty_test_videos: test videos without an instance, as THUMOS14 has one of 213.
    """

    train_videos: int
    test_videos: int
    channels: int
    stride: int = 4
    frames: int = 16
    log_seconds: float = LOG_SECONDS
    log_seconds_spread: float = 0.878
    min_seconds: float = 8.9
    max_seconds: float = 1673.4
    signal: float = 6.0
    nuisance: float = 1.0
    empty_test_videos: int = 0


SIZES = {
    # One or two windows of 128 rows per video: a training takes seconds on a CPU.
    "demo": SyntheticSize(112, 48, 64, log_seconds=2.85, log_seconds_spread=0.12,
                          min_seconds=13.0, max_seconds=24.0, signal=8.0, nuisance=0.6),
    # As short, but what a video adds of its own is as strong as in the large ones.
    "demo-hard": SyntheticSize(112, 48, 64, log_seconds=2.85, log_seconds_spread=0.12,
                               min_seconds=13.0, max_seconds=24.0),
    "small": SyntheticSize(200, 213, 256, min_seconds=17.6, max_seconds=120.0, empty_test_videos=1),
    # THUMOS14 with the two-stream I3D features at one row per 8 frames that TadTR uses: about 3 GB.
    "thumos14": SyntheticSize(200, 213, 2048, stride=8, empty_test_videos=1),
}  # fmt: skip


def make_synthetic(
    out_dir: FilePath,
    *,
    size: str | SyntheticSize = "demo",
    seed: int = 0,
    train_videos: int | None = None,
    test_videos: int | None = None,
    channels: int | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Makes a data directory of synthetic recordings; see the module for what they hold.

    Args:
        out_dir: directory to make; it appears when it is complete.
        size: ``"demo"`` (160 videos, 64 channels), ``"demo-hard"`` (the same instances with weaker
            patterns and as much of a video's own as the larger ones have), ``"small"`` (413, 256)
            or ``"thumos14"`` (413 of real length, 2048 channels), or one of your own.
        seed: same seed and arguments, same bytes (with one version of NumPy).
        train_videos: overrides that of ``size``.
        test_videos: overrides that of ``size``.
        channels: overrides that of ``size``.
        dtype: ``"float32"`` or ``"float16"`` features.
        overwrite: replace an existing ``out_dir``.

    Returns:
        The directory.

    Raises:
        ConfigError: if a size is unknown or a number out of range.
        DataError: if ``out_dir`` exists or cannot be written.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ConfigError(
                f"make_synthetic: expected size among {', '.join(SIZES)}, got {size!r}"
                f"{nearest(size, SIZES)}"
            )
        size = SIZES[size]
    given = {"train_videos": train_videos, "test_videos": test_videos, "channels": channels}
    size = replace(size, **{k: v for k, v in given.items() if v is not None})
    for name, least in (("train_videos", 1), ("test_videos", 1), ("channels", 8)):
        if getattr(size, name) < least:
            raise ConfigError(
                f"make_synthetic: expected {name} >= {least}, got {getattr(size, name)}"
            )
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"make_synthetic: expected dtype float32 or float16, got {dtype!r}")
    world = _World(np.random.default_rng([seed, 0]), size)
    videos: dict[str, Video] = {}
    with directory_in_one_step(out_dir, overwrite=overwrite) as work:
        (work / "features").mkdir()
        for stream, (subset, count, empty) in enumerate(
            (
                ("training", size.train_videos, 0),
                ("validation", size.test_videos, size.empty_test_videos),
            )
        ):
            quota = _class_of_each_video(count, np.random.default_rng([seed, 1, stream]))
            for number, label in enumerate(quota):
                # A stream per video: changing one video's draws leaves the others as they are.
                rng = np.random.default_rng([seed, 2, stream, number])
                name = f"video_{subset}_{number:07d}"
                video = _draw_video(rng, name, subset, label, size, empty=number < empty)
                videos[name] = video
                features = world.features(rng, video)
                np.save(work / "features" / f"{name}.npy", features.astype(dtype, copy=False))
        save_annotations(Annotations(videos, CLASSES), work / "annotations.json")
        spec = DatasetSpec(
            name="synthetic",
            feature=FeatureSpec(channels=size.channels, stride=size.stride, frames=size.frames),
            classes=CLASSES,
            citation="Made by tal_fast.data.synthetic with statistics of THUMOS14 (Jiang et al., "
            "THUMOS Challenge: Action Recognition with a Large Number of Classes, 2014).",
        )
        save_spec(spec, work)
    return Path(out_dir)


def _class_of_each_video(count: int, rng: np.random.Generator) -> list[int]:
    """Shares ``count`` videos among the classes as THUMOS14 does, each class at least twice.

    With fewer than two videos per class the shares are rounded as far as they go.
    """
    shares = np.array([s.videos for s in CLASS_STATISTICS.values()], dtype=np.float64)
    shares[DIVING] -= CLASS_STATISTICS["CliffDiving"].videos  # CliffDiving brings Diving with it
    shares[SHOT] -= 27  # and these come with CricketBowling
    least = 2 if count >= 2 * len(CLASSES) else 1 if count >= len(CLASSES) else 0
    exact = shares / shares.sum() * (count - least * len(CLASSES))
    quota = np.floor(exact).astype(np.int64)
    rest = count - least * len(CLASSES) - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:rest]] += 1
    labels = np.repeat(np.arange(len(CLASSES)), quota + least)
    return [int(x) for x in rng.permutation(labels)]


def _draw_video(
    rng: np.random.Generator,
    name: str,
    subset: str,
    label: int,
    size: SyntheticSize,
    *,
    empty: bool,
) -> Video:
    """Draws length, fps and instances of a video of one class."""
    rates = np.array([n for _, n in FPS], dtype=np.float64)
    fps = FPS[int(rng.choice(len(FPS), p=rates / rates.sum()))][0]
    seconds = float(np.exp(rng.normal(size.log_seconds, size.log_seconds_spread)))
    seconds = round(min(max(seconds, size.min_seconds), size.max_seconds), 2)
    segments = [] if empty else _draw_instances(rng, label, seconds)
    return Video(
        name=name,
        subset=subset,
        duration=seconds,
        fps=fps,
        segments=np.array([s[:2] for s in segments], dtype=np.float64).reshape(-1, 2),
        labels=np.array([s[2] for s in segments], dtype=np.int64),
    )


def _draw_instances(
    rng: np.random.Generator, label: int, seconds: float
) -> list[tuple[float, float, int]]:
    """Draws (start, end, label) of the instances of a video, at least one."""
    statistics = CLASS_STATISTICS[CLASSES[label]]
    typical = statistics.number * (seconds / np.exp(LOG_SECONDS)) ** COUNT_SLOPE
    count = max(1, round(_log_normal(rng, float(typical), COUNT_SPREAD)))
    # No longer than 40 % of the video, so that a short video has background too.
    lengths = [
        min(max(_log_normal(rng, statistics.length, statistics.length_spread), 0.4), 0.4 * seconds)
        for _ in range(count)
    ]
    gaps = [_log_normal(rng, statistics.gap, statistics.gap_spread) for _ in range(count)]
    while sum(lengths) > 0.6 * seconds:
        lengths.pop()
        gaps.pop()
    free = 0.95 * seconds - sum(lengths)
    if sum(gaps) > free:
        gaps = [gap * free / sum(gaps) for gap in gaps]
    with_shot = label == BOWLING and rng.random() < BOWLING_WITH_SHOT
    instances: list[tuple[float, float, int]] = []
    # What the gaps leave free lies before the first instance and after the last.
    start = 0.2 + (0.9 * seconds - sum(lengths) - sum(gaps)) * rng.random() ** 2
    for length, gap in zip(lengths, gaps, strict=True):
        start = max(0.1, start + gap if instances else start + gap * rng.random())
        end = min(round(start + length, 1), math.floor((seconds - 0.1) * 10) / 10)
        start = round(start, 1)
        if end - start < 0.3:
            break
        instances.append((start, end, label))
        if label == CLIFF:
            instances.append((start, end, DIVING))
        if with_shot:
            shot = round(end + 0.2 + 0.3 * rng.random(), 1)
            stats = CLASS_STATISTICS["CricketShot"]
            stop = round(shot + max(0.4, _log_normal(rng, stats.length, stats.length_spread)), 1)
            if stop <= seconds - 0.1:
                instances.append((shot, stop, SHOT))
                end = stop
        start = end
    return instances


def _log_normal(rng: np.random.Generator, median: float, spread: float) -> float:
    # Cut at three standard deviations: the tails of six thousand instances say no more.
    return float(median * np.exp(spread * np.clip(rng.standard_normal(), -3, 3)))


class _World:
    """Patterns of classes, scenes and styles: one draw per data set, shared by its videos."""

    STYLES, VARIATIONS, NOISES = 8, 4, 6

    def __init__(self, rng: np.random.Generator, size: SyntheticSize) -> None:
        self.size = size
        classes, channels = len(CLASSES), size.channels

        def directions(*shape: int) -> Matrix:
            x = rng.standard_normal((*shape, channels)).astype(np.float32)
            return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype=np.float32)

        of_class, pair = directions(classes), directions(len(LOOK_ALIKES))
        pair_of = np.zeros(classes, dtype=np.int64)
        mate = np.zeros(classes, dtype=np.int64)
        for i, names in enumerate(LOOK_ALIKES):
            a, b = (CLASSES.index(name) for name in names)
            pair_of[[a, b]] = i
            mate[[a, b]] = b, a
        # Look-alikes share a third of their pattern's energy.
        middle = np.sqrt(0.67) * of_class + np.sqrt(0.33) * pair[pair_of]
        edge = directions(2, classes)
        shared_edge = directions(2)[:, None]
        self.motion = directions(1)[0]
        #: [class, phase (start, middle, end), channel]
        self.patterns = np.stack(
            [
                0.6 * middle + 0.35 * edge[0] + 0.7 * shared_edge[0],
                middle,
                0.6 * middle + 0.35 * edge[1] + 0.7 * shared_edge[1],
            ],
            axis=1,
        )
        #: [class, variation, channel]; the first variation leads to the look-alike
        self.variations = np.concatenate(
            [
                0.35 * (middle[mate] - middle)[:, None],
                0.45 * directions(classes, self.VARIATIONS - 1),
            ],
            axis=1,
        )
        self.scenes = directions(len(LOOK_ALIKES))[pair_of]
        self.styles = directions(self.STYLES)
        self.noises = directions(self.NOISES)
        self.events = directions(6)

    def features(self, rng: np.random.Generator, video: Video) -> Matrix:
        """Returns float32 [T, C]."""
        size = self.size
        assert video.fps is not None
        rows = max(1, (int(video.duration * video.fps) - size.frames) // size.stride + 1)
        first = np.arange(rows) * size.stride / video.fps  # start of what a row sees, s
        seen = size.frames / video.fps
        x = self._noise(rng, rows)
        style = rng.standard_normal(self.STYLES).astype(np.float32)
        x += np.float32(0.3 * size.nuisance * size.signal) * (style @ self.styles)
        gain = np.float32(size.signal * np.exp(0.2 * rng.standard_normal()))
        for label in sorted(set(video.labels.tolist())):
            x += np.float32(0.2 * size.signal) * self.scenes[label]
        look: dict[int, Matrix] = {}
        for (start, end), label in zip(video.segments, video.labels.tolist(), strict=True):
            if label not in look:
                z = rng.standard_normal(self.VARIATIONS).astype(np.float32)
                look[label] = self.patterns[label] + size.nuisance * (z @ self.variations[label])
            cover = _cover(first, seen, start, end)
            mine = np.flatnonzero(cover)
            phase = (first[mine] + seen / 2 - start) / (end - start)
            # The first two fifths turn from the start into the middle, the last two into the end.
            rise, fall = np.clip(1 - phase / 0.4, 0, 1), np.clip(phase / 0.4 - 1.5, 0, 1)
            weights = np.stack([rise, 1 - rise - fall, fall], axis=1).astype(np.float32)
            value = weights @ look[label] + np.float32(0.6) * self.motion
            x[mine] += gain * cover[mine, None] * value
        self._add_events(rng, x, first, seen, video)
        return x

    def _noise(self, rng: np.random.Generator, rows: int) -> Matrix:
        """Returns white noise plus a few directions whose weights wander slowly: [T, C]."""
        x = rng.standard_normal((rows, self.size.channels), dtype=np.float32)
        drive = rng.standard_normal((rows, self.NOISES), dtype=np.float32)
        keep = np.float32(0.9)
        wander = np.empty_like(drive)
        state = drive[0]
        for t in range(rows):
            state = keep * state + np.sqrt(1 - keep * keep) * drive[t]
            wander[t] = state
        x += np.float32(0.3 * self.size.nuisance * self.size.signal) * (wander @ self.noises)
        return x

    def _add_events(
        self,
        rng: np.random.Generator,
        x: Matrix,
        first: Floats,
        seen: float,
        video: Video,
    ) -> None:
        """Adds about three events a minute that move but belong to no class."""
        for _ in range(rng.poisson(video.duration / 20)):
            start = rng.random() * video.duration
            cover = _cover(first, seen, start, start + 0.5 + 2.5 * rng.random())
            kind = self.events[rng.integers(len(self.events))]
            pattern = np.float32(0.4) * self.motion + np.float32(0.8) * kind
            x += np.float32(self.size.signal) * cover[:, None] * pattern


def _cover(first: Floats, seen: float, start: float, end: float) -> Matrix:
    """Returns the part of each row's frames, or of the segment, that lies in the segment: [T]."""
    inside = np.minimum(first + seen, end) - np.maximum(first, start)
    return np.clip(inside / min(seen, end - start), 0, 1).astype(np.float32)
