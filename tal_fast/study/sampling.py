# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1: which part of the training videos a trial sees.

    D_train, D_test <- split(D, 0.2);  D_s <- sample(D_train, p)

The split is made in :mod:`tal_fast.study.splits`. Both choices order names by a hash and take the
first ones. A sample can therefore be recomputed from its trial's settings for as long as SHA-256
exists.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from tal_fast.data.clips import ClipSet
from tal_fast.data.windows import WindowSet, windows_of
from tal_fast.errors import ConfigError, DataError, nearest
from tal_fast.study.shares import rounded, sample_size

__all__ = [
    "SAMPLINGS",
    "Sample",
    "draw_names",
    "draw_sample",
    "hash_order",
    "parse_samplings",
    "stratified_order",
    "trial_seed",
]

# Between the parts of what is hashed, so that ("a", "bc") and ("ab", "c") differ.
SEPARATOR = "\x1f"


def digest(*parts: object) -> bytes:
    """Returns the SHA-256 of the parts, each as ``str`` writes it."""
    return hashlib.sha256(SEPARATOR.join(map(str, parts)).encode()).digest()


def hash_order(names: Sequence[str], *key: object) -> list[int]:
    """Orders names by their hash under a key.

    Args:
        names: what to order, each once.
        key: purpose, seed and whatever else tells this order from others.

    Returns:
        The positions in ``names``: ``names[order[0]]`` comes first.
    """
    # What all names begin with is hashed once and copied.
    begun = hashlib.sha256("".join(f"{part}{SEPARATOR}" for part in key).encode())
    digests = []
    for name in names:
        one = begun.copy()
        one.update(name.encode())
        digests.append(one.digest())
    return sorted(range(len(digests)), key=digests.__getitem__)


def stratified_order(held: Sequence[Set[int]], count: int) -> list[int]:
    """Orders videos greedily by the class of which the smallest share is covered so far.

    A class's covered share is the part of the videos that hold it which are already taken. Shares
    count videos, not instances, because a video is what is drawn and labelled: by instances one
    video with a hundred throws would be all of its class for long, and the class's sample would be
    that one scene. Again and again, for the class with the least share (ties: the class in the
    fewest videos, then the one whose next video comes first), its first video not yet taken is
    next. Videos without any instance come last.

    So as long as a class is uncovered, every video taken brings a new one: C classes are covered by
    at most C videos, and by fewer where videos hold several. It is no search for the fewest videos:
    which video of a class comes is left to the given order, and thus to chance.

    **The bias.** A small sample holds more videos of rare classes than a random one of its size,
    and fewer of the common ones. Drawing at random again until all classes occur (published with
    some curves) is another bias: of samples hardly larger than the number of classes it keeps
    almost only such as hold one video per class, and samples below the fewest videos that hold all
    classes it cannot draw at all. Here those are drawn too, and each of their videos brings a new
    class.

    Args:
        held: for each video, in the order that breaks ties, the classes that occur in it.
        count: how many are wanted.

    Returns:
        The positions in ``held`` of the first ``count`` videos.
    """
    holders: dict[int, list[int]] = {}
    for position, classes in enumerate(held):
        for label in classes:
            holders.setdefault(label, []).append(position)
    covered = dict.fromkeys(holders, 0)
    reached = dict.fromkeys(holders, 0)  # index into holders of the next video to look at
    taken = bytearray(len(held))
    order: list[int] = []
    # One entry per class, (share, videos, next video, class). Entries may be too small, since
    # videos are also taken for the sake of other classes, but never too great: an entry that is
    # still true when it comes to the top is the least.
    heap = [(0.0, len(mine), mine[0], label) for label, mine in holders.items()]
    heapq.heapify(heap)
    while heap and len(order) < count:
        label = heap[0][3]
        mine = holders[label]
        while reached[label] < len(mine) and taken[mine[reached[label]]]:
            reached[label] += 1
        if reached[label] == len(mine):
            heapq.heappop(heap)
            continue
        video = mine[reached[label]]
        # Equal shares such as 1/3 and 2/6 give equal floats: division is rounded correctly.
        entry = (covered[label] / len(mine), len(mine), video, label)
        if entry != heap[0]:
            heapq.heapreplace(heap, entry)
            continue
        taken[video] = 1
        order.append(video)
        for other in held[video]:
            covered[other] += 1
    rest = (position for position in range(len(held)) if not taken[position])
    order.extend(itertools.islice(rest, count - len(order)))
    return order


