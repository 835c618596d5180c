# SPDX-License-Identifier: Apache-2.0
"""nms: against the twin and a plain loop, on constructed edges, by its properties."""

import doctest
import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nms_cases import COMPARISONS, DTYPES, call, detections, hostile, make, spread, tensors, twin
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops

# ---- against the twin and a plain loop -----------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 33, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_matches_twin(threshold, dtype, n, ties):
    segments, scores = make(n, dtype, ties=ties)
    kept = ops.nms(segments, scores, threshold)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, twin("nms", segments, scores, threshold))


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 1.0])
def test_options_match_twin(threshold, eps, comparison):
    for ties, dtype in ((True, torch.float32), (False, torch.float64), (True, torch.float16)):
        segments, scores = make(60, dtype, ties=ties)
        options = {"iou_comparison": comparison, "length_eps": eps, "max_segments": 20}
        expected = twin("nms", segments, scores, threshold, **options)
        assert torch.equal(ops.nms(segments, scores, threshold, **options), expected)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_invalid_segments_match_twin(comparison):
    for seed, threshold in enumerate((0.0, 0.1, 0.5, 1.0)):
        segments, scores = hostile(70, seed)
        options = {"iou_comparison": comparison, "length_eps": 1e-6}
        kept = ops.nms(segments, scores, threshold, validate=False, **options)
        assert torch.equal(kept, twin("nms", segments, scores, threshold, **options))


def plain_loop(segments: Tensor, scores: Tensor, threshold: float, comparison: str, eps: float):
    """The definition, one kept segment at a time; operands ordered as by std::min and std::max."""
    start, end = segments[:, 0], segments[:, 1]
    length = (end - start) + torch.tensor(eps, dtype=segments.dtype)
    alive = torch.ones(len(scores), dtype=torch.bool)
    kept = []
    for i in torch.sort(scores, descending=True, stable=True).indices.tolist():
        if not alive[i]:
            continue
        kept.append(i)
        left = torch.where(start[i] < start, start, start[i])
        right = torch.where(end < end[i], end, end[i])
        inter = torch.where(right - left > 0, right - left, 0)
        iou = inter / (length[i] + length - inter)
        alive &= ~(iou >= threshold if comparison == "ge" else iou > threshold)
    return kept


