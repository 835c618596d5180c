# SPDX-License-Identifier: Apache-2.0
"""soft_nms: against the twin and the eager procedure, on constructed edges, by its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_cases import COMPARISONS, DTYPES, call, detections, hostile, make, spread, tensors, twin
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.ops.nms import METHODS

# The native Gaussian uses an exp of its own and the twin torch's: one unit apart per decay.
SCORE_TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def check(found, expected, dtype):
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == dtype
    torch.testing.assert_close(found[1], expected[1], rtol=SCORE_TOLERANCE[dtype], atol=0)


# ---- against the twin and the eager procedure ----------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [0, 1, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_matches_twin(method, dtype, n, ties):
    segments, scores = make(n, dtype, ties=ties)
    for limit in (None, 7):
        options = {"min_score": 0.05, "max_segments": limit, "t1": 0.1, "t2": 0.01}
        found = ops.soft_nms(segments, scores, method, **options)
        check(found, twin("soft_nms", segments, scores, method, **options), dtype)


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_options_match_twin(method, eps, comparison):
    for t1, t2, threshold in ((0.0, 0.0, 0.0), (0.25, 0.0, 0.25), (0.1, 0.02, 0.5), (0.5, -0.1, 1)):
        segments, scores = make(50, ties=True)
        options = {"iou_comparison": comparison, "length_eps": eps, "t1": t1, "t2": t2}
        options |= {"iou_threshold": threshold, "min_score": 0.02}
        for sigma in (0.5, 0.05):
            found = ops.soft_nms(segments, scores, method, sigma, **options)
            check(
                found, twin("soft_nms", segments, scores, method, sigma, **options), torch.float32
            )


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("method", METHODS)
def test_invalid_segments_match_twin(method, comparison):
    for seed in range(3):
        segments, scores = hostile(60, seed)
        options = {"iou_comparison": comparison, "length_eps": 1e-6, "t1": 0.1}
        found = ops.soft_nms(segments, scores, method, validate=False, **options)
        check(found, twin("soft_nms", segments, scores, method, **options), torch.float32)


def eager(segments: Tensor, scores: Tensor, min_score: float, threshold: float):
    """Linear soft-NMS as it is defined, all scores up to date: exact, as it needs no exp."""
    start, end = segments[:, 0], segments[:, 1]
    length = end - start
    current = torch.where(scores >= min_score, scores, -1)
    kept, kept_scores = [], []
    while (best := int(current.argmax())) >= 0 and current[best] >= 0:
        kept.append(best)
        kept_scores.append(current[best].clone())
        current[best] = -1
        inter = (torch.minimum(end[best], end) - torch.maximum(start[best], start)).clamp(min=0)
        iou = inter / (length[best] + length - inter)
        live = current >= 0
        current = torch.where(live & (iou > threshold), current * (1 - iou), current)
        current = torch.where(live & ~(current >= min_score), -1, current)
    return kept, torch.stack(kept_scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("n", [127, 128, 300, 1500])
def test_bits_of_the_eager_procedure(n, clustered, dtype, device):
    n = min(n, 600) if device == "cuda-emulated" else n
    segments, scores = (x.to(dtype) for x in spread(n, clustered=clustered))
    for threshold, min_score in ((0.0, 0.01), (0.25, 0.0)):
        expected, expected_scores = eager(segments, scores, min_score, threshold)
        options = {"iou_threshold": threshold, "min_score": min_score}
        indices, found = ops.soft_nms(segments, scores, "linear", max_segments=None, **options)
        assert indices.tolist() == expected
        assert torch.equal(found, expected_scores)
        for limit in (1, 63, 64, 65, 200):
            indices, found = ops.soft_nms(segments, scores, "linear", max_segments=limit, **options)
            assert indices.tolist() == expected[:limit]
            assert torch.equal(found, expected_scores[:limit])


# ---- constructed edges ---------------------------------------------------------------------------


def test_strided_inputs():
    segments, scores = make(50)
    a = ops.soft_nms(segments.t().contiguous().t(), torch.stack((scores, scores), 1)[:, 0])
    b = ops.soft_nms(segments, scores)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_values_by_hand():
    segments = torch.tensor([[0.0, 10.0], [0.0, 5.0]], dtype=torch.float64)
    scores = torch.tensor([1.0, 0.8], dtype=torch.float64)  # IoU 0.5

    def second(method, **options):
        return ops.soft_nms(segments, scores, method, **options)[1][1].item()

    decayed = 0.8 * math.exp(-0.25 / 0.5)
    assert second("gaussian") == pytest.approx(decayed, rel=1e-15)
    assert second("linear") == pytest.approx(0.4, rel=1e-15)
    for method, after in (("linear", 0.4), ("length_gaussian", decayed)):
        options = {"iou_threshold": 0.5, "t1": 0.25, "t2": 0.025}  # 0.25 + 0.025 * 10 = 0.5
        assert second(method, **options) == 0.8
        assert second(method, **options, iou_comparison="ge") == pytest.approx(after, rel=1e-15)
    assert second("length_gaussian", t1=0.4, t2=0.0) == pytest.approx(decayed, rel=1e-15)
    # The length of the segment taken counts, its epsilon included.
    assert second("length_gaussian", t2=0.06) == 0.8
    assert second("length_gaussian", t2=0.04, length_eps=5.0) == 0.8
    assert len(ops.soft_nms(segments, scores, "hard", iou_threshold=0.4)[0]) == 1


@pytest.mark.parametrize("sigma", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_is_exact_to_the_last_bit(dtype, sigma):
    # Pairs far from each other: the second of each has the score exp(-IoU² / sigma).
    n = 1000
    start = 1000.0 * torch.arange(n, dtype=dtype)
    length = 100.0 * torch.arange(1, n + 1, dtype=dtype) / n
    best = torch.stack((start, start + 100), dim=1)
    second = torch.stack((start, start + length), dim=1)
    segments = torch.cat((best, second))
    scores = torch.cat((torch.full((n,), 2.0, dtype=dtype), torch.ones(n, dtype=dtype)))
    iou = ops.segment_iou(second, best, aligned=True)
    exponent = -(iou * iou) / torch.tensor(sigma, dtype=dtype)
    indices, found = ops.soft_nms(segments, scores, sigma=sigma, min_score=0.0, max_segments=None)
    by_row = torch.empty_like(found)
    by_row[indices] = found
    expected = torch.exp(exponent.double())
    if dtype == torch.float32:  # rounded once, also where it is subnormal
        assert torch.equal(by_row[n:], expected.float())
    else:
        torch.testing.assert_close(by_row[n:], expected, rtol=2.0**-52, atol=0)


def test_ties_go_to_the_lower_index():
    segments = torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 6.0], [5.0, 6.0]])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert ops.soft_nms(segments, scores, "hard")[0].tolist() == [0, 2]
    indices, kept_scores = ops.soft_nms(segments, scores)
    assert indices.tolist() == [0, 2, 1, 3]
    assert kept_scores[2] == kept_scores[3]
    # A decayed score that meets fresh ones: 0.75 * (1 - 1/2).
    segments = torch.tensor([[0.0, 2.0], [20.0, 21.0], [0.0, 1.0], [30.0, 31.0]])
    scores = torch.tensor([0.9, 0.375, 0.75, 0.375])
    indices, found = ops.soft_nms(segments, scores, "linear", iou_threshold=0.0)
    assert found[1:].tolist() == [0.375, 0.375, 0.375]
    assert indices.tolist() == [0, 1, 2, 3]


def test_zero_length_segments_do_not_act():
    segments = torch.tensor([[3.0, 3.0], [3.0, 3.0], [0.0, 6.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for method in METHODS:
        indices, kept_scores = ops.soft_nms(segments, scores, method, iou_threshold=0.0)
        assert indices.tolist() == [0, 1, 2]
        assert torch.equal(kept_scores, scores)


def test_equal_segments():
    equal, scores = torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([0.9, 0.8])
    assert ops.soft_nms(equal, scores, "linear")[0].tolist() == [0]  # decayed to 0 < min_score
    assert ops.soft_nms(equal, scores, "linear", min_score=0.0)[1].tolist()[1] == 0.0
    expected = 0.8 * math.exp(-1 / 0.5)
    assert ops.soft_nms(equal, scores)[1][1].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_min_score_and_spare_first(method):
    segments, scores = make(5)
    low = scores * 0.01
    assert len(ops.soft_nms(segments, low, method, min_score=0.5)[0]) == 0
    indices, found = ops.soft_nms(segments, low, method, min_score=0.5, spare_first=True)
    assert indices.tolist() == [int(low.argmax())]
    assert torch.equal(found, low[indices])
    negative = ops.soft_nms(segments, -scores, method, spare_first=True)
    assert negative[0].tolist() == [int(scores.argmin())]
    # One that needs no sparing: nothing changes.
    plain = ops.soft_nms(segments, scores, method, min_score=0.3)
    spared = ops.soft_nms(segments, scores, method, min_score=0.3, spare_first=True)
    assert torch.equal(plain[0], spared[0])
    at = torch.tensor([0.25])
    assert ops.soft_nms(segments[:1], at, method, min_score=0.25)[0].tolist() == [0]
    assert ops.soft_nms(segments[:1], at, method, min_score=0.26)[0].tolist() == []
    assert ops.soft_nms(segments[:0], at[:0], method, spare_first=True)[0].tolist() == []


def test_infinite_scores():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    scores = torch.tensor([-math.inf, 0.0, math.inf])
    assert ops.soft_nms(segments, scores, "linear")[0].tolist() == [2]
    equal = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # inf * (1 - 1) is NaN, which has no rank: dropped.
    assert ops.soft_nms(equal, torch.full((2,), math.inf), "linear")[0].tolist() == [0]


# ---- properties ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, derandomize=True)
@given(detections, st.randoms(use_true_random=False), st.sampled_from(METHODS))
def test_permutation_without_ties(items, random, method):
    segments, _ = tensors(items)
    scores = torch.linspace(0.1, 1.0, len(items))
    order = list(range(len(items)))
    random.shuffle(order)
    options = {"min_score": 0.0, "iou_threshold": 0.3, "t1": 0.2}
    a, a_scores = ops.soft_nms(segments, scores, method, **options)
    b, b_scores = ops.soft_nms(segments[order], scores[order], method, **options)
    assert torch.equal(a_scores, b_scores)
    # Decays can make ties, and those go by index: compare what has a score of its own.
    unique = [i for i, x in enumerate(a_scores.tolist()) if a_scores.tolist().count(x) == 1]
    assert a[unique].tolist() == torch.tensor(order, dtype=torch.int64)[b][unique].tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(detections, st.sampled_from(METHODS), st.integers(1, 9), st.booleans())
def test_properties(items, method, limit, spare_first):
    segments, scores = tensors(items)
    options = {"spare_first": spare_first, "t1": 0.1}
    indices, kept_scores = ops.soft_nms(segments, scores, method, max_segments=None, **options)
    assert (kept_scores.diff() <= 0).all()
    assert (kept_scores[int(spare_first) :] >= 0.001).all()
    assert (kept_scores <= scores[indices]).all()
    assert len(set(indices.tolist())) == len(indices)
    first, first_scores = ops.soft_nms(segments, scores, method, max_segments=limit, **options)
    assert torch.equal(first, indices[:limit])
    assert torch.equal(first_scores, kept_scores[:limit])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(detections, st.sampled_from(METHODS), st.integers(-64, 64), st.sampled_from([-20, 0, 30]))
def test_time_shift_and_scale(items, method, shift, exponent):
    segments, scores = tensors(items)
    options = {"t1": 0.1, "max_segments": None}
    expected = ops.soft_nms(segments, scores, method, **options)
    for changed in (segments + shift, segments * 2.0**exponent):
        found = ops.soft_nms(changed, scores, method, **options)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    native = torch.ops.tal_fast.soft_nms.default
    torch.library.opcheck(native, (segments, scores, 2, 0.5, 0.1, 0.001, 10))
    more = (True, 1e-6, 0.1, 0.2, True, False)
    torch.library.opcheck(native, (segments, scores, 3, 0.5, 0.1, 0.001, None, *more))


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    indices, kept_scores = ops.soft_nms(segments, scores)
    assert not kept_scores.requires_grad
    segments[indices].sum().backward()
    assert segments.grad.sum().item() == 2 * len(indices)


@pytest.mark.parametrize("dynamic", [None, True])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def select(segments, scores):
        indices, soft = ops.soft_nms(segments, scores, spare_first=True)
        return indices, soft + 1

    compiled = []
    for n in (30, 31, 47, 52):
        segments, scores = make(n)
        expected = ops.soft_nms(segments, scores, spare_first=True)
        indices, soft = select(segments, scores)
        assert torch.equal(indices, expected[0])
        assert torch.equal(soft, expected[1] + 1)
        compiled.append(counter.frame_count)
    assert len(set(compiled[0 if dynamic else 1 :])) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        kept, kept_scores = ops.soft_nms(segments, scores)
    wide = ops.soft_nms(segments.float(), scores.float())
    assert kept_scores.dtype == torch.float32
    assert torch.equal(kept, wide[0])
    assert torch.equal(kept_scores, wide[1])


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["soft_nms", "batched_nms"])
def test_errors_of_options(op):
    segments, scores = make(4)
    known = "hard, linear, gaussian, length_gaussian"
    with pytest.raises(
        ValueError, match=rf"{op}: expected method to be one of {known}, got 'soft'"
    ):
        call(ops, op, segments, scores, method="soft")
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RuntimeError, match=rf"{op}: expected sigma > 0, got"):
            call(ops, op, segments, scores, sigma=sigma)
    for name in ("t1", "t2"):
        with pytest.raises(RuntimeError, match=rf"{op}: expected a finite {name}, got nan"):
            call(ops, op, segments, scores, **{name: math.nan})
    with pytest.raises(RuntimeError, match=rf"{op}: expected min_score >= 0 with a soft method"):
        call(ops, op, segments, scores, method="linear", min_score=-1.0)
    with pytest.raises(RuntimeError, match=rf"{op}: expected min_score that is not NaN"):
        call(ops, op, segments, scores, method="hard", min_score=math.nan)


def test_error_of_a_method_number():
    with pytest.raises(RuntimeError, match=r"soft_nms: expected method 0, 1, 2 or 3, got 4"):
        torch.ops.tal_fast.soft_nms(*make(4), 4, 0.5, 0.5, 0.0, None)