def draw_windows(windows: WindowSet, count: int, *key: object) -> tuple[int, ...]:
    """Draws windows uniformly without replacement.

    A window is known by its video and first row, so that the draw does not depend on the order of
    the videos. OpenTAD's rule can cut the same window twice; the second one has a hash of its own.

    Args:
        windows: of all training videos.
        count: how many are drawn.
        key: purpose, seed and so on of the draw.

    Returns:
        Positions in ``windows.windows``, rising.
    """
    seen: dict[str, int] = {}
    names = []
    for window in windows.windows:
        name = f"{window.video}{SEPARATOR}{window.start}"
        before = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}{SEPARATOR}{before}" if before else name)
    return tuple(sorted(hash_order(names, *key)[:count]))


def instances_of_windows(windows: WindowSet, positions: Sequence[int]) -> dict[str, set[int]]:
    """Returns the instances that are targets of some windows: video -> rows of its ``segments``.

    Windows overlap; an instance that lies in several of them is there once.
    """
    instances: dict[str, set[int]] = {}
    for position in positions:
        name = windows.windows[position].video
        instances.setdefault(name, set()).update(windows.instances(position).tolist())
    return instances


#: The ways of drawing a sample; :func:`draw_sample` says what they are.
SAMPLINGS = (
    "video",
    "stratified",
    "window",
    "nested-video",
    "nested-stratified",
    "nested-window",
)


