# SPDX-License-Identifier: Apache-2.0
"""nms, soft_nms and batched_nms: against the twin, on constructed edges, by their properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.ops.nms import METHODS
from tal_fast.reference import nms as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# The native Gaussian uses the C library's exp and the twin torch's: one unit apart per decay.
SCORE_TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def make(n: int, dtype: torch.dtype = torch.float32, *, ties: bool = False, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator, dtype=torch.float64) * 50
    length = torch.rand(n, generator=generator, dtype=torch.float64) * 12
    segments = torch.stack((start, start + length), dim=1)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    if ties:  # equal scores, equal segments, segments of length zero
        segments, scores = (segments / 2).round() * 2, (scores * 8).round() / 8
    return segments.to(dtype), scores.to(dtype)


def groups(n: int, kinds: int, seed: int = 1) -> Tensor:
    return torch.randint(0, kinds, (n,), generator=torch.Generator().manual_seed(seed))


# ---- against the twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_nms_matches_twin(threshold, dtype, n, ties):
    segments, scores = make(n, dtype, ties=ties)
    kept = ops.nms(segments, scores, threshold)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, twin.nms(segments, scores, threshold))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [0, 1, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_soft_nms_matches_twin(method, dtype, n, ties):
    segments, scores = make(n, dtype, ties=ties)
    for limit in (None, 7):
        indices, kept_scores = ops.soft_nms(
            segments, scores, method, min_score=0.05, max_segments=limit
        )
        expected, expected_scores = twin.soft_nms(
            segments, scores, method, min_score=0.05, max_segments=limit
        )
        assert torch.equal(indices, expected)
        assert kept_scores.dtype == dtype
        tolerance = SCORE_TOLERANCE[dtype]
        torch.testing.assert_close(kept_scores, expected_scores, rtol=tolerance, atol=0)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("n", [0, 1, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_batched_nms_matches_twin(method, dtype, n, per_class):
    segments, scores = make(n, dtype, ties=True)
    labels, videos = groups(n, 3), groups(n, 4, seed=2)
    for owners in (None, videos, videos.int() - 2):
        options = {"method": method, "min_score": 0.05, "max_segments": 11, "per_class": per_class}
        result = ops.batched_nms(segments, scores, labels.int(), owners, **options)
        expected = twin.batched_nms(segments, scores, labels, owners, **options)
        assert torch.equal(result.indices, expected[0])
        tolerance = SCORE_TOLERANCE[dtype]
        torch.testing.assert_close(result.scores, expected[1], rtol=tolerance, atol=0)
        assert torch.equal(result.segments, segments[result.indices])


def test_large_input_matches_a_plain_loop():
    # Enough segments for the search windows to matter; the twin would take minutes.
    segments, scores = make(3000, seed=5)
    segments[:, 0] *= 3
    segments[:, 1] = segments[:, 0] + (segments[:, 1] - segments[:, 0]).abs()
    start, end = segments[:, 0], segments[:, 1]
    length = end - start
    for threshold in (0.0, 0.1, 0.5, 0.9):
        alive = torch.ones(len(scores), dtype=torch.bool)
        expected = []
        for i in torch.sort(scores, descending=True, stable=True).indices.tolist():
            if not alive[i]:
                continue
            expected.append(i)
            inter = (torch.minimum(end[i], end) - torch.maximum(start[i], start)).clamp(min=0)
            alive &= ~(inter / (length[i] + length - inter) > threshold)
        assert ops.nms(segments, scores, threshold).tolist() == expected


def test_strided_inputs():
    segments, scores = make(50)
    wide = torch.zeros(50, 5)
    wide[:, 1:3], wide[:, 4] = segments, scores
    assert torch.equal(ops.nms(wide[:, 1:3], wide[:, 4], 0.4), ops.nms(segments, scores, 0.4))
    columns = segments.t().contiguous().t()
    a, b = ops.soft_nms(columns, wide[:, 4]), ops.soft_nms(segments, scores)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    labels = groups(50, 3)
    spread = torch.stack((labels, labels), dim=1)[:, 0]
    c, d = (ops.batched_nms(columns, scores, x, x) for x in (spread, labels))
    assert torch.equal(c.indices, d.indices)


# ---- constructed edges ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("end", "threshold"), [(5.0, 0.5), (7.0, 0.7), (3.0, 0.3), (1.0, 0.1)])
def test_iou_exactly_on_the_threshold(dtype, end, threshold):
    segments = torch.tensor([[0.0, 10.0], [0.0, end]], dtype=dtype)
    scores = torch.tensor([1.0, 0.5], dtype=dtype)
    # Hard: above the threshold only. Linear: from the threshold on.
    assert ops.nms(segments, scores, threshold).tolist() == [0, 1]
    assert ops.nms(segments, scores, threshold - 1e-3).tolist() == [0]
    assert ops.nms(segments, scores, threshold + 1e-3).tolist() == [0, 1]
    _, hard = ops.soft_nms(segments, scores, "hard", iou_threshold=threshold)
    assert hard.tolist() == [1.0, 0.5]
    _, linear = ops.soft_nms(segments, scores, "linear", iou_threshold=threshold)
    assert linear[1].item() == pytest.approx(0.5 * (1 - end / 10), rel=8e-3)
    _, above = ops.soft_nms(segments, scores, "linear", iou_threshold=threshold + 1e-3)
    assert above.tolist() == [1.0, 0.5]


def test_ties_go_to_the_lower_index():
    segments = torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 6.0], [5.0, 6.0]])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert ops.nms(segments, scores, 0.5).tolist() == [0, 2]
    assert ops.soft_nms(segments, scores, "hard")[0].tolist() == [0, 2]
    indices, kept_scores = ops.soft_nms(segments, scores)
    assert indices.tolist() == [0, 2, 1, 3]
    assert kept_scores[2] == kept_scores[3]
    labels = torch.tensor([7, -3, 7, -3])
    assert ops.batched_nms(segments, scores, labels).indices.tolist() == [0, 1, 2, 3]


def test_negative_zero_ties_with_zero():
    segments = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert ops.nms(segments, torch.tensor([-0.0, 0.0]), 0.5).tolist() == [0]


def test_zero_length_segments_do_not_act():
    segments = torch.tensor([[3.0, 3.0], [3.0, 3.0], [0.0, 6.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert ops.nms(segments, scores, 0.0).tolist() == [0, 1, 2]  # 0 / 0 is NaN, 0 / 6 is 0
    indices, kept_scores = ops.soft_nms(segments, scores, "linear", iou_threshold=0.0)
    assert indices.tolist() == [0, 1, 2]
    assert torch.equal(kept_scores, scores)


def test_touching_nested_and_equal_segments():
    scores = torch.tensor([0.9, 0.8])
    touching = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    nested = torch.tensor([[0.0, 10.0], [4.0, 5.0]])
    equal = torch.tensor([[2.0, 4.0], [2.0, 4.0]])
    assert ops.nms(touching, scores, 0.0).tolist() == [0, 1]
    assert ops.nms(nested, scores, 0.09).tolist() == [0]
    assert ops.nms(nested, scores, 0.11).tolist() == [0, 1]
    assert ops.nms(equal, scores, 0.99).tolist() == [0]
    assert ops.nms(equal, scores, 1.0).tolist() == [0, 1]
    assert ops.soft_nms(equal, scores, "linear")[0].tolist() == [0]  # decayed to 0 < min_score
    expected = 0.8 * math.exp(-1 / 0.5)
    assert ops.soft_nms(equal, scores)[1][1].item() == pytest.approx(expected, rel=1e-6)


def test_suppressed_segments_do_not_suppress():
    segments = torch.tensor([[0.0, 10.0], [4.0, 14.0], [8.0, 18.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert ops.nms(segments, scores, 0.4).tolist() == [0, 2]


def test_segments_far_from_zero():
    # Neighbouring float32 numbers are 64 apart here: what the bounds of the search must survive.
    segments = torch.tensor([[1e9, 1e9 + 128], [1e9 + 64, 1e9 + 128], [-1e30, 1e30], [-3e38, 3e38]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for threshold in (0.0, 0.4, 0.6):
        expected = twin.nms(segments, scores, threshold)
        assert torch.equal(ops.nms(segments, scores, threshold), expected)


def test_infinite_scores_are_ranked():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    scores = torch.tensor([-math.inf, 0.0, math.inf])
    assert ops.nms(segments, scores, 0.5).tolist() == [2, 1, 0]
    assert ops.soft_nms(segments, scores, "linear")[0].tolist() == [2]


@pytest.mark.parametrize("method", METHODS)
def test_min_score_drops_the_first_pick_too(method):
    segments, scores = make(5)
    assert len(ops.soft_nms(segments, scores * 0.01, method, min_score=0.5)[0]) == 0
    at = torch.tensor([0.25])
    assert ops.soft_nms(segments[:1], at, method, min_score=0.25)[0].tolist() == [0]
    assert ops.soft_nms(segments[:1], at, method, min_score=0.26)[0].tolist() == []


def test_batched_min_score_and_logits():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    logits, labels = torch.tensor([-2.0, 1.0]), torch.tensor([0, 0])
    assert ops.batched_nms(segments, logits, labels).indices.tolist() == [1]
    kept = ops.batched_nms(segments, logits, labels, min_score=-math.inf)
    assert kept.indices.tolist() == [1, 0]


def test_batched_hard_is_nms_and_soft_is_soft_nms():
    segments, scores = make(80, ties=True)
    one = torch.zeros(80, dtype=torch.int64)
    hard = ops.batched_nms(segments, scores, one, iou_threshold=0.4)
    assert torch.equal(hard.indices, ops.nms(segments, scores, 0.4))
    assert torch.equal(hard.scores, scores[hard.indices])
    for method in METHODS:
        options = {"method": method, "min_score": 0.01, "max_segments": 20, "iou_threshold": 0.2}
        batched = ops.batched_nms(segments, scores, groups(80, 9), per_class=False, **options)
        indices, kept_scores = ops.soft_nms(segments, scores, **options)
        assert torch.equal(batched.indices, indices)
        assert torch.equal(batched.scores, kept_scores)


def test_batched_order_and_cap():
    segments = torch.arange(12.0).reshape(6, 2)
    scores = torch.tensor([0.1, 0.6, 0.3, 0.4, 0.5, 0.2])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    videos = torch.tensor([5, -1, 5, 5, -1, 5])
    result = ops.batched_nms(segments, scores, labels, videos, max_segments=3)
    assert result.indices.tolist() == [1, 4, 3, 2, 5]
    assert ops.batched_nms(segments, scores, labels, max_segments=2).indices.tolist() == [1, 4]


def test_sparse_labels():
    # Numbers too far apart to be counted, extremes of int64 among them.
    segments, scores = make(40, ties=True)
    dense = groups(40, 3)
    sparse = torch.tensor([-(2**63), 17, 2**63 - 1])[dense]
    a, b = (ops.batched_nms(segments, scores, x, x) for x in (dense, sparse))
    assert torch.equal(a.indices, b.indices)


# ---- properties ----------------------------------------------------------------------------------

coordinates = st.integers(0, 24)
detections = st.lists(
    st.tuples(coordinates, st.integers(0, 10), st.integers(0, 4)), min_size=0, max_size=24
)


def tensors(items) -> tuple[Tensor, Tensor]:
    segments = torch.tensor([[s, s + n] for s, n, _ in items], dtype=torch.float32).reshape(-1, 2)
    return segments, torch.tensor([x / 4 for _, _, x in items], dtype=torch.float32)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(detections, st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_properties_of_nms(items, threshold):
    segments, scores = tensors(items)
    kept = ops.nms(segments, scores, threshold)
    assert torch.equal(kept, twin.nms(segments, scores, threshold))
    iou = ops.segment_iou(segments[kept], segments[kept])
    iou.fill_diagonal_(0)
    assert not (iou > threshold).any()
    order = [(-scores[i].item(), i) for i in kept.tolist()]
    assert order == sorted(order)
    # Every dropped segment has a kept one before it that suppresses it.
    for i in sorted(set(range(len(items))) - set(kept.tolist())):
        rivals = [j for j in kept.tolist() if (-scores[j].item(), j) < (-scores[i].item(), i)]
        assert (ops.segment_iou(segments[i : i + 1], segments[rivals]) > threshold).any()
    again = ops.nms(segments[kept], scores[kept], threshold)
    assert again.tolist() == list(range(len(kept)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(detections, st.randoms(use_true_random=False), st.sampled_from(METHODS))
def test_permutation_without_ties(items, random, method):
    segments, _ = tensors(items)
    scores = torch.linspace(0.1, 1.0, len(items))
    order = list(range(len(items)))
    random.shuffle(order)
    a, a_scores = ops.soft_nms(segments, scores, method, min_score=0.0, iou_threshold=0.3)
    b, b_scores = ops.soft_nms(
        segments[order], scores[order], method, min_score=0.0, iou_threshold=0.3
    )
    assert torch.equal(a_scores, b_scores)
    # Decays can make ties, and those go by index: compare what has a score of its own.
    unique = [i for i, x in enumerate(a_scores.tolist()) if a_scores.tolist().count(x) == 1]
    assert a[unique].tolist() == torch.tensor(order, dtype=torch.int64)[b][unique].tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(detections, st.sampled_from(METHODS), st.integers(1, 9))
def test_properties_of_soft_nms(items, method, limit):
    segments, scores = tensors(items)
    indices, kept_scores = ops.soft_nms(segments, scores, method, max_segments=None)
    assert (kept_scores.diff() <= 0).all()
    assert (kept_scores >= 0.001).all()
    assert (kept_scores <= scores[indices]).all()
    assert len(set(indices.tolist())) == len(indices)
    first, first_scores = ops.soft_nms(segments, scores, method, max_segments=limit)
    assert torch.equal(first, indices[:limit])
    assert torch.equal(first_scores, kept_scores[:limit])


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_for_any_number_of_threads(method, thread_counts):
    n = 20000
    segments, scores = make(n)
    labels, videos = groups(n, 20), groups(n, 13, seed=2)
    results = []
    for count in (1, *thread_counts):
        torch.set_num_threads(count)
        results.append(
            ops.batched_nms(
                segments, scores, labels, videos, method=method, min_score=0.01, max_segments=200
            )
        )
    for other in results[1:]:
        assert torch.equal(results[0].indices, other.indices)
        assert torch.equal(results[0].scores, other.scores)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    labels = groups(30, 3)
    native = torch.ops.tal_fast
    torch.library.opcheck(native.nms.default, (segments, scores, 0.5))
    torch.library.opcheck(native.soft_nms.default, (segments, scores, 2, 0.5, 0.1, 0.001, 10))
    for owners in (None, labels):
        torch.library.opcheck(
            native.batched_nms.default,
            (segments, scores, labels, owners, 1, 0.5, 0.5, 0.01, None, True),
        )


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    assert not ops.nms(segments, scores, 0.5).requires_grad
    assert not ops.soft_nms(segments, scores)[1].requires_grad
    result = ops.batched_nms(segments, scores, groups(20, 2))
    assert not result.scores.requires_grad
    # Selection is differentiable, as for any index.
    result.segments.sum().backward()
    assert segments.grad.sum().item() == 2 * len(result.indices)


@pytest.mark.parametrize("dynamic", [None, True])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def select(segments, scores, labels):
        kept = ops.nms(segments, scores, 0.5)
        indices, soft = ops.soft_nms(segments, scores)
        result = ops.batched_nms(segments, scores, labels, method="linear")
        return scores[kept] * 2, indices, soft + 1, result.segments, result.scores

    compiled = []
    for n in (30, 31, 47, 52):
        segments, scores = make(n)
        labels = groups(n, 3)
        eager = ops.batched_nms(segments, scores, labels, method="linear")
        doubled, indices, soft, kept_segments, _ = select(segments, scores, labels)
        assert torch.equal(doubled, scores[ops.nms(segments, scores, 0.5)] * 2)
        assert torch.equal(indices, ops.soft_nms(segments, scores)[0])
        assert torch.equal(soft, ops.soft_nms(segments, scores)[1] + 1)
        assert torch.equal(kept_segments, eager.segments)
        compiled.append(counter.frame_count)
    # How often the backend is called at first is torch's affair (a float argument can make it start
    # over); what counts is that later sizes compile nothing. None: once more, to become dynamic.
    assert len(set(compiled[0 if dynamic else 1 :])) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    wide = ops.soft_nms(segments.float(), scores.float())
    with torch.autocast("cpu", torch.bfloat16):
        kept, kept_scores = ops.soft_nms(segments, scores)
        assert torch.equal(ops.nms(segments, scores, 0.5), ops.nms(segments, scores, 0.5))
        batched = ops.batched_nms(segments, scores, groups(40, 3))
    assert kept_scores.dtype == torch.float32
    assert batched.scores.dtype == torch.float32
    assert torch.equal(kept, wide[0])
    assert torch.equal(kept_scores, wide[1])


# ---- errors --------------------------------------------------------------------------------------


def call(op: str, segments: Tensor, scores: Tensor, **options):
    if op == "nms":
        return ops.nms(segments, scores, options.pop("iou_threshold", 0.5), **options)
    if op == "soft_nms":
        return ops.soft_nms(segments, scores, **options)
    labels = options.pop("labels", torch.zeros(len(scores), dtype=torch.int64))
    return ops.batched_nms(segments, scores, labels, **options)


@pytest.mark.parametrize("op", ["nms", "soft_nms", "batched_nms"])
def test_errors_of_all(op):
    segments, scores = make(4)
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected segments of shape \[N, 2\], got \[4\]"
    ):
        call(op, segments[:, 0], scores)
    with pytest.raises(RuntimeError, match=rf"{op}: expected scores of shape \[4\].*got \[3\]"):
        call(op, segments, scores[:3])
    with pytest.raises(RuntimeError, match=rf"{op}: expected segments of dtype float64.*got int64"):
        call(op, segments.long(), scores)
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected scores of dtype float32 like segments, got float64"
    ):
        call(op, segments, scores.double())
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected scores on cpu like segments, got meta"
    ):
        call(op, segments, scores.to("meta"))
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(RuntimeError, match=rf"{op}: expected iou_threshold in \[0, 1\], got"):
            call(op, segments, scores, iou_threshold=threshold)
    for bad in (math.nan, math.inf):
        broken = segments.clone()
        broken[2, 1] = bad
        with pytest.raises(RuntimeError, match=rf"{op}: expected finite segments.*in row 2"):
            call(op, broken, scores)
    with pytest.raises(RuntimeError, match=rf"{op}: expected segments with start <= end.*in row 0"):
        call(op, segments.flip(1), scores)
    broken = scores.clone()
    broken[3] = math.nan
    with pytest.raises(RuntimeError, match=rf"{op}: expected scores that are not NaN.*in row 3"):
        call(op, segments, broken)


@pytest.mark.parametrize("op", ["soft_nms", "batched_nms"])
def test_errors_of_options(op):
    segments, scores = make(4)
    with pytest.raises(
        ValueError, match=rf"{op}: expected method to be one of hard, linear, gaussian, got 'soft'"
    ):
        call(op, segments, scores, method="soft")
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RuntimeError, match=rf"{op}: expected sigma > 0, got"):
            call(op, segments, scores, sigma=sigma)
    with pytest.raises(RuntimeError, match=rf"{op}: expected min_score >= 0 with a soft method"):
        call(op, segments, scores, method="linear", min_score=-1.0)
    with pytest.raises(RuntimeError, match=rf"{op}: expected min_score that is not NaN"):
        call(op, segments, scores, method="hard", min_score=math.nan)
    with pytest.raises(RuntimeError, match=rf"{op}: expected max_segments >= 1 or None, got 0"):
        call(op, segments, scores, max_segments=0)


def test_errors_of_groups():
    segments, scores = make(4)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"expected labels of shape \[4\].*got \[4, 1\]"):
        ops.batched_nms(segments, scores, labels[:, None])
    with pytest.raises(RuntimeError, match=r"expected labels of dtype int64 or int32, got float32"):
        ops.batched_nms(segments, scores, labels.float())
    with pytest.raises(RuntimeError, match=r"expected videos of shape \[4\].*got \[5\]"):
        ops.batched_nms(segments, scores, labels, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"expected videos of dtype int64 or int32"):
        ops.batched_nms(segments, scores, labels, scores)
    with pytest.raises(RuntimeError, match=r"expected videos on cpu like segments, got meta"):
        ops.batched_nms(segments, scores, labels, labels.to("meta"))
    with pytest.raises(RuntimeError, match=r"batched_nms: expected method 0, 1 or 2, got 3"):
        torch.ops.tal_fast.batched_nms(segments, scores, labels, None, 3, 0.5, 0.5, 0.0, None, True)


def test_native_call_of_nothing():
    empty = torch.empty(0, 2), torch.empty(0)
    assert ops.nms(*empty, 0.5).shape == (0,)
    assert ops.soft_nms(*empty)[1].dtype == torch.float32
    result = ops.batched_nms(*empty, torch.empty(0, dtype=torch.int64))
    assert result.segments.shape == (0, 2)
