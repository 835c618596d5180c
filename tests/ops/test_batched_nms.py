# SPDX-License-Identifier: Apache-2.0
"""batched_nms: against the twin, against one call per problem, with voting, on edges."""

import functools
import math

import pytest
import torch
from nms_cases import COMPARISONS, DTYPES, groups, make, spread, twin
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.ops.nms import METHODS, WEIGHTS
from tal_fast.reference.segment_voting import segment_voting as twin_voting

SCORE_TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- against the twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("n", [0, 1, 120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_matches_twin(method, dtype, n, per_class):
    segments, scores = make(n, dtype, ties=True)
    labels, videos = groups(n, 3), groups(n, 4, seed=2)
    for owners in (None, videos, videos.int() - 2):
        options = {"method": method, "min_score": 0.05, "max_segments": 11, "per_class": per_class}
        result = ops.batched_nms(segments, scores, labels.int(), owners, **options)
        expected = twin("batched_nms", segments, scores, labels, owners, **options)
        assert torch.equal(result.indices, expected[0])
        tolerance = SCORE_TOLERANCE[dtype]
        torch.testing.assert_close(result.scores, expected[1], rtol=tolerance, atol=0)
        assert torch.equal(result.segments, segments[result.indices])


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("spare_first", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_options_match_twin(method, spare_first, comparison):
    segments, scores = make(100, ties=True)
    labels, videos = groups(100, 3), groups(100, 3, seed=2)
    scores[labels == 1] *= 0.01  # a class with nothing above min_score
    shared = {"method": method, "spare_first": spare_first, "iou_comparison": comparison}
    shared |= {"length_eps": 1e-6, "t1": 0.1, "t2": 0.01, "sigma": 0.3, "iou_threshold": 0.25}
    for limits in ((None, None), (9, None), (None, 4), (9, 4), (4, 9)):
        options = shared | {"max_segments": limits[0], "max_per_class": limits[1]}
        for min_score in (0.05, 0.25):
            result = ops.batched_nms(
                segments, scores, labels, videos, min_score=min_score, **options
            )
            expected = twin(
                "batched_nms", segments, scores, labels, videos, min_score=min_score, **options
            )
            assert torch.equal(result.indices, expected[0])
            torch.testing.assert_close(result.scores, expected[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("method", ["hard", "gaussian"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_voting_matches_twin(dtype, method, weight, per_class):
    segments, scores = make(80, dtype, ties=dtype != torch.float64)
    labels, videos = groups(80, 3), groups(80, 2, seed=2)
    options = {"method": method, "min_score": 0.3, "max_segments": 9, "per_class": per_class}
    for threshold in (0.3, 0.7, 1.0):
        result = ops.batched_nms(
            *(segments, scores, labels, videos),
            voting_threshold=threshold,
            voting_weight=weight,
            **options,
        )
        vote = functools.partial(twin_voting, iou_threshold=threshold, weight=weight)
        expected = twin("batched_nms", segments, scores, labels, videos, vote=vote, **options)
        assert torch.equal(result.indices, expected[0])
        assert result.segments.dtype == dtype
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 8e-3)
        torch.testing.assert_close(result.segments, expected[2], rtol=tolerance, atol=tolerance)


# ---- against one call per problem ----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "kinds", "owners"), [(4000, 7, 3), (3000, 200, 1), (900, 3, 200)])
def test_large_inputs_match_a_loop(n, kinds, owners, method, device):
    # The limits make the early stops matter: within a problem, and across those of a video.
    limits = [(20, None), (150, None), (150, 30), (1, 1), (10**6, None)]
    if device == "cuda-emulated":
        n, owners, limits = n // 3, min(owners, 20), limits[:1] + limits[2:3]
    segments, scores = spread(n, clustered=True, seed=n)
    labels, videos = groups(n, kinds), groups(n, owners, seed=2)
    shared = {"iou_threshold": 0.3, "t1": 0.1, "min_score": 0.02}
    for limit, per_class in limits:
        expected_rows, expected_scores = [], []
        for video in range(owners):
            found: list[tuple[float, int]] = []
            for label in range(kinds):
                rows = torch.nonzero((videos == video) & (labels == label)).flatten()
                indices, values = ops.soft_nms(
                    segments[rows], scores[rows], method, max_segments=per_class, **shared
                )
                found += zip((-values).tolist(), rows[indices].tolist(), strict=True)
            found = sorted(found)[:limit]
            expected_rows += [row for _, row in found]
            expected_scores += [-score for score, _ in found]
        result = ops.batched_nms(
            *(segments, scores, labels, videos),
            method=method,
            max_segments=limit,
            max_per_class=per_class,
            **shared,
        )
        assert result.indices.tolist() == expected_rows
        assert result.scores.tolist() == expected_scores


def test_hard_is_nms_and_soft_is_soft_nms():
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


@pytest.mark.parametrize("weight", WEIGHTS)
def test_voting_is_segment_voting(weight):
    segments, scores = spread(3000, clustered=True)
    labels = groups(3000, 4)
    options = {"method": "gaussian", "max_segments": 100, "min_score": 0.2}
    plain = ops.batched_nms(segments, scores, labels, per_class=False, **options)
    voted = ops.batched_nms(
        *(segments, scores, labels),
        per_class=False,
        voting_threshold=0.6,
        voting_weight=weight,
        **options,
    )
    assert torch.equal(voted.indices, plain.indices)
    assert torch.equal(voted.scores, plain.scores)
    expected = ops.segment_voting(plain.segments, segments, scores, 0.6, weight)
    assert torch.equal(voted.segments, expected)
    by_class = ops.batched_nms(
        segments, scores, labels, voting_threshold=0.6, voting_weight=weight, **options
    )
    for label in range(4):
        own = labels[by_class.indices] == label
        expected = ops.segment_voting(
            *(segments[by_class.indices[own]], segments[labels == label]),
            *(scores[labels == label], 0.6, weight),
        )
        assert torch.equal(by_class.segments[own], expected)


# ---- constructed edges ---------------------------------------------------------------------------


def test_strided_inputs():
    segments, scores = make(50)
    labels = groups(50, 3)
    columns = segments.t().contiguous().t()
    spread_labels = torch.stack((labels, labels), dim=1)[:, 0]
    a, b = (ops.batched_nms(columns, scores, x, x) for x in (spread_labels, labels))
    assert same(a, b)


def test_min_score_and_logits():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    logits, labels = torch.tensor([-2.0, 1.0]), torch.tensor([0, 0])
    assert ops.batched_nms(segments, logits, labels).indices.tolist() == [1]
    kept = ops.batched_nms(segments, logits, labels, min_score=-math.inf)
    assert kept.indices.tolist() == [1, 0]


def test_order_and_cap():
    segments = torch.arange(12.0).reshape(6, 2)
    scores = torch.tensor([0.1, 0.6, 0.3, 0.4, 0.5, 0.2])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    videos = torch.tensor([5, -1, 5, 5, -1, 5])
    result = ops.batched_nms(segments, scores, labels, videos, max_segments=3)
    assert result.indices.tolist() == [1, 4, 3, 2, 5]
    assert ops.batched_nms(segments, scores, labels, max_segments=2).indices.tolist() == [1, 4]
    capped = ops.batched_nms(segments, scores, labels, max_per_class=2)
    assert capped.indices.tolist() == [1, 4, 3, 2]


def test_equal_scores_across_classes_at_the_limit():
    # The last place goes to the lower index, whichever class is solved first.
    segments = torch.arange(2000.0).reshape(1000, 2)
    scores = torch.full((1000,), 0.5)
    labels = groups(1000, 10).flip(0)
    for limit in (1, 10, 100, 300, 999):
        for method in ("hard", "gaussian"):
            result = ops.batched_nms(segments, scores, labels, method=method, max_segments=limit)
            assert result.indices.tolist() == list(range(limit))


def test_sparse_labels():
    # Numbers too far apart to be counted, extremes of int64 among them.
    segments, scores = make(40, ties=True)
    dense = groups(40, 3)
    sparse = torch.tensor([-(2**63), 17, 2**63 - 1])[dense]
    assert same(*(ops.batched_nms(segments, scores, x, x) for x in (dense, sparse)))
    assert same(*(ops.batched_nms(segments, scores, x) for x in (dense, sparse)))
    assert same(*(ops.batched_nms(segments, scores, dense, x) for x in (dense, sparse)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_labels(dtype):
    segments, scores = make(40, ties=True)
    labels = groups(40, 3)
    narrow, videos = labels.to(dtype), labels.flip(0)
    assert same(*(ops.batched_nms(segments, scores, x, videos) for x in (labels, narrow)))
    assert same(*(ops.batched_nms(segments, scores, labels, v) for v in (videos, videos.to(dtype))))
    for found, wanted in zip(
        *(
            ops.batched_nms_padded(segments, scores, x, max_segments=9, num_videos=1)
            for x in (narrow, labels)
        ),
        strict=True,
    ):
        assert torch.equal(found, wanted)


def test_native_call_of_nothing():
    empty = torch.empty(0, 2), torch.empty(0)
    assert ops.nms(*empty, 0.5).shape == (0,)
    assert ops.soft_nms(*empty)[1].dtype == torch.float32
    labels = torch.empty(0, dtype=torch.int64)
    assert ops.batched_nms(*empty, labels).segments.shape == (0, 2)
    voted = ops.batched_nms(*empty, labels, labels, voting_threshold=0.5, max_segments=3)
    assert voted.segments.shape == (0, 2)


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("voting", [None, 0.7])
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_for_any_number_of_threads(method, voting, thread_counts):
    n = 20000
    segments, scores = spread(n, clustered=True)
    labels, videos = groups(n, 20), groups(n, 13, seed=2)
    options = {"method": method, "min_score": 0.01, "max_segments": 50, "voting_threshold": voting}
    for owners, per_class in ((videos, True), (None, True), (None, False)):
        results = []
        for count in (1, *thread_counts):
            torch.set_num_threads(count)
            results.append(
                ops.batched_nms(segments, scores, labels, owners, per_class=per_class, **options)
            )
        assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    labels = groups(30, 3)
    native = torch.ops.tal_fast.batched_nms.default
    fixed = (0.5, False, 0.0, 0.5, 0.0, 0.0, 0.01)
    for owners, voting in ((None, None), (labels, 0.5)):
        torch.library.opcheck(
            native,
            (segments, scores, labels, owners, 1, *fixed, None, 9, True, voting, 1, True, True),
        )


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    result = ops.batched_nms(segments, scores, groups(20, 2))
    assert not result.scores.requires_grad
    result.segments.sum().backward()
    assert segments.grad.sum().item() == 2 * len(result.indices)
    voted = ops.batched_nms(segments, scores, groups(20, 2), voting_threshold=0.5)
    assert not voted.segments.requires_grad


@pytest.mark.parametrize("dynamic", [None, True])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def select(segments, scores, labels):
        result = ops.batched_nms(segments, scores, labels, method="linear")
        voted = ops.batched_nms(segments, scores, labels, voting_threshold=0.5)
        return result.segments, result.scores, voted.segments

    compiled = []
    for n in (30, 31, 47, 52):
        segments, scores = make(n)
        labels = groups(n, 3)
        eager = ops.batched_nms(segments, scores, labels, method="linear")
        voted = ops.batched_nms(segments, scores, labels, voting_threshold=0.5)
        found = select(segments, scores, labels)
        assert same(found, (eager.segments, eager.scores, voted.segments))
        compiled.append(counter.frame_count)
    assert len(set(compiled[0 if dynamic else 1 :])) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    labels = groups(40, 3)
    with torch.autocast("cpu", torch.bfloat16):
        batched = ops.batched_nms(segments, scores, labels, voting_threshold=0.5)
    assert batched.scores.dtype == torch.float32
    wide = ops.batched_nms(segments.float(), scores.float(), labels, voting_threshold=0.5)
    assert same(batched, wide)


# ---- errors --------------------------------------------------------------------------------------


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


def test_errors_of_options():
    segments, scores = make(4)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"batched_nms: expected max_per_class >= 1 or None"):
        ops.batched_nms(segments, scores, labels, max_per_class=0)
    with pytest.raises(RuntimeError, match=r"expected no max_per_class with per_class=False"):
        ops.batched_nms(segments, scores, labels, max_per_class=3, per_class=False)
    for threshold in (0.0, 1.1, math.nan):
        with pytest.raises(RuntimeError, match=r"expected voting_threshold in \(0, 1\], got"):
            ops.batched_nms(segments, scores, labels, voting_threshold=threshold)
    with pytest.raises(
        ValueError, match=r"expected voting_weight to be one of score, score_iou, got 'iou'"
    ):
        ops.batched_nms(segments, scores, labels, voting_weight="iou")
    scores[2] = math.inf
    with pytest.raises(RuntimeError, match=r"expected finite scores for voting, got inf in row 2"):
        ops.batched_nms(segments, scores, labels, voting_threshold=0.5)
