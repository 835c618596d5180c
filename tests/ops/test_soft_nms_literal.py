# SPDX-License-Identifier: Apache-2.0
"""Soft-NMS in the order of ``nms_1d_cpu``: against its twin, and against the original."""

from __future__ import annotations

import math

import peers_nms
import pytest
import torch
from nms_cases import hostile, make, spread

from tal_fast import ops
from tal_fast.ops.nms import METHODS
from tal_fast.ops.soft_nms_literal import soft_nms_literal
from tal_fast.reference.soft_nms_literal import soft_nms_literal as twin

pytestmark = pytest.mark.cpu_only  # there is no CUDA kernel


def tied(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments of few positions, scores of few values."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 12, (n,), generator=generator).float()
    length = torch.randint(0, 6, (n,), generator=generator).float()
    scores = torch.randint(1, 5, (n,), generator=generator).float() / 8
    return torch.stack([start, start + length], 1), scores


@pytest.mark.parametrize("min_score", [0.0, 0.001, 0.2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 2, 15, 33, 70])
def test_moves_are_those_of_the_twin(n, method, min_score):
    for segments, scores in (tied(n, n), spread(n, clustered=True, seed=n)):
        options = {"min_score": min_score, "iou_threshold": 0.3, "t1": 0.1, "t2": 0.02}
        rows, found = soft_nms_literal(segments, scores, method, **options)
        expected, values = twin(segments, scores, method, **options)
        assert torch.equal(rows, expected)
        assert torch.equal(found[:, :2], values[:, :2])
        torch.testing.assert_close(found[:, 2], values[:, 2], rtol=1e-5, atol=0)


def test_the_order_of_ties_is_that_of_the_swaps():
    # Rows 0 and 1 tie. The pick of row 2 puts row 0 behind row 1, so row 1 comes next.
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    scores = torch.tensor([0.5, 0.5, 0.9])
    assert soft_nms_literal(segments, scores)[0].tolist() == [2, 1, 0]
    assert ops.soft_nms(segments, scores)[0].tolist() == [2, 0, 1]


def test_without_ties_it_is_soft_nms():
    segments, scores = spread(500, clustered=True)
    rows, found = soft_nms_literal(segments, scores)
    same, values = ops.soft_nms(
        *(segments, scores),
        max_segments=None,
        iou_comparison="ge",
        length_eps=1e-6,
        spare_first=True,
    )
    assert torch.equal(rows, same)
    torch.testing.assert_close(found[:, 2], values, rtol=1e-5, atol=0)


@pytest.mark.parametrize("first", [0, 1, 5, 40])
def test_a_nan_score_is_never_higher_and_never_lower(first):
    segments, scores = spread(60, clustered=False)
    scores[first] = math.nan
    rows, _ = soft_nms_literal(segments, scores)
    assert torch.equal(rows, twin(segments, scores)[0])


def test_refuses_wrong_input():
    segments, scores = spread(4, clustered=False)
    with pytest.raises(RuntimeError, match=r"expected segments of shape \[N, 2\], got \[4\]"):
        soft_nms_literal(scores, scores)
    with pytest.raises(RuntimeError, match="segments of dtype float32, got float64"):
        soft_nms_literal(segments.double(), scores.double())
    with pytest.raises(RuntimeError, match="scores of dtype float32 like segments, got float64"):
        soft_nms_literal(segments, scores.double())
    with pytest.raises(ValueError, match="one of hard, linear, gaussian, length_gaussian"):
        soft_nms_literal(segments, scores, "soft")
    with pytest.raises(TypeError, match=r"expected scores to be a torch\.Tensor, got list"):
        soft_nms_literal(segments, scores.tolist())


def test_opcheck():
    torch.library.opcheck(
        torch.ops.tal_fast.soft_nms_literal.default,
        (*spread(20, clustered=True), 2, 0.5, 0.1, 0.001, 1e-6, 0.0, 0.0),
    )


@pytest.mark.parametrize("name", ["actionformer", "opentad"])
def test_bits_of_the_original(name):
    peer = peers_nms.load(name)
    if isinstance(peer, str):
        pytest.skip(peer)
    cases = [tied(n, n) for n in (1, 2, 50, 300, 2000)]
    cases += [spread(n, clustered=True, seed=n) for n in (100, 1000)]
    cases += [make(300, ties=True), hostile(200, 1)]
    for segments, scores in cases:
        segments, scores = segments.float(), scores.float()
        for method in range(4 if name == "opentad" else 3):
            for min_score in (0.0, 0.001, 0.1):
                found = torch.full((len(scores), 3), -7.0)
                more = (0.1, 0.02) if name == "opentad" else ()
                rows = peer.native.softnms(
                    segments, scores, found, 0.3, 0.5, min_score, method, *more
                )
                ours, values = soft_nms_literal(
                    *(segments, scores, METHODS[method]),
                    iou_threshold=0.3,
                    min_score=min_score,
                    t1=0.1,
                    t2=0.02,
                )
                assert torch.equal(ours, rows)
                theirs = found[: len(rows)]
                assert torch.equal(values.view(torch.int32), theirs.contiguous().view(torch.int32))