@dataclass(frozen=True)
class Sample:
    """A drawn part of the training data and what it covers.

    Attributes:
        videos: names of the drawn videos, or of those that drawn windows are of, sorted.
        instances: annotated instances in them, or those that are targets of a drawn window, each
            counted once.
        classes: names of the classes that occur among the instances, in the order of the class
            list.
        missing_classes: names of the classes that do not.
        windows: number of drawn windows; None unless windows were drawn.
        positions: of the drawn windows, rising, in the windows of all training videos; None unless
            windows were drawn, and in what is kept of a finished trial.
    """

    videos: tuple[str, ...]
    instances: int
    classes: tuple[str, ...]
    missing_classes: tuple[str, ...]
    windows: int | None = None
    positions: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns what the sample covers as plain values."""
        fields: dict[str, Any] = {
            "videos": list(self.videos),
            "instances": self.instances,
            "classes": list(self.classes),
            "missing_classes": list(self.missing_classes),
        }
        return fields if self.windows is None else {**fields, "windows": self.windows}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Sample:
        """Returns the sample of these fields, whose sequences may be lists.

        Raises:
            KeyError: a field that every sample has is missing.
        """
        positions = fields.get("positions")
        return cls(
            videos=tuple(fields["videos"]),
            instances=fields["instances"],
            classes=tuple(fields["classes"]),
            missing_classes=tuple(fields["missing_classes"]),
            windows=fields.get("windows"),
            positions=None if positions is None else tuple(positions),
        )


def draw_names(names: Sequence[str], count: int, *key: object) -> tuple[str, ...]:
    """Returns the first names in the order of :func:`hash_order`, sorted.

    Args:
        names: to draw from.
        count: how many.
        key: decides, with the names, which.
    """
    return tuple(sorted(names[position] for position in hash_order(names, *key)[:count]))


def parse_samplings(given: str | Sequence[str]) -> tuple[str, ...]:
    """Reads which ways of sampling a study compares.

    Args:
        given: ``"video,window"``, or a sequence of names, among :data:`SAMPLINGS`.

    Returns:
        The names in the order given.

    Raises:
        ConfigError: nothing is given, a name is unknown, or one is given twice.
    """
    items = given.split(",") if isinstance(given, str) else list(given)
    names = tuple(str(item).strip() for item in items)
    if not names:
        raise ConfigError("sampling: expected at least one, got none")
    for position, name in enumerate(names):
        _check_sampling(name)
        if name in names[:position]:
            raise ConfigError(f"sampling: expected each once, got {name!r} more than once")
    return names


def _check_sampling(name: str) -> None:
    if name not in SAMPLINGS:
        raise ConfigError(
            f"sampling: expected one of {', '.join(SAMPLINGS)}, got {name!r}"
            f"{nearest(name, SAMPLINGS)}"
        )


def _training_videos(train: Sequence[str], videos: Mapping[str, Any]) -> list[str]:
    names = sorted(train)
    if not names:
        raise DataError("sampling: expected at least one training video, got none")
    for before, name in itertools.pairwise(names):
        if before == name:
            raise DataError(f"sampling: training video {name!r} is given twice")
    for name in names:
        if name not in videos:
            raise DataError(
                f"sampling: no annotated video {name!r} among {len(videos)}"
                f"{nearest(name, videos, numbered=True)}"
            )
    return names


def draw_sample(
    sampling: str,
    train: Sequence[str],
    videos: Mapping[str, Any],
    classes: Sequence[str],
    *,
    fraction: float,
    repetition: int,
    seed: int,
    clips: ClipSet | None = None,
) -> Sample:
    """Draws the part of the training data that a trial sees.

    The ways of sampling (:data:`SAMPLINGS`):

    - ``"video"``: ``max(1, round(p * N))`` of the N videos, uniformly without replacement,
      independently for every (seed, repetition, p).
    - ``"stratified"``: as many videos, so that they cover the classes as evenly as they can; the
      rule and its bias are those of :func:`~tal_fast.study.sampling.stratified_order`.
    - ``"window"``: ``max(1, round(p * W))`` of the W training windows, uniformly. A small share of
      the windows touches nearly every video and class, where the same share of the videos does not:
      curves over the two are not comparable.
    - ``"nested-video"``, ``"nested-stratified"``, ``"nested-window"``: the same, but one order per
      (seed, repetition) of which every p takes the first ones. A smaller sample is a part of every
      larger one of its repetition.

    Args:
        sampling: the way.
        train: names of the N training videos, in any order.
        videos: name -> video with ``labels``, an integer array over ``classes``.
        classes: all class names.
        fraction: of the training data, in (0, 1].
        repetition: which draw, counted from 0.
        seed: the study's seed.
        clips: the clips of all training videos, as for the training; needed to draw windows,
            ignored otherwise.

    Returns:
        The sample with what it covers. At p = 1 every repetition is the whole training set.

    Raises:
        ConfigError: ``sampling`` is unknown, ``fraction`` is not in (0, 1], or windows are to be
            drawn and the clips are not given or no windows.
        DataError: a training video is given twice or not annotated, there is none, or a window is
            of another video.
    """
    _check_sampling(sampling)
    share = rounded(fraction)
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"sampling: expected a fraction in (0, 1], got {fraction:g}")
    names = _training_videos(train, videos)
    # "sample" alone is what random videos have always been hashed with.
    purpose = "sample" if sampling == "video" else f"sample-{sampling}"
    nested = sampling.startswith("nested-")
    key = (purpose, seed, repetition) if nested else (purpose, seed, repetition, share)
    count = sample_size(share, len(names))
    positions = None
    if sampling.endswith("window"):
        if clips is None:
            raise ConfigError(f"sampling: {sampling!r} needs the windows of the training videos")
        windows = windows_of(clips)
        stray = set(windows.videos).difference(names)
        if stray:
            raise DataError(f"sampling: windows of {min(stray)!r}, which is no training video")
        positions = draw_windows(windows, sample_size(share, len(windows)), *key)
        labels = {
            name: videos[name].labels[sorted(rows)]
            for name, rows in instances_of_windows(windows, positions).items()
        }
    elif sampling.endswith("stratified"):
        mixed = [names[position] for position in hash_order(names, *key)]
        held = [set(videos[name].labels.tolist()) for name in mixed]
        drawn = [mixed[position] for position in stratified_order(held, count)]
        labels = {name: videos[name].labels for name in drawn}
    else:
        labels = {name: videos[name].labels for name in draw_names(names, count, *key)}
    present = {label for some in labels.values() for label in some.tolist()}
    return Sample(
        videos=tuple(sorted(labels)),
        instances=sum(len(some) for some in labels.values()),
        classes=tuple(name for label, name in enumerate(classes) if label in present),
        missing_classes=tuple(name for label, name in enumerate(classes) if label not in present),
        windows=None if positions is None else len(positions),
        positions=positions,
    )


def trial_seed(seed: int, repetition: int, fraction: float, training: int = 0) -> int:
    """Returns the training seed of a trial, in [0, 2**31).

    It depends on the study's seed, the draw and the number of the training on this draw, but not on
    sampling or budget: trials that differ in these alone start from the same weights.
    """
    further = (training,) if training else ()
    start = digest("train", seed, repetition, rounded(fraction), *further)[:4]
    return int.from_bytes(start, "big") >> 1
