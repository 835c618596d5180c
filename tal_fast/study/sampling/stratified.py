# SPDX-License-Identifier: Apache-2.0
"""An order of videos in which every beginning covers the classes as evenly as can be."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence, Set

__all__ = ["stratified_order"]


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
