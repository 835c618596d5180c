# SPDX-License-Identifier: Apache-2.0
"""segment_voting: against the twin, on constructed edges, by its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_cases import DTYPES, detections, make, spread, tensors
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.ops.nms import WEIGHTS
from tal_fast.reference.segment_voting import segment_voting as twin

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 5), (1, 1), (3, 0), (33, 90)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_twin(dtype, k, n, weight):
    for ties in (False, True):
        segments, scores = make(n, dtype, ties=ties)
        kept = torch.cat((segments[: k // 2], make(k - min(n, k // 2), dtype, seed=1)[0]))
        for threshold in (0.05, 0.5, 1.0):
            found = ops.segment_voting(kept, segments, scores, threshold, weight)
            expected = twin(kept, segments, scores, threshold, weight)
            assert found.shape == (k, 2)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_large_inputs_match_the_whole_matrix(weight, dtype):
    segments, scores = (x.to(dtype) for x in spread(4000, clustered=True))
    kept = segments[scores > 0.9]
    iou = ops.segment_iou(kept, segments)
    for threshold in (0.01, 0.3, 0.7, 0.95):
        weights = (iou >= torch.tensor(threshold, dtype=dtype)) * scores
        weights = (weights * iou if weight == "score_iou" else weights).double()
        expected = (weights @ segments.double()) / weights.sum(dim=1, keepdim=True)
        found = ops.segment_voting(kept, segments, scores, threshold, weight)
        tolerance = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)


# ---- constructed edges ---------------------------------------------------------------------------


def test_values_by_hand():
    kept = torch.tensor([[0.0, 8.0]], dtype=torch.float64)
    segments = torch.tensor([[0.0, 8.0], [0.0, 4.0], [20.0, 28.0]], dtype=torch.float64)
    scores = torch.tensor([0.75, 0.25, 9.0], dtype=torch.float64)

    def end(threshold, weight="score"):
        return ops.segment_voting(kept, segments, scores, threshold, weight)[0, 1].item()

    assert end(0.5) == 7.0  # an IoU on the threshold votes
    assert end(0.5001) == 8.0
    assert end(0.5, "score_iou") == (0.75 * 8 + 0.125 * 4) / 0.875


def test_without_weight_the_segment_stays():
    segments = torch.tensor([[0.0, 8.0], [0.0, 8.0], [5.0, 5.0], [1.0, 8.0]])
    kept = torch.tensor([[0.0, 8.0], [5.0, 5.0], [30.0, 40.0]])
    for scores in ([0.0, 0.0, 1.0, 0.0], [1.0, -1.0, 1.0, 0.0]):
        found = ops.segment_voting(kept, segments, torch.tensor(scores), 0.7)
        assert torch.equal(found, kept)


def test_the_twin_leaves_its_arguments_alone():
    segments = torch.tensor([[0.0, 10.0], [1.0, 10.0]], dtype=torch.float64)
    before = segments.clone()
    twin(segments, segments, torch.tensor([1.0, 3.0], dtype=torch.float64), 0.5)
    assert torch.equal(segments, before)


def test_strided_inputs():
    segments, scores = make(40)
    columns = segments.t().contiguous().t()
    twice = torch.stack((scores, scores), dim=1)[:, 0]
    found = ops.segment_voting(columns[::2], columns, twice, 0.5)
    assert torch.equal(found, ops.segment_voting(segments[::2], segments, scores, 0.5))


# ---- properties ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80, derandomize=True)
@given(detections, st.sampled_from([0.1, 0.5, 0.75]), st.sampled_from(WEIGHTS))
def test_properties(items, threshold, weight):
    segments, scores = tensors(items)
    found = ops.segment_voting(segments, segments, scores, threshold, weight)
    # Means lie between what they are means of.
    assert (found[:, 0] <= found[:, 1]).all()
    for row, kept in zip(found, segments, strict=True):
        voters = ops.segment_iou(kept[None], segments)[0] >= threshold
        among = torch.cat((segments[voters], kept[None]))
        slack = 1e-5
        assert (row >= among.amin(dim=0) - slack).all()
        assert (row <= among.amax(dim=0) + slack).all()
    # Scaling is exact, for times and for weights.
    for scale in (0.25, 8.0):
        scaled = ops.segment_voting(segments * scale, segments * scale, scores, threshold, weight)
        assert torch.equal(scaled, found * scale)
        weighted = ops.segment_voting(segments, segments, scores * scale, threshold, weight)
        assert torch.equal(weighted, found)


# ---- torch ---------------------------------------------------------------------------------------


def test_same_bits_for_any_number_of_threads(thread_counts):
    segments, scores = spread(5000, clustered=True)
    results = []
    for count in (1, *thread_counts):
        torch.set_num_threads(count)
        results.append(ops.segment_voting(segments[:3000], segments, scores, 0.6, "score_iou"))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    kept = segments.detach()[:7].clone().requires_grad_(requires_grad)
    native = torch.ops.tal_fast.segment_voting.default
    for weight in (0, 1):
        torch.library.opcheck(native, (kept, segments, scores, 0.5, weight))


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    assert not ops.segment_voting(segments[:5], segments, scores, 0.5).requires_grad


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def vote(kept, segments, scores):
        return ops.segment_voting(kept, segments, scores, 0.5) + 1

    compiled = []
    for n in (30, 33, 47, 52):
        segments, scores = make(n)
        kept = segments[: n // 2].clone()
        expected = ops.segment_voting(kept, segments, scores, 0.5) + 1
        assert torch.equal(vote(kept, segments, scores), expected)
        compiled.append(counter.frame_count)
    assert len(set(compiled[0 if dynamic else 1 :])) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.segment_voting(segments[:9], segments, scores, 0.5)
    wide = segments.float()
    assert torch.equal(found, ops.segment_voting(wide[:9], wide, scores.float(), 0.5))


# ---- errors --------------------------------------------------------------------------------------


def test_errors():
    segments, scores = make(6)
    kept = segments[:2]
    with pytest.raises(
        RuntimeError,
        match=r"segment_voting: expected kept_segments of shape \[N, 2\], got \[2\]",
    ):
        ops.segment_voting(kept[0], segments, scores, 0.5)
    with pytest.raises(RuntimeError, match=r"expected segments of shape \[N, 2\], got \[6, 1\]"):
        ops.segment_voting(kept, segments[:, :1], scores, 0.5)
    with pytest.raises(RuntimeError, match=r"expected scores of shape \[6\].*got \[5\]"):
        ops.segment_voting(kept, segments, scores[:5], 0.5)
    with pytest.raises(
        RuntimeError, match=r"expected kept_segments of dtype float32 like segments, got float64"
    ):
        ops.segment_voting(kept.double(), segments, scores, 0.5)
    with pytest.raises(RuntimeError, match=r"expected kept_segments on cpu like segments, got met"):
        ops.segment_voting(kept.to("meta"), segments, scores, 0.5)
    for threshold in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(RuntimeError, match=r"expected iou_threshold in \(0, 1\], got"):
            ops.segment_voting(kept, segments, scores, threshold)
    with pytest.raises(
        ValueError, match=r"segment_voting: expected weight to be one of score, score_iou, got 'x'"
    ):
        ops.segment_voting(kept, segments, scores, 0.5, "x")
    with pytest.raises(RuntimeError, match=r"expected voting weight 0 or 1, got 2"):
        torch.ops.tal_fast.segment_voting(kept, segments, scores, 0.5, 2)


@pytest.mark.cpu_only
def test_errors_of_values():
    segments, scores = make(6)
    kept = segments[:2]
    for bad in (math.nan, math.inf):
        broken = scores.clone()
        broken[4] = bad
        with pytest.raises(RuntimeError, match=r"expected finite scores for voting.*in row 4"):
            ops.segment_voting(kept, segments, broken, 0.5)
    with pytest.raises(RuntimeError, match=r"expected kept_segments with start <= end.*in row 0"):
        ops.segment_voting(kept.flip(1), segments, scores, 0.5)
    broken = segments.clone()
    broken[3, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"expected finite segments, got.*in row 3"):
        ops.segment_voting(kept, broken, scores, 0.5)