LARGE = {
    "uniform": lambda dtype: spread(3000, clustered=False, seed=5),
    "clustered": lambda dtype: spread(9000, clustered=True, seed=6),
    "sparse": lambda dtype: spread(2000, clustered=False, seed=7, span=1e5),
    "far": lambda dtype: (spread(1500, clustered=True)[0] + 1e6, spread(1500, clustered=True)[1]),
    "wrong": lambda dtype: hostile(2500),
    "ties": lambda dtype: make(2000, ties=True),
    "many scales": lambda dtype: (
        torch.stack((torch.zeros(3000), torch.logspace(-38, 38, 3000)), dim=1),
        spread(3000, clustered=False)[1],
    ),
    "one place": lambda dtype: (torch.tensor([[5.0, 7.0]]).repeat(1000, 1), make(1000)[1]),
    "nothing acts": lambda dtype: (torch.full((700, 2), math.nan), make(700)[1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LARGE)
def test_large_inputs_match_a_plain_loop(name, dtype, device):
    # Enough segments for the index to be used; the twin would take minutes.
    segments, scores = (x.to(dtype) for x in LARGE[name](dtype))
    if device == "cuda-emulated":  # more than a tile
        segments, scores = segments[-1100:], scores[-1100:]
    cases = [(0.5, "ge", 1e-6), (0.0, "gt", 0.0), (0.1, "ge", 0.0), (0.9, "gt", 0.0)]
    for threshold, comparison, eps in [*cases, (0.01, "gt", 0.0), (1.0, "ge", 0.0)]:
        value = torch.tensor(threshold, dtype=dtype).item()
        if name == "clustered" and threshold > 0.5:
            continue  # keeps nearly all: slow for the loop
        expected = plain_loop(segments, scores, value, comparison, eps)
        options = {"iou_comparison": comparison, "length_eps": eps, "validate": False}
        assert ops.nms(segments, scores, threshold, **options).tolist() == expected
        first = ops.nms(segments, scores, threshold, max_segments=17, **options)
        assert first.tolist() == expected[:17]


def test_everything_acts_on_everything():
    # "ge" with the threshold 0: any IoU that is a number suppresses.
    segments, scores = spread(1200, clustered=False)
    segments[7] = math.nan
    kept = ops.nms(segments, scores, 0.0, iou_comparison="ge", validate=False)
    assert sorted(kept.tolist()) == sorted([7, int(scores.argmax())])


def test_a_threshold_that_float32_rounds_to_zero():
    # It is compared in the type that is computed in, where it is the case above.
    segments, scores = spread(1200, clustered=False)
    kept = ops.nms(segments, scores, 1e-60, iou_comparison="ge")
    assert kept.tolist() == [int(scores.argmax())]
    assert len(ops.nms(segments.double(), scores.double(), 1e-60, iou_comparison="ge")) > 1


def test_a_hundred_thousand(device):
    count, span = (6000, 100.0) if device == "cuda-emulated" else (100_000, 3000.0)
    segments, scores = spread(count, clustered=True, seed=3, span=span)
    kept = ops.nms(segments, scores, 0.5)
    assert (scores[kept].diff() < 0).all()
    ordered = segments[kept]
    again = ops.nms(ordered, scores[kept], 0.5)
    assert torch.equal(again, torch.arange(len(kept)))
    # Every dropped segment has a better kept one that suppresses it.
    dropped = torch.ones(len(scores), dtype=torch.bool)
    dropped[kept] = False
    rows = torch.nonzero(dropped).flatten()[:2000]
    iou = ops.segment_iou(segments[rows], ordered)
    assert ((iou > 0.5) & (scores[kept] > scores[rows, None])).any(dim=1).all()


# ---- constructed edges ---------------------------------------------------------------------------


def test_strided_inputs():
    segments, scores = make(50)
    wide = torch.zeros(50, 5)
    wide[:, 1:3], wide[:, 4] = segments, scores
    assert torch.equal(ops.nms(wide[:, 1:3], wide[:, 4], 0.4), ops.nms(segments, scores, 0.4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("end", "threshold"), [(5.0, 0.5), (7.0, 0.7), (3.0, 0.3), (1.0, 0.1)])
def test_iou_exactly_on_the_threshold(dtype, end, threshold):
    segments = torch.tensor([[0.0, 10.0], [0.0, end]], dtype=dtype)
    scores = torch.tensor([1.0, 0.5], dtype=dtype)
    assert ops.nms(segments, scores, threshold).tolist() == [0, 1]
    assert ops.nms(segments, scores, threshold, iou_comparison="ge").tolist() == [0]
    for comparison in COMPARISONS:
        options = {"iou_comparison": comparison}
        assert ops.nms(segments, scores, threshold - 1e-3, **options).tolist() == [0]
        assert ops.nms(segments, scores, threshold + 1e-3, **options).tolist() == [0, 1]


def test_length_eps():
    # IoU = 4 / (4 + eps + 8 + eps - 4), 1/2 without it.
    segments, scores = torch.tensor([[0.0, 8.0], [0.0, 4.0]]), torch.tensor([0.9, 0.8])
    for eps, kept in ((0.0, [0]), (1e-6, [0, 1]), (4.0, [0, 1])):
        found = ops.nms(segments, scores, 0.5, iou_comparison="ge", length_eps=eps)
        assert found.tolist() == kept
    assert ops.nms(segments, scores, 0.25, iou_comparison="ge", length_eps=4.0).tolist() == [0]


def test_ties_go_to_the_lower_index():
    segments = torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 6.0], [5.0, 6.0]])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert ops.nms(segments, scores, 0.5).tolist() == [0, 2]
    assert ops.nms(segments[:2], torch.tensor([-0.0, 0.0]), 0.5).tolist() == [0]
    # Also where the ranks are sorted in other ways.
    for n in (20, 120, 400, 2000):
        apart = torch.arange(2.0 * n).reshape(n, 2)
        scores = (torch.arange(n) % 3).float()
        expected = torch.sort(scores, descending=True, stable=True).indices
        assert torch.equal(ops.nms(apart, scores, 0.5), expected)


