# SPDX-License-Identifier: Apache-2.0
"""The NMS family against the code of ActionFormer and OpenTAD, where the user has it."""

import math

import numpy as np
import peers_nms
import pytest
import torch
from nms_cases import groups, hostile, make, spread

from tal_fast import ops
from tal_fast.ops.nms import METHODS

DIALECT = {"iou_comparison": "ge", "length_eps": 1e-6}
WEIGHT = {"actionformer": "score_iou", "opentad": "score"}


@pytest.fixture(scope="module", params=["actionformer", "opentad"])
def peer(request):
    found = peers_nms.load(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def cases():
    """Segments and untied scores."""
    for n in (0, 1, 2, 17, 100, 300, 700, 2500):
        for clustered in (False, True):
            yield spread(n, clustered=clustered, seed=n)
    segments, _ = make(400, ties=True)  # equal, touching, nested and empty segments
    scores = spread(400, clustered=False)[1]
    yield segments, scores
    yield segments + 1e5, scores
    yield segments * 1e-6, scores  # as short as the epsilon
    yield torch.zeros(50, 2), scores[:50]


def same_scores(ours, theirs) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.shape == theirs.shape
    # The same decays in the same order, but theirs use the exp of the C library, which rounds about
    # one value in 1300 otherwise: 7 units in the last place after the hundreds of decays here.
    np.testing.assert_array_max_ulp(ours.numpy(), theirs.numpy(), 16)


def same_detections(result, labels, theirs, *, voted=False) -> None:
    segments, scores, classes = theirs
    same_scores(result.scores, scores)
    assert torch.equal(labels[result.indices], classes)
    if voted:
        torch.testing.assert_close(result.segments, segments, rtol=1e-6, atol=1e-5)
    else:
        assert torch.equal(result.segments, segments)


# ---- the native functions ------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_nms(peer, threshold):
    for segments, scores in cases():
        theirs = peer.native.nms(segments, scores, threshold)
        assert torch.equal(ops.nms(segments, scores, threshold, **DIALECT), theirs)
        first = ops.nms(segments, scores, threshold, max_segments=5, **DIALECT)
        assert torch.equal(first, theirs[:5])


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("n", [30, 300, 1500])
def test_nms_of_invalid_segments(peer, n, threshold):
    for seed in range(4):
        segments, scores = hostile(n, seed)
        theirs = peer.native.nms(segments, scores, threshold)
        kept = ops.nms(segments, scores, threshold, validate=False, **DIALECT)
        assert torch.equal(kept, theirs)


def test_nms_of_a_hundred_thousand(peer):
    segments, scores = spread(100_000, clustered=True, seed=3)
    theirs = peer.native.nms(segments, scores, 0.5)
    assert torch.equal(ops.nms(segments, scores, 0.5, **DIALECT), theirs)


@pytest.mark.parametrize("min_score", [0.001, 0.2])
@pytest.mark.parametrize("method", range(4))
def test_softnms(peer, method, min_score):
    if method == 3 and peer.name != "opentad":
        pytest.skip("ActionFormer has methods 0, 1 and 2")
    for segments, scores in cases():
        for threshold, sigma, t1, t2 in ((0.1, 0.5, 0.1, 0.0), (0.5, 0.1, 0.05, 0.02)):
            shared = {"iou_threshold": threshold, "sigma": sigma, "t1": t1, "t2": t2}
            shared |= {"min_score": min_score}
            rows, theirs = peer.softnms(segments, scores, method=method, **shared)
            for limit in (None, 50):
                indices, ours = ops.soft_nms(
                    *(segments, scores, METHODS[method]),
                    max_segments=limit,
                    spare_first=True,
                    **shared,
                    **DIALECT,
                )
                assert torch.equal(indices, rows[:limit])
                same_scores(ours, theirs[:limit])


def test_softnms_spares_the_first(peer):
    segments, scores = spread(40, clustered=True)
    for low in (scores * 1e-4, scores * 0.0, -scores):
        rows, theirs = peer.softnms(segments, low)
        for method in ("hard", "linear", "gaussian"):
            indices, ours = ops.soft_nms(segments, low, method, spare_first=True, **DIALECT)
            assert torch.equal(indices, rows)
            assert torch.equal(ours, theirs)


def test_softnms_of_many(peer):
    segments, scores = spread(8000, clustered=True)
    rows, theirs = peer.softnms(segments, scores)
    indices, ours = ops.soft_nms(
        segments, scores, max_segments=None, spare_first=True, min_score=0.001, **DIALECT
    )
    assert torch.equal(indices, rows)
    same_scores(ours, theirs)


# ---- the Python functions ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [200, 20, 5000])
@pytest.mark.parametrize("soft", [True, False])
def test_batched_nms_by_class(peer, soft, limit):
    for n, kinds in ((1, 1), (150, 4), (2000, 20), (1200, 150)):
        segments, scores = spread(n, clustered=True, seed=n)
        labels = groups(n, kinds)
        for min_score in (0.001, 0.1):
            theirs = peer.python.batched_nms(
                *(segments, scores, labels, 0.4, min_score, limit, soft, True, 0.5, 0.0)
            )
            # Their hard NMS drops a score equal to min_score too, and spares nothing.
            least = min_score if soft else float(np.nextafter(np.float32(min_score), np.inf))
            result = ops.batched_nms(
                *(segments, scores, labels),
                method="gaussian" if soft else "hard",
                iou_threshold=0.4,
                min_score=least,
                max_segments=limit,
                spare_first=soft,
                **DIALECT,
            )
            same_detections(result, labels, theirs)


@pytest.mark.parametrize("voting", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("soft", [True, False])
def test_batched_nms_of_all_classes_with_voting(peer, soft, voting):
    for n in (1, 150, 2000):
        segments, scores = spread(n, clustered=True, seed=n)
        labels = groups(n, 5)
        theirs = peer.python.batched_nms(
            *(segments, scores, labels, 0.4, 0.001, 200, soft, False, 0.5, voting)
        )
        result = ops.batched_nms(
            *(segments, scores, labels),
            method="gaussian" if soft else "hard",
            iou_threshold=0.4,
            min_score=0.001,
            max_segments=200,
            per_class=False,
            voting_threshold=voting or None,
            voting_weight=WEIGHT[peer.name],
            spare_first=soft,
            **DIALECT,
        )
        same_detections(result, labels, theirs, voted=voting > 0)


def test_batched_nms_with_the_length_gaussian(peer):
    if peer.name != "opentad":
        pytest.skip("OpenTAD's alone")
    segments, scores = spread(1500, clustered=True)
    labels = groups(1500, 6)
    theirs = peer.python.batched_nms(
        *(segments, scores, labels, 0.0, 0.001, 100, True, True),
        sigma=0.4,
        method=3,
        t1=0.2,
        t2=0.01,
    )
    result = ops.batched_nms(
        *(segments, scores, labels),
        method="length_gaussian",
        sigma=0.4,
        t1=0.2,
        t2=0.01,
        min_score=0.001,
        max_segments=100,
        spare_first=True,
        **DIALECT,
    )
    same_detections(result, labels, theirs)


@pytest.mark.parametrize("threshold", [0.2, 0.7])
def test_segment_voting(peer, threshold):
    segments, scores = spread(3000, clustered=True)
    kept = segments[scores > 0.95]
    theirs = peer.python.seg_voting(kept, segments, scores, threshold)
    exact = peer.python.seg_voting(kept.double(), segments.double(), scores.double(), threshold)
    ours = ops.segment_voting(kept, segments, scores, threshold, WEIGHT[peer.name])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)
    # Where theirs are NaN ours stay.
    silent = torch.zeros_like(scores)
    assert peer.python.seg_voting(kept, segments, silent, threshold).isnan().all()
    assert torch.equal(ops.segment_voting(kept, segments, silent, threshold), kept)


def test_differences_that_are_documented(peer):
    # With min_score 0, their "hard" soft-NMS keeps what it removes, with score 0.
    segments, scores = torch.tensor([[0.0, 4.0], [0.0, 4.0]]), torch.tensor([0.9, 0.8])
    rows, values = peer.softnms(segments, scores, method=0, min_score=0.0, iou_threshold=0.5)
    assert (rows.tolist(), values[1].item()) == ([0, 1], 0.0)
    ours = ops.soft_nms(segments, scores, "hard", iou_threshold=0.5, min_score=0.0, **DIALECT)
    assert ours[0].tolist() == [0]
    # A NaN score has no rank.
    scores[1] = math.nan
    with pytest.raises(RuntimeError, match="expected scores that are not NaN"):
        ops.nms(segments, scores, 0.5, validate=False, **DIALECT)
