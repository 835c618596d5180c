# SPDX-License-Identifier: Apache-2.0
"""The NMS family with outputs of fixed size: against the ops with exact sizes, padding, edges."""

import math

import pytest
import torch
from nms_cases import COMPARISONS, DTYPES, groups, hostile, make
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.ops.nms import METHODS

# ---- against exact sizes -------------------------------------------------------------------------


def is_padded(values, exact, padding) -> bool:
    """Whether values[M, ...] are exact[K, ...] and padding behind."""
    k = len(exact)
    return torch.equal(values[:k], exact) and bool((values[k:] == padding).all())


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("n", [0, 1, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nms(dtype, n, comparison):
    segments, scores = make(n, dtype, ties=True)
    for limit in (1, 9, 150):
        options = {"iou_comparison": comparison, "length_eps": 1e-6}
        indices, count = ops.nms_padded(segments, scores, 0.4, limit, **options)
        expected = ops.nms(segments, scores, 0.4, max_segments=limit, **options)
        assert (indices.shape, count.shape) == ((limit,), ())
        assert (indices.dtype, count.dtype) == (torch.int64, torch.int64)
        assert is_padded(indices, expected, -1)
        assert count == len(expected)


@pytest.mark.parametrize("spare_first", [False, True])
@pytest.mark.parametrize("n", [0, 1, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_soft_nms(method, dtype, n, spare_first):
    segments, scores = make(n, dtype, ties=True)
    for limit, min_score in ((7, 0.05), (120, 0.05), (5, 2.0)):
        options = {"max_segments": limit, "min_score": min_score, "t1": 0.1, "t2": 0.01}
        options["spare_first"] = spare_first
        indices, found, count = ops.soft_nms_padded(segments, scores, method, **options)
        expected = ops.soft_nms(segments, scores, method, **options)
        assert found.dtype == dtype
        assert found.shape == indices.shape == (limit,)
        assert is_padded(indices, expected[0], -1)
        assert is_padded(found, expected[1], 0)
        assert count == len(expected[0])


@pytest.mark.parametrize("voting", [None, 0.6])
@pytest.mark.parametrize("n", [0, 1, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_batched_nms(method, dtype, n, voting):
    segments, scores = make(n, dtype, ties=True)
    labels, videos = groups(n, 3), 2 * groups(n, 3, seed=2)  # videos 1, 3 and 5 have nothing
    options = {"method": method, "voting_threshold": voting, "min_score": 0.05}
    for limit, per_class, owners in ((11, None, videos), (200, 4, videos.int()), (5, None, None)):
        options |= {"max_segments": limit, "max_per_class": per_class}
        found = ops.batched_nms_padded(segments, scores, labels, owners, num_videos=6, **options)
        exact = ops.batched_nms(segments, scores, labels, owners, **options)
        assert found.indices.shape == found.scores.shape == (6, limit)
        assert found.segments.shape == (6, limit, 2)
        assert found.scores.dtype == found.segments.dtype == dtype
        of = torch.zeros(n, dtype=torch.int64) if owners is None else videos
        for video in range(6):
            own = of[exact.indices] == video
            assert is_padded(found.indices[video], exact.indices[own], -1)
            assert is_padded(found.scores[video], exact.scores[own], 0)
            assert is_padded(found.segments[video], exact.segments[own], 0)
            assert found.counts[video] == own.sum()


def test_without_validation():
    segments, scores = hostile(70)
    options = {"iou_comparison": "ge", "length_eps": 1e-6, "validate": False}
    indices, count = ops.nms_padded(segments, scores, 0.3, 100, **options)
    assert is_padded(indices, ops.nms(segments, scores, 0.3, **options), -1)
    assert count == (indices >= 0).sum()


def test_options_reach_the_native_op():
    segments, scores = make(100, ties=True)
    labels = groups(100, 4)
    shared = {"iou_threshold": 0.25, "sigma": 0.3, "t1": 0.1, "t2": 0.01, "length_eps": 0.5}
    shared |= {"method": "length_gaussian", "iou_comparison": "ge", "max_segments": 50}
    shared |= {"voting_threshold": 0.4, "voting_weight": "score_iou", "spare_first": True}
    for options in ({"min_score": 0.2}, {"min_score": 0.9, "per_class": False}):
        found = ops.batched_nms_padded(segments, scores, labels, **shared, **options)
        exact = ops.batched_nms(segments, scores, labels, **shared, **options)
        assert is_padded(found.indices[0], exact.indices, -1)
        assert is_padded(found.scores[0], exact.scores, 0)
        assert is_padded(found.segments[0], exact.segments, 0)
        plain = ops.batched_nms_padded(segments, scores, labels, max_segments=50)
        assert not torch.equal(plain.indices, found.indices)


# ---- refused values ------------------------------------------------------------------------------


def refused_calls():
    segments, scores = make(40)
    labels = groups(40, 3)
    backwards, nan, infinite = segments.clone(), scores.clone(), scores.clone()
    backwards[7] = backwards[7].flip(0)
    nan[31] = math.nan
    infinite[5] = math.inf
    videos = torch.zeros(40, dtype=torch.int64)
    outside = videos.clone()
    outside[3] = 2

    def batched(segments, scores, videos=None, **options):
        return ops.batched_nms_padded(
            segments, scores, labels, videos, max_segments=9, num_videos=2, **options
        )

    return [
        (lambda: ops.nms_padded(backwards, scores, 0.5, 9), "with start <= end.*in row 7"),
        (lambda: ops.nms_padded(segments, nan, 0.5, 9, validate=False), "not NaN.*in row 31"),
        (lambda: ops.soft_nms_padded(backwards, scores), "with start <= end.*in row 7"),
        (lambda: ops.soft_nms_padded(segments, nan), "not NaN.*in row 31"),
        (lambda: batched(backwards, scores), "with start <= end.*in row 7"),
        (lambda: batched(segments, nan), "not NaN.*in row 31"),
        (lambda: batched(segments, infinite, voting_threshold=0.5), "finite scores.*in row 5"),
        (
            lambda: batched(segments, scores, outside),
            r"\[0, num_videos\) = \[0, 2\), got 2 in row 3",
        ),
        (lambda: batched(segments, scores, outside - 2), "got -2 in row 0"),
    ]


@pytest.mark.parametrize("number", range(9))
def test_refused_values(number, device):
    call, message = refused_calls()[number]
    if device == "cpu":
        with pytest.raises(RuntimeError, match=rf"padded: expected .*{message}"):
            call()
        return
    # Nobody waits for a GPU: it says so in the counts, and keeps nothing.
    indices, *values, counts = call()
    assert (counts == -1).all()
    assert (indices == -1).all()
    assert all((value == 0).all() for value in values)


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    labels = groups(30, 3)
    native = torch.ops.tal_fast
    torch.library.opcheck(native.nms_padded.default, (segments, scores, 0.5, 20))
    soft = (segments, scores, 2, 0.5, 0.1, 0.001, 10)
    torch.library.opcheck(native.soft_nms_padded.default, soft)
    fixed = (0.5, False, 0.0, 0.5, 0.0, 0.0, 0.01)
    for owners, voting in ((None, None), (labels, 0.5)):
        batched = (segments, scores, labels, owners, 3, 8, 1, *fixed, None, True, voting, 1)
        torch.library.opcheck(native.batched_nms_padded.default, (*batched, True, True))


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    result = ops.batched_nms_padded(segments, scores, groups(20, 2), max_segments=9)
    assert not any(x.requires_grad for x in result)
    assert not ops.soft_nms_padded(segments, scores)[1].requires_grad


def test_compile_fullgraph():
    # Without capture_dynamic_output_shape_ops: no size depends on data.
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def select(segments, scores, labels):
        kept, count = ops.nms_padded(segments, scores, 0.5, 10)
        soft = ops.soft_nms_padded(segments, scores, max_segments=10)
        result = ops.batched_nms_padded(segments, scores, labels, max_segments=7)
        return kept, count, soft[1] + 1, result.segments * 2

    compiled = []
    for n in (30, 31, 47):
        segments, scores = make(n)
        labels = groups(n, 3)
        found = select(segments, scores, labels)
        kept, count = ops.nms_padded(segments, scores, 0.5, 10)
        result = ops.batched_nms_padded(segments, scores, labels, max_segments=7)
        soft = ops.soft_nms_padded(segments, scores, max_segments=10)
        for ours, theirs in zip(
            found, (kept, count, soft[1] + 1, result.segments * 2), strict=True
        ):
            assert torch.equal(ours, theirs)
        compiled.append(counter.frame_count)
    assert len(set(compiled)) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    labels = groups(40, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.batched_nms_padded(segments, scores, labels, max_segments=9)
        kept = ops.nms_padded(segments, scores, 0.5, 9)
        soft = ops.soft_nms_padded(segments, scores)
    segments, scores = segments.float(), scores.float()
    wide = ops.batched_nms_padded(segments, scores, labels, max_segments=9)
    assert found.scores.dtype == soft[1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wide, strict=True))
    assert torch.equal(kept[0], ops.nms_padded(segments, scores, 0.5, 9)[0])
    assert torch.equal(soft[1], ops.soft_nms_padded(segments, scores)[1])


# ---- errors --------------------------------------------------------------------------------------


def test_errors():
    segments, scores = make(4)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        RuntimeError, match=r"nms_padded: expected max_segments >= 1 or None, got 0"
    ):
        ops.nms_padded(segments, scores, 0.5, 0)
    with pytest.raises(RuntimeError, match=r"soft_nms_padded: expected max_segments >= 1"):
        ops.soft_nms_padded(segments, scores, max_segments=-1)
    with pytest.raises(RuntimeError, match=r"batched_nms_padded: expected max_segments >= 1"):
        ops.batched_nms_padded(segments, scores, labels, max_segments=0)
    with pytest.raises(RuntimeError, match=r"batched_nms_padded: expected num_videos >= 1, got 0"):
        ops.batched_nms_padded(segments, scores, labels, max_segments=1, num_videos=0)
    with pytest.raises(RuntimeError, match=r"nms_padded: expected segments of shape \[N, 2\]"):
        ops.nms_padded(segments[0], scores, 0.5, 3)
    with pytest.raises(RuntimeError, match=r"nms_padded: expected scores on cpu like segments"):
        ops.nms_padded(segments, scores.to("meta"), 0.5, 3)
    with pytest.raises(RuntimeError, match=r"soft_nms_padded: expected sigma > 0, got 0"):
        ops.soft_nms_padded(segments, scores, sigma=0.0)
    with pytest.raises(ValueError, match=r"soft_nms_padded: expected method to be one of hard"):
        ops.soft_nms_padded(segments, scores, "soft")
    with pytest.raises(ValueError, match=r"nms_padded: expected iou_comparison to be one of gt"):
        ops.nms_padded(segments, scores, 0.5, 3, iou_comparison=">")
    with pytest.raises(RuntimeError, match=r"batched_nms_padded: expected videos of shape \[4\]"):
        ops.batched_nms_padded(segments, scores, labels, labels[:2], max_segments=1)
    with pytest.raises(RuntimeError, match=r"batched_nms_padded: expected no max_per_class with"):
        ops.batched_nms_padded(
            segments, scores, labels, max_segments=1, max_per_class=1, per_class=False
        )