def test_zero_length_touching_nested_and_equal_segments():
    segments = torch.tensor([[3.0, 3.0], [3.0, 3.0], [0.0, 6.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert ops.nms(segments, scores, 0.0).tolist() == [0, 1, 2]  # 0 / 0 is NaN, 0 / 6 is 0
    touching = torch.tensor([[0.0, 2.0], [2.0, 4.0], [2.5, 3.5], [2.0, 4.0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert ops.nms(touching, scores, 0.0).tolist() == [0, 1]
    assert ops.nms(touching, scores, 0.5).tolist() == [0, 1, 2]
    assert ops.nms(touching, scores, 1.0).tolist() == [0, 1, 2, 3]
    assert ops.nms(touching, scores, 1.0, iou_comparison="ge").tolist() == [0, 1, 2]


def test_suppressed_segments_do_not_suppress():
    segments = torch.tensor([[0.0, 10.0], [4.0, 14.0], [8.0, 18.0]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert ops.nms(segments, scores, 0.4).tolist() == [0, 2]


def test_segments_far_from_zero():
    # Neighbouring float32 numbers are 64 apart here: what the bounds of the search must survive.
    segments = torch.tensor([[1e9, 1e9 + 128], [1e9 + 64, 1e9 + 128], [-1e30, 1e30], [-3e38, 3e38]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for threshold in (0.0, 0.4, 0.6):
        expected = twin("nms", segments, scores, threshold)
        assert torch.equal(ops.nms(segments, scores, threshold), expected)
        many, better = segments.repeat(200, 1), torch.linspace(1, 0, 800)
        value = torch.tensor(threshold).item()
        assert ops.nms(many, better, threshold).tolist() == plain_loop(many, better, value, "gt", 0)


def test_infinite_scores_are_ranked():
    segments = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    scores = torch.tensor([-math.inf, 0.0, math.inf])
    assert ops.nms(segments, scores, 0.5).tolist() == [2, 1, 0]


# ---- properties ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80, derandomize=True)
@given(detections, st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.sampled_from(COMPARISONS))
def test_properties(items, threshold, comparison):
    segments, scores = tensors(items)
    kept = ops.nms(segments, scores, threshold, iou_comparison=comparison)
    expected = twin("nms", segments, scores, threshold, iou_comparison=comparison)
    assert torch.equal(kept, expected)

    def acts(iou):
        return iou >= threshold if comparison == "ge" else iou > threshold

    iou = ops.segment_iou(segments[kept], segments[kept])
    assert not acts(iou)[~torch.eye(len(kept), dtype=torch.bool)].any()
    order = [(-scores[i].item(), i) for i in kept.tolist()]
    assert order == sorted(order)
    # Every dropped segment has a kept one before it that suppresses it.
    for i in sorted(set(range(len(items))) - set(kept.tolist())):
        rivals = [j for j in kept.tolist() if (-scores[j].item(), j) < (-scores[i].item(), i)]
        assert acts(ops.segment_iou(segments[i : i + 1], segments[rivals])).any()
    again = ops.nms(segments[kept], scores[kept], threshold, iou_comparison=comparison)
    assert again.tolist() == list(range(len(kept)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(detections, st.randoms(use_true_random=False), st.sampled_from([0.0, 0.25, 0.5]))
def test_permutation_follows_the_tie_rule(items, random, threshold):
    segments, scores = tensors(items)
    order = sorted(range(len(items)), key=lambda i: (-scores[i].item(), i))
    expected = ops.nms(segments, scores, threshold).tolist()
    # Any permutation that leaves the order of ties alone selects the same segments.
    shuffled = list(range(len(items)))
    random.shuffle(shuffled)
    for value in set(scores.tolist()):
        places = [k for k, i in enumerate(shuffled) if scores[i] == value]
        for place, i in zip(places, [i for i in order if scores[i] == value], strict=True):
            shuffled[place] = i
    kept = ops.nms(segments[shuffled], scores[shuffled], threshold)
    assert [shuffled[k] for k in kept.tolist()] == expected


@settings(deadline=None, max_examples=40, derandomize=True)
@given(detections, st.integers(-64, 64), st.sampled_from([-20, -3, 0, 5, 30]))
def test_time_shift_and_scale(items, shift, exponent):
    segments, scores = tensors(items)
    expected = ops.nms(segments, scores, 0.3)
    assert torch.equal(ops.nms(segments + shift, scores, 0.3), expected)
    assert torch.equal(ops.nms(segments * 2.0**exponent, scores, 0.3), expected)


@pytest.mark.parametrize("n", [200, 3000])
def test_time_shift_and_scale_of_many(n):
    segments, scores = spread(n, clustered=True)
    segments = (segments * 64).round() / 64
    expected = ops.nms(segments, scores, 0.4)
    assert torch.equal(ops.nms(segments + 1024, scores, 0.4), expected)
    assert torch.equal(ops.nms(segments * 2.0**-40, scores, 0.4), expected)


# ---- torch ---------------------------------------------------------------------------------------


def test_same_bits_for_any_number_of_threads(thread_counts):
    segments, scores = spread(80_000, clustered=True, span=2000.0)
    expected = None
    for count in (1, *thread_counts, 1):
        torch.set_num_threads(count)
        kept = ops.nms(segments, scores, 0.5)
        expected = kept if expected is None else expected
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad):
    segments, scores = (x.requires_grad_(requires_grad) for x in make(30))
    native = torch.ops.tal_fast.nms.default
    torch.library.opcheck(native, (segments, scores, 0.5))
    torch.library.opcheck(native, (segments, scores, 0.5, True, 1e-6, 5, False))


def test_no_gradient_is_claimed():
    segments, scores = (x.requires_grad_() for x in make(20))
    kept = ops.nms(segments, scores, 0.5)
    assert not kept.requires_grad
    # Selection is differentiable, as for any index.
    segments[kept].sum().backward()
    assert segments.grad.sum().item() == 2 * len(kept)


@pytest.mark.parametrize("dynamic", [None, True])
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def select(segments, scores):
        return scores[ops.nms(segments, scores, 0.5, iou_comparison="ge", max_segments=20)] * 2

    compiled = []
    for n in (30, 31, 47, 52):
        segments, scores = make(n)
        expected = scores[ops.nms(segments, scores, 0.5, iou_comparison="ge", max_segments=20)] * 2
        assert torch.equal(select(segments, scores), expected)
        compiled.append(counter.frame_count)
    # How often the backend is called at first is torch's affair; what counts is that later sizes
    # compile nothing. None: once more, to become dynamic.
    assert len(set(compiled[0 if dynamic else 1 :])) == 1
    torch._dynamo.reset()


def test_autocast_computes_in_float32():
    segments, scores = make(40, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        kept = ops.nms(segments, scores, 0.5)
    assert torch.equal(kept, ops.nms(segments.float(), scores.float(), 0.5))


@pytest.mark.parametrize("module", ["nms", "segment_voting"])
def test_examples(module):
    # importlib: the package's attribute of this name is the function.
    found = doctest.testmod(
        importlib.import_module(f"tal_fast.ops.{module}"), extraglobs={"torch": torch}
    )
    assert found.attempted > 0
    assert found.failed == 0


# ---- errors of all three functions ---------------------------------------------------------------


@pytest.mark.parametrize("op", ["nms", "soft_nms", "batched_nms"])
def test_errors_of_all(op):
    segments, scores = make(4)
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected segments of shape \[N, 2\], got \[4\]"
    ):
        call(ops, op, segments[:, 0], scores)
    with pytest.raises(RuntimeError, match=rf"{op}: expected scores of shape \[4\].*got \[3\]"):
        call(ops, op, segments, scores[:3])
    with pytest.raises(RuntimeError, match=rf"{op}: expected segments of dtype float64.*got int64"):
        call(ops, op, segments.long(), scores)
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected scores of dtype float32 like segments, got float64"
    ):
        call(ops, op, segments, scores.double())
    with pytest.raises(
        RuntimeError, match=rf"{op}: expected scores on cpu like segments, got meta"
    ):
        call(ops, op, segments, scores.to("meta"))
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(RuntimeError, match=rf"{op}: expected iou_threshold in \[0, 1\], got"):
            call(ops, op, segments, scores, iou_threshold=threshold)
    for eps in (-1e-6, math.nan, math.inf):
        with pytest.raises(RuntimeError, match=rf"{op}: expected length_eps >= 0, got"):
            call(ops, op, segments, scores, length_eps=eps)
    with pytest.raises(RuntimeError, match=rf"{op}: expected max_segments >= 1 or None, got 0"):
        call(ops, op, segments, scores, max_segments=0)
    with pytest.raises(
        ValueError, match=rf"{op}: expected iou_comparison to be one of gt, ge, got '>='"
    ):
        call(ops, op, segments, scores, iou_comparison=">=")


@pytest.mark.parametrize("op", ["nms", "soft_nms", "batched_nms"])
def test_errors_of_values(op):
    segments, scores = make(4)
    for bad in (math.nan, math.inf):
        broken = segments.clone()
        broken[2, 1] = bad
        with pytest.raises(RuntimeError, match=rf"{op}: expected finite segments.*in row 2"):
            call(ops, op, broken, scores)
        call(ops, op, broken, scores, validate=False)
    with pytest.raises(RuntimeError, match=rf"{op}: expected segments with start <= end.*in row 0"):
        call(ops, op, segments.flip(1), scores)
    call(ops, op, segments.flip(1), scores, validate=False)
    broken = scores.clone()
    broken[3] = math.nan
    for validate in (True, False):
        with pytest.raises(
            RuntimeError, match=rf"{op}: expected scores that are not NaN.*in row 3"
        ):
            call(ops, op, segments, broken, validate=validate)
