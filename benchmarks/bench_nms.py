# SPDX-License-Identifier: Apache-2.0
"""Hard and soft suppression, voting, and all videos and classes in one call.

Three kinds of input: ``detector`` (half of it jittered copies of instances, half spread over the
video), ``uniform`` (all spread) and ``dense`` (all copies, 130 on top of each other: what ours
gains least on). The peers run with their own rules (IoU >= threshold, 1e-6 added to lengths), which
ours take as arguments; scores have no ties, so the results must be the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from harness import Peer
from peers import PeerMissingError, nms_1d, stand_ins
from torch import Tensor

from tal_fast import ops

#: The rule of the ``nms_1d_cpu`` family, in our words.
RULE: dict[str, Any] = {"iou_comparison": "ge", "length_eps": 1e-6}
THRESHOLD = 0.5


class Detections(NamedTuple):
    """Detections of one or more videos."""

    segments: Tensor  # [N, 2] seconds
    scores: Tensor  # [N], all different
    labels: Tensor  # [N]


def make(count: int, classes: int = 1, kind: str = "detector", seed: int = 0) -> Detections:
    """Detections over a video that grows with them, so that their density stays the same."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(size: int) -> Tensor:
        return torch.empty(size).log_normal_(1.0, 0.8, generator=generator)

    span = 200.0 * max(1.0, count / 2000)
    instances = max(1, count // 130)  # a video of THUMOS14 has 16 on average
    start = torch.rand(instances, generator=generator) * span
    length = lengths(instances)
    source = torch.randint(0, instances, (count,), generator=generator)
    jitter = torch.randn(count, 2, generator=generator) * 0.25 * length[source, None]
    around = (torch.stack((start, start + length), 1)[source] + jitter).sort(1).values
    start = torch.rand(count, generator=generator) * span
    anywhere = torch.stack((start, start + lengths(count)), 1)
    background = torch.rand(count, 1, generator=generator) < {"uniform": 1, "dense": 0}.get(
        kind, 0.5
    )
    segments = torch.where(background, anywhere, around)
    # Mostly low, and all different.
    scores = (torch.randn(count, generator=generator) * 1.5 - 2).sigmoid().sort().values
    while scores.unique().numel() < count:
        scores = torch.nextafter(scores, scores + (scores == scores.roll(1))).sort().values
    scores = scores[torch.randperm(count, generator=generator)]
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Detections(segments.contiguous(), scores, labels)


def peer_of(name: str) -> tuple[Any, Any, str, bool]:
    """Returns (native functions, Python layer, name for the table, whether a stand-in)."""
    try:
        native, layer = nms_1d.actionformer() if name == "ActionFormer" else nms_1d.opentad()
        return native, layer, name, False
    except PeerMissingError:
        native, layer = stand_ins.nms_1d()
        return native, layer, name, True


HARD = {2_000: (4, 8), 10_000: (10, 25), 40_000: (70, 150)}


@pytest.mark.parametrize("kind", ["detector", "uniform", "dense"])
@pytest.mark.parametrize("count", HARD)
def test_nms(compare: Any, count: int, kind: str) -> None:
    segments, scores, _ = make(count, kind=kind)
    native, _, name, stand_in = peer_of("ActionFormer")

    def check(ours: Tensor, peer: Tensor) -> None:
        assert torch.equal(ours, peer)

    compare(
        "nms",
        f"{count // 1000}k segments, t = 0.5, {kind}",
        lambda: ops.nms(segments, scores, THRESHOLD, **RULE),
        [
            Peer(
                f"{name} nms",
                lambda: native.nms(segments, scores, iou_threshold=THRESHOLD),
                *HARD[count],
                stand_in=stand_in,
            )
        ],
        check=check,
        verified="kept rows",
    )


@pytest.mark.parametrize("count", [40_000, 100_000, 1_000_000])
def test_nms_growth(compare: Any, count: int) -> None:
    """How the cost grows from 10,000 segments on, at the same density."""
    small, large = make(10_000), make(count)

    def of(data: Detections) -> Tensor:
        return ops.nms(data.segments, data.scores, THRESHOLD, **RULE)

    compare(
        "nms",
        f"{count // 1000}k against 10k segments, detector",
        lambda: of(large),
        [Peer("itself at 10k", lambda: of(small), 6 if count == 40_000 else None, at_most=True)],
        check=lambda ours, peer: None,
        verified="by the rows above",
    )


SOFT = {
    "top 200 of 2k": (2_000, 200, 30, 60),
    "top 200 of 10k": (10_000, 200, 500, 1000),
    "all of 2k": (2_000, None, 2.5, 4),
}


@pytest.mark.parametrize("kind", ["detector", "uniform", "dense"])
@pytest.mark.parametrize("case", SOFT)
def test_soft_nms(compare: Any, case: str, kind: str) -> None:
    count, limit, must, aim = SOFT[case]
    segments, scores, _ = make(count, kind=kind)
    native, _, name, stand_in = peer_of("ActionFormer")
    settings = {"sigma": 0.5, "min_score": 0.001}

    def theirs() -> tuple[Tensor, Tensor]:
        dets = segments.new_empty((count, 3))
        kept = native.softnms(segments, scores, dets, iou_threshold=0.0, method=2, **settings)
        kept = kept if limit is None else kept[:limit]
        return kept, dets[: len(kept), 2]

    def check(ours: tuple[Tensor, Tensor], peer: tuple[Tensor, Tensor]) -> None:
        assert torch.equal(ours[0], peer[0])
        torch.testing.assert_close(ours[1], peer[1], rtol=5e-7, atol=0)

    compare(
        "soft_nms",
        f"gaussian, {case}, {kind}",
        lambda: ops.soft_nms(
            segments, scores, "gaussian", max_segments=limit, **settings, **RULE, spare_first=True
        ),
        [Peer(f"{name} softnms", theirs, must, aim, stand_in=stand_in)],
        check=check,
        verified="kept rows in order, scores to 4 ulp",
        repetitions=21,
    )


def same_detections(ours: Any, peer: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> None:
    torch.testing.assert_close(ours.segments, peer[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.scores, peer[1], rtol=5e-7, atol=0)
    assert torch.equal(labels[ours.indices], peer[2])


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_batched_nms(compare: Any, method: str) -> None:
    """One video of 2,000 detections in 20 classes."""
    data = make(2_000, classes=20)
    _, layer, name, stand_in = peer_of("OpenTAD")
    soft = method == "soft"
    compare(
        "batched_nms",
        f"2,000 x 20 classes, {method}",
        lambda: ops.batched_nms(
            *data,
            method="gaussian" if soft else "hard",
            iou_threshold=THRESHOLD,
            min_score=0.001,
            max_segments=200,
            max_per_class=200,
            spare_first=soft,
            **RULE,
        ),
        [
            Peer(
                f"{name} batched_nms",
                lambda: layer.batched_nms(
                    *data,
                    iou_threshold=THRESHOLD,
                    min_score=0.001,
                    max_seg_num=200,
                    use_soft_nms=soft,
                    sigma=0.5,
                ),
                8,
                20,
                stand_in=stand_in,
            )
        ],
        check=lambda ours, peer: same_detections(ours, peer, data.labels),
        verified="segments, scores and labels in order",
    )


def test_voting(compare: Any) -> None:
    """Class-agnostic soft suppression with voting, 2,000 to 200."""
    data = make(2_000, classes=20)
    _, layer, name, stand_in = peer_of("OpenTAD")
    compare(
        "batched_nms",
        "class-agnostic, soft + voting, 2,000 → 200",
        lambda: ops.batched_nms(
            *data,
            method="gaussian",
            min_score=0.001,
            max_segments=200,
            per_class=False,
            voting_threshold=0.7,
            spare_first=True,
            **RULE,
        ),
        [
            Peer(
                f"{name} batched_nms",
                lambda: layer.batched_nms(
                    *data,
                    min_score=0.001,
                    max_seg_num=200,
                    multiclass=False,
                    sigma=0.5,
                    voting_thresh=0.7,
                ),
                40,
                100,
                stand_in=stand_in,
            )
        ],
        check=lambda ours, peer: same_detections(ours, peer, data.labels),
        verified="voted segments to 1e-5, scores and labels in order",
    )


def test_many_videos(compare: Any) -> None:
    """A whole test set: 213 videos of 2,000 detections in 20 classes."""
    videos = [make(2_000, classes=20, seed=seed) for seed in range(213)]
    segments, scores, labels = (torch.cat(parts) for parts in zip(*videos, strict=True))
    owners = torch.arange(213).repeat_interleave(2_000)
    _, layer, name, stand_in = peer_of("OpenTAD")

    def loop() -> tuple[Tensor, ...]:
        found = [
            layer.batched_nms(*video, min_score=0.001, max_seg_num=200, sigma=0.5)
            for video in videos
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    compare(
        "batched_nms",
        "213 videos x 2,000 x 20 classes, soft",
        lambda: ops.batched_nms(
            segments,
            scores,
            labels,
            owners,
            method="gaussian",
            min_score=0.001,
            max_segments=200,
            max_per_class=200,
            spare_first=True,
            **RULE,
        ),
        [Peer(f"loop over {name} batched_nms", loop, 15, 30, stand_in=stand_in)],
        check=lambda ours, peer: same_detections(ours, peer, labels),
        verified="segments, scores and labels in order, all videos",
        repetitions=20,
    )
