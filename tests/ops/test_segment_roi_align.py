# SPDX-License-Identifier: Apache-2.0
"""segment_roi_align against its twin, by hand-computed bins, and under torch's machinery."""

import math
import os
import subprocess
import sys

import emulated as emulator
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import info, ops
from tal_fast.reference import segment_roi_align as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Relative to features of unit variance. float32: sums of at most 2 T products, worst seen 6e-7;
# 16-bit: accumulated in float32 and rounded once, so one unit in the last place.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float16: {"rtol": 1e-3, "atol": 1e-5},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-5},
}


def make_features(
    batch: int,
    channels: int,
    rows: int,
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = "BTC",
    seed: int = 0,
) -> Tensor:
    """Features [B, C, T] with the named order in memory."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, channels, rows, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "BTC":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.stack((values, values), dim=-1)[..., 0]
    return values


def make_rois(count: int, batch: int, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Segments of all kinds: inside, across both ends, outside, shorter than a row, reversed."""
    generator = torch.Generator().manual_seed(count)
    index = torch.randint(0, batch, (count,), generator=generator).double()
    start = torch.rand(count, generator=generator, dtype=torch.float64) * (rows + 6) - 4
    length = torch.rand(count, generator=generator, dtype=torch.float64) ** 2 * rows * 1.3 - 0.5
    return torch.stack((index, start, start + length), dim=1).to(dtype)


def in_order(rois: Tensor) -> Tensor:
    """The same segments, reversed ones turned round: what aligned=True accepts."""
    return torch.cat((rois[:, :1], rois[:, 1:].sort(dim=1).values), dim=1)


# ---- against the twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", ["BTC", "BCT", "sliced"])
@pytest.mark.parametrize("rois_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "channels", "rows", "count", "bins", "ratio"),
    [
        (1, 1, 1, 3, 1, 0),
        (2, 7, 13, 12, 4, 0),
        (33, 3, 5, 40, 2, 0),
        (2, 70, 11, 9, 16, 0),
        (2, 17, 30, 9, 3, 1),
        (1, 65, 30, 9, 3, 5),
        (2, 5, 200, 1, 2, 0),
        (1, 530, 6, 2, 9, 2),
        (1, 2, 9, 2, 1, 70),
        (3, 4, 9, 0, 2, 0),
    ],
)
def test_matches_twin(
    batch, channels, rows, count, bins, ratio, dtype, rois_dtype, layout, aligned
):
    features = make_features(batch, channels, rows, dtype, layout=layout)
    rois = make_rois(count, batch, rows, rois_dtype)
    rois = in_order(rois) if aligned else rois
    out = ops.segment_roi_align(features, rois, bins, ratio, aligned)
    assert out.shape == (count, channels, bins)
    assert out.dtype == dtype
    assert out.is_contiguous()
    expected = twin.segment_roi_align(features, rois, bins, ratio, aligned)
    torch.testing.assert_close(out, expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", ["BTC", "BCT"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize(("channels", "bins"), [(1, 3), (70, 19), (130, 3)])
def test_gradient_matches_twin(channels, bins, batch, dtype, layout, aligned):
    features = make_features(batch, channels, 14, dtype, layout=layout).requires_grad_()
    rois = in_order(make_rois(10, batch, 14)) if aligned else make_rois(10, batch, 14)
    out = ops.segment_roi_align(features, rois, bins, 0, aligned)
    grad = make_features(10, channels, bins, dtype, layout="BCT", seed=1)
    (ours,) = torch.autograd.grad(out, features, grad)
    assert ours.dtype == dtype
    wide = features.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(
        twin.segment_roi_align(wide, rois, bins, 0, aligned), wide, grad.double(), allow_unused=True
    )
    tolerance = dict(TOLERANCE[dtype], atol=max(1e-5, TOLERANCE[dtype]["atol"]))
    torch.testing.assert_close(ours.double(), expected, **tolerance)


def test_tadtr_decoder_shape():
    # B = 16 windows of T = 128 rows, 40 queries each, 16 bins: a few rois against the twin.
    batch, channels, rows = 16, 32, 128
    features = make_features(batch, channels, rows)
    rois = make_rois(640, batch, rows).clamp(min=0, max=rows)
    rois[:, 0] = torch.arange(batch).repeat_interleave(40)
    out = ops.segment_roi_align(features, rois, 16)
    some = torch.arange(0, 640, 71)
    expected = twin.segment_roi_align(features, rois[some], 16)
    torch.testing.assert_close(out[some], expected, **TOLERANCE[torch.float32])


def test_rois_of_other_strides():
    features, rois = make_features(2, 5, 9), make_rois(6, 2, 9)
    wide = torch.zeros(6, 8)
    wide[:, 2:5] = rois
    expected = ops.segment_roi_align(features, rois, 3)
    assert torch.equal(ops.segment_roi_align(features, wide[:, 2:5], 3), expected)
    assert torch.equal(ops.segment_roi_align(features, rois.t().contiguous().t(), 3), expected)


@pytest.mark.parametrize(
    "shape", [(0, 3, 5, 0, 2), (2, 0, 5, 3, 2), (2, 3, 5, 0, 2), (2, 3, 0, 0, 2)]
)
def test_empty(shape):
    batch, channels, rows, count, bins = shape
    features = torch.randn(batch, channels, rows, requires_grad=True)
    out = ops.segment_roi_align(features, torch.zeros(count, 3), bins)
    assert out.shape == (count, channels, bins)
    out.sum().backward()
    assert features.grad.shape == features.shape
    assert not features.grad.any()


# ---- the convention, by hand ---------------------------------------------------------------------

RAMP = torch.arange(10.0, 18.0).reshape(1, 1, 8)  # row t holds 10 + t


@pytest.mark.parametrize(
    ("start", "end", "bins", "ratio", "expected"),
    [
        (2.0, 6.0, 2, 0, [13.0, 15.0]),  # two samples per bin: 2.5, 3.5 | 4.5, 5.5
        (2.0, 6.0, 4, 0, [12.5, 13.5, 14.5, 15.5]),  # no shift by half a row
        (2.0, 6.0, 1, 1, [14.0]),
        (2.0, 6.0, 1, 2, [14.0]),
        (2.0, 5.0, 2, 0, [12.75, 14.25]),  # bins of 1.5 rows, two samples each
        (2.0, 2.0, 1, 0, [12.5]),  # at least one row long
        (5.0, 3.0, 1, 0, [15.5]),  # reversed: the same
        (2.0, 2.5, 2, 0, [12.25, 12.75]),
        (-0.5, 0.5, 2, 0, [10.0, 10.25]),  # -0.25 reads the first row
        (-2.0, 0.0, 2, 0, [0.0, 10.0]),  # -1.5 is outside
        (-2.0, 0.0, 1, 0, [5.0]),  # and counts in the mean
        (6.75, 8.75, 2, 0, [17.0, 0.0]),  # 7.25 reads the last row, 8.25 is outside
        (7.5, 8.5, 1, 0, [17.0]),  # 8 = T is the last position inside
        (-1.5, -0.5, 1, 0, [10.0]),  # and -1 the first
        (20.0, 30.0, 2, 0, [0.0, 0.0]),
        (-1e9, 1e9, 1, 1, [10.0]),
    ],
)
def test_by_hand(start, end, bins, ratio, expected):
    rois = torch.tensor([[0.0, start, end]])
    out = ops.segment_roi_align(RAMP, rois, bins, ratio)
    assert out.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert twin.segment_roi_align(RAMP, rois, bins, ratio).flatten().tolist() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("start", "end", "bins", "ratio", "expected"),
    [
        (2.0, 6.0, 4, 0, [12.0, 13.0, 14.0, 15.0]),  # rows 2 to 5 in edge coordinates, as they are
        (2.0, 6.0, 2, 0, [12.5, 14.5]),
        (2.0, 6.0, 1, 1, [13.5]),
        (2.0, 2.5, 1, 0, [11.75]),  # shorter than a row: one sample in its middle
        (2.0, 2.5, 2, 0, [11.625, 11.875]),
        (2.0, 2.0, 2, 0, [0.0, 0.0]),  # no length, no sample
        (2.0, 2.0, 2, 3, [11.5, 11.5]),  # unless they are asked for
        (-3.0, -3.0, 1, 2**62, [0.0]),
        (0.0, 1.0, 1, 0, [10.0]),
        (0.0, 0.5, 1, 0, [10.0]),  # -0.25 reads the first row
        (-2.0, 0.0, 2, 0, [0.0, 10.0]),  # -2 is outside, -1 is not
        (7.0, 10.0, 3, 0, [17.0, 17.0, 0.0]),  # 7, 8 = T, 9
    ],
)
def test_aligned_by_hand(start, end, bins, ratio, expected):
    rois = torch.tensor([[0.0, start, end]])
    out = ops.segment_roi_align(RAMP, rois, bins, ratio, aligned=True)
    assert out.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    if ratio < 2**32:
        slow = twin.segment_roi_align(RAMP, rois, bins, ratio, aligned=True)
        assert slow.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def roi_align_2d(image: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """What torchvision documents for roi_align(aligned=True): [C, H, W] -> [C, h, w].

    Boxes are (x1, y1, x2, y2); half a pixel is subtracted for "a better alignment with the two
    neighboring pixel indices"; every bin averages ceil(height / h) x ceil(width / w) bilinear
    samples at the centres of its equal parts.
    """
    channels, height, width = image.shape
    x1, y1, x2, y2 = (value - 0.5 for value in box)
    bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
    grid_h, grid_w = math.ceil(bin_h), math.ceil(bin_w)

    def taps(position: float, count: int) -> list[tuple[int, float]]:
        if position < -1 or position > count:
            return []
        position = min(max(position, 0.0), count - 1.0)
        low = min(int(position), count - 1)
        high = min(low + 1, count - 1)
        return [(low, 1 - (position - low)), (high, position - low)]

    out = torch.zeros(channels, *size, dtype=image.dtype)
    for h in range(size[0]):
        for w in range(size[1]):
            for i in range(grid_h):
                for j in range(grid_w):
                    y = y1 + h * bin_h + (i + 0.5) * bin_h / grid_h
                    x = x1 + w * bin_w + (j + 0.5) * bin_w / grid_w
                    for row, wy in taps(y, height):
                        for column, wx in taps(x, width):
                            out[:, h, w] += wy * wx * image[:, row, column]
            out[:, h, w] /= max(grid_h * grid_w, 1)
    return out


@pytest.mark.parametrize("bins", [1, 3, 8])
def test_aligned_is_roi_align_of_an_image_one_pixel_high(bins):
    rows = 12
    features = make_features(1, 4, rows, torch.float64)
    rois = in_order(make_rois(40, 1, rows, torch.float64))
    out = ops.segment_roi_align(features, rois, bins, aligned=True)
    for k, (_, start, end) in enumerate(rois.tolist()):
        expected = roi_align_2d(features[0, :, None], [start, 0.0, end, 1.0], (1, bins))
        torch.testing.assert_close(out[k], expected[:, 0], rtol=1e-12, atol=1e-12)


def test_conventions_differ_by_half_a_row():
    # Segments of at least one row per bin: the same samples, half a row apart.
    features = make_features(2, 5, 30, torch.float64)
    rois = torch.tensor([[0.0, 3.0, 11.0], [1.0, 4.25, 20.25]], dtype=torch.float64)
    later = rois + torch.tensor([0.0, 0.5, 0.5])
    out = ops.segment_roi_align(features, rois, 4)
    torch.testing.assert_close(out, ops.segment_roi_align(features, later, 4, aligned=True))
    assert not torch.allclose(out, ops.segment_roi_align(features, rois, 4, aligned=True))


@pytest.mark.parametrize("bins", [3, 6, 24])
def test_aligned_whole_window_is_linear_interpolation(bins):
    # With one sample per bin, bins over all T rows are torch's half-pixel resampling.
    features = make_features(2, 5, 12, torch.float64)
    rois = torch.tensor([[0.0, 0.0, 12.0], [1.0, 0.0, 12.0]], dtype=torch.float64)
    expected = torch.nn.functional.interpolate(
        features, size=bins, mode="linear", align_corners=False
    )
    torch.testing.assert_close(ops.segment_roi_align(features, rois, bins, 1, True), expected)


def test_very_long_segments_cost_no_time():
    # 2^31 samples, of which eight rows can see any.
    rois = torch.tensor([[0.0, -(2.0**30), 2.0**30], [0.0, 0.0, 2.0**31]], dtype=torch.float64)
    out = ops.segment_roi_align(RAMP, rois, 2)
    # Half a row outside at the front, one sample per row, 2^30 samples per bin.
    inside = sum(10.0 + t + 0.5 for t in range(7)) + 17.0
    assert out[0, 0, 1].item() == pytest.approx(inside / 2**30, rel=1e-6)
    assert out[1, 0, 1].item() == 0.0


def test_huge_sampling_ratio_outside():
    rois = torch.tensor([[0.0, -(2.0**31), -(2.0**31)], [0.0, 2.0**31, 2.0**31]])
    out = ops.segment_roi_align(RAMP, rois, 2, 2**62)
    assert out.tolist() == torch.zeros(2, 1, 2).tolist()


def test_nan_features_stay_where_they_are():
    features = RAMP.clone()
    features[0, 0, 5] = math.nan
    out = ops.segment_roi_align(features, torch.tensor([[0.0, 0.0, 8.0]]), 8)
    assert out.isnan().flatten().tolist() == [False] * 4 + [True] * 2 + [False] * 2


# ---- what only CUDA kernels have -----------------------------------------------------------------


def both_ways(features: Tensor, rois: Tensor, bins: int, *options: object) -> tuple[Tensor, Tensor]:
    out = ops.segment_roi_align(features, rois, bins, *options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, torch.ops.tal_fast.segment_roi_align_backward(
        grad, rois, features.shape[0], features.shape[2], *(options or (0,))
    )


@pytest.mark.cpu_only
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", ["BTC", "BCT", "sliced"])
@pytest.mark.parametrize("rois_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_has_the_bits_of_the_cpu(dtype, rois_dtype, layout, aligned):
    """Sizes around packs, chunks of channels and bins, slices of rows, and lists of rois."""
    for batch, channels, rows, count, bins, ratio in (
        (2, 8, 13, 12, 4, 0),
        (1, 132, 40, 7, 33, 0),
        (3, 7, 30, 300, 1, 3),
        (1, 66, 9, 5, 32, 40),
        (1, 264, 300, 3, 2, 0),
    ):
        features = make_features(batch, channels, rows, dtype, layout=layout)
        rois = make_rois(count, batch, rows, rois_dtype)
        arguments = (features, in_order(rois) if aligned else rois, bins, ratio, aligned)
        expected = both_ways(*arguments)
        for results in emulator.cuda_results(lambda arguments=arguments: both_ways(*arguments)):
            assert torch.equal(results[0], expected[0])
            assert torch.equal(results[1], expected[1])


@pytest.mark.cuda_only
def test_paths(device):
    if device != "cuda-emulated":
        pytest.skip("asks the emulator for names")
    backward = "segment_roi_align backward"
    packed, general = "segment_roi_align forward", "segment_roi_align forward, general"
    for channels, layout, count, names in (
        (8, "BTC", 20, [packed, backward]),
        (6, "BTC", 20, [general, backward]),
        (8, "BCT", 20, ["segment_roi_align transpose", packed, backward]),
        (6, "BCT", 20, ["segment_roi_align transpose", general, backward]),
        (8, "BCT", 1, [general, backward]),  # too few bins for a copy
        (8, "sliced", 1, [general, backward]),
    ):
        emulator.launches()
        both_ways(make_features(2, channels, 30, layout=layout), make_rois(count, 2, 30), 2)
        assert emulator.launches() == names


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_that_begin_anywhere(dtype):
    flat = make_features(1, 1, 2 * 9 * 16 + 1, dtype).reshape(-1)
    rois = make_rois(8, 2, 9)
    for part in (flat[:-1], flat[1:]):
        features = part.view(2, 9, 16).transpose(1, 2)
        expected = twin.segment_roi_align(features, rois, 3)
        actual = ops.segment_roi_align(features, rois, 3)
        torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])


@pytest.mark.cuda_only
def test_gradient_does_not_depend_on_the_slices(device):
    # Little shared memory: 8 rows per block.
    if device != "cuda-emulated":
        pytest.skip("chooses the slices by the emulated device's memory")
    features, rois = make_features(2, 12, 70), make_rois(40, 2, 70)
    for bins in (3, 40):
        _, expected = both_ways(features, rois, bins)
        with emulator.shared_memory(24 * 1024):
            _, grad = both_ways(features, rois, bins)
        assert torch.equal(grad, expected)


@pytest.mark.cuda_only
def test_the_same_bits_in_every_run():
    features, rois = make_features(2, 70, 40), make_rois(60, 2, 40)
    expected = both_ways(features, rois, 8)
    for _ in range(3):
        results = both_ways(features, rois, 8)
        assert torch.equal(results[0], expected[0])
        assert torch.equal(results[1], expected[1])


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rois_dtype", [torch.float32, torch.float64])
def test_what_a_cpu_refuses_gives_nan(dtype, rois_dtype):
    good = [0.0, 1.0, 6.0]
    bad = [
        [2.0, 1.0, 3.0],
        [-1.0, 1.0, 3.0],
        [0.5, 1.0, 3.0],
        [math.nan, 1.0, 3.0],
        [1e300 if rois_dtype == torch.float64 else 1e38, 1.0, 3.0],
        [0.0, math.nan, 3.0],
        [0.0, 1.0, math.inf],
        [0.0, 1.0, 1e10],
        [0.0, -1e10, 1.0],
        [0.0, 5.0, 3.0],
    ]
    rois = torch.tensor([good, *bad, good], dtype=rois_dtype)
    features = make_features(2, 6, 9, dtype)
    out, grad = both_ways(features, rois, 3, 0, True)
    assert not out[0].isnan().any()
    assert torch.equal(out[0], out[-1])
    assert out[1:-1].isnan().all()
    # What is good adds to the gradient as if it were alone.
    assert torch.isfinite(grad).all()
    values = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    alone = torch.ops.tal_fast.segment_roi_align_backward(
        values[[0, -1]], rois[[0, -1]], 2, 9, 0, True
    )
    assert torch.equal(grad, alone)
    # Without aligned a reversed segment is one row long.
    assert not ops.segment_roi_align(features, rois[-2:], 3).isnan().any()


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", ["BTC", "BCT"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(ratio, layout, aligned):
    features = make_features(2, 3, 9, torch.float64, layout=layout).requires_grad_()
    rois = in_order(make_rois(7, 2, 9, torch.float64))
    assert torch.autograd.gradcheck(
        lambda x: ops.segment_roi_align(x, rois, 4, ratio, aligned),
        (features,),
        eps=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["BTC", "BCT"])
def test_opcheck(layout, requires_grad, aligned):
    features = make_features(2, 5, 9, layout=layout).requires_grad_(requires_grad)
    rois = in_order(make_rois(6, 2, 9))
    native = torch.ops.tal_fast
    torch.library.opcheck(native.segment_roi_align.default, (features, rois, 3, 0, aligned))
    grad = torch.randn(6, 5, 3, requires_grad=requires_grad)
    torch.library.opcheck(native.segment_roi_align_backward.default, (grad, rois, 2, 9, 0, aligned))


def test_rois_get_no_gradient():
    features = make_features(2, 5, 9).requires_grad_()
    rois = make_rois(6, 2, 9).requires_grad_()
    ops.segment_roi_align(features, rois, 3).sum().backward()
    assert features.grad is not None
    assert rois.grad is None


@pytest.mark.parametrize("aligned", [False, True])
def test_second_derivative(aligned):
    features = make_features(2, 3, 7, torch.float64).requires_grad_()
    rois = in_order(make_rois(5, 2, 7, torch.float64))
    assert torch.autograd.gradgradcheck(
        lambda x: ops.segment_roi_align(x, rois, 2, 0, aligned) ** 2,
        (features,),
        eps=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(("batch", "channels"), [(16, 64), (1, 300), (5, 130)])
def test_same_bits_in_every_run_and_for_any_number_of_threads(batch, channels, thread_counts):
    features = make_features(batch, channels, 60).requires_grad_()
    rois = make_rois(300, batch, 60)
    grad = make_features(300, channels, 8, layout="BCT", seed=1)
    results = []
    for count in (1, *thread_counts, *thread_counts):
        torch.set_num_threads(count)
        out = ops.segment_roi_align(features, rois, 8)
        results.append((out, *torch.autograd.grad(out, features, grad)))
    for out, grad_features in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(grad_features, results[0][1])


BITS = """
import hashlib, torch
from tal_fast import ops
generator = torch.Generator().manual_seed(0)
features = torch.randn(4, 77, 100, generator=generator).transpose(1, 2).requires_grad_()
start = torch.rand(50, generator=generator) * 80 - 3
rois = torch.stack((torch.arange(50.0) % 4, start, start + 31.7), dim=1)
out = ops.segment_roi_align(features, rois, 7)
half = ops.segment_roi_align(features.half(), rois, 7, 0, True)
out = out + half + ops.segment_roi_align(features.transpose(1, 2), rois, 7, 2, True).sum()
(grad,) = torch.autograd.grad(out.square().sum(), features)
raw = out.detach().numpy().tobytes() + grad.contiguous().numpy().tobytes()
print(hashlib.sha256(raw).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.cpu_only
def test_same_bits_for_all_instruction_sets():
    digests = {
        subprocess.run(
            [sys.executable, "-c", BITS],
            env=os.environ | {"TAL_FAST_ISA": isa},
            check=True,
            capture_output=True,
        ).stdout
        for isa in info.instruction_sets()
    }
    assert len(digests) == 1


def test_both_layouts_give_the_same_bits():
    # Few rois read a channel-major tensor in place, many through a copy.
    rois = make_rois(50, 2, 90)
    for some in (rois[:1], rois):
        a, b = (
            ops.segment_roi_align(make_features(2, 40, 90, layout=layout), some, 2)
            for layout in ("BTC", "BCT")
        )
        assert torch.equal(a, b)


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def pooled(memory, rois):
        return ops.segment_roi_align(memory.transpose(1, 2), rois, 4).flatten(1).sum(1)

    for batch, rows, count in ((2, 11, 5), (3, 13, 7), (4, 17, 9)):
        memory = make_features(batch, 6, rows).transpose(1, 2).detach().requires_grad_()
        rois = make_rois(count, batch, rows)
        (grad,) = torch.autograd.grad(pooled(memory, rois).square().sum(), memory)
        eager = ops.segment_roi_align(memory.transpose(1, 2), rois, 4).flatten(1).sum(1)
        (expected,) = torch.autograd.grad(eager.square().sum(), memory)
        torch.testing.assert_close(grad, expected)
    assert counter.frame_count == (1 if dynamic else 2)  # None: once more to become dynamic
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype):
    features = make_features(2, 5, 9, dtype).requires_grad_()
    rois = make_rois(6, 2, 9)
    with torch.autocast("cpu", dtype):
        out = ops.segment_roi_align(features, rois, 3)
    assert out.dtype == torch.float32
    assert torch.equal(out, ops.segment_roi_align(features.float(), rois, 3))
    out.sum().backward()
    assert features.grad.dtype == dtype


# ---- errors --------------------------------------------------------------------------------------


def with_value(column: int, value: float) -> Tensor:
    rois = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 2.0]])
    rois[1, column] = value
    return rois


FEATURES = torch.zeros(2, 5, 9)
ROIS = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES[0], ROIS, 3), r"expected features of shape \[B, C, T\], got \[5, 9\]"),
        ((FEATURES.long(), ROIS, 3), "expected features of dtype float64, .* got int64"),
        ((FEATURES, ROIS[0], 3), r"expected rois of shape \[K, 3\] .* got \[3\]"),
        ((FEATURES, torch.zeros(4, 2), 3), r"expected rois of shape \[K, 3\] .* got \[4, 2\]"),
        ((FEATURES, ROIS.half(), 3), "expected rois of dtype float32 or float64, got float16"),
        ((FEATURES, ROIS.long(), 3), "expected rois of dtype float32 or float64, got int64"),
        ((FEATURES, ROIS, 0), "expected output_size >= 1, got 0"),
        ((FEATURES, ROIS, 3, -1), "expected sampling_ratio >= 0, got -1"),
        ((FEATURES[:, :, :0], ROIS, 3), "expected features with at least one row"),
        ((FEATURES, ROIS.to("meta"), 3), "expected rois on cpu like features, got meta"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=f"segment_roi_align: .*{message}"):
        ops.segment_roi_align(*arguments)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES, with_value(0, 2), 3), r"batch indices in \[0, 2\), got 2 in row 1"),
        ((FEATURES, with_value(0, -1), 3), r"batch indices in \[0, 2\), got -1 in row 1"),
        ((FEATURES, with_value(0, 0.5), 3), r"batch indices in \[0, 2\), got 0.5 in row 1"),
        ((FEATURES, with_value(0, math.nan), 3), r"batch indices in \[0, 2\), got -?nan in row 1"),
        ((FEATURES, with_value(1, math.nan), 3), r"finite start and end .* in row 1"),
        ((FEATURES, with_value(2, math.inf), 3), r"finite start and end .* \[1, inf\] in row 1"),
        ((FEATURES, with_value(2, 1e10), 3), r"at most 2\^31, got \[1, 1e\+10\] in row 1"),
        (
            (FEATURES, torch.tensor([[0.0, 1.0, 1.0], [1.0, 5.0, 3.0]]), 3, 0, True),
            r"end >= start with aligned=True, got \[5, 3\] in row 1",
        ),
    ],
)
def test_errors_in_values(arguments, message):
    with pytest.raises(RuntimeError, match=f"segment_roi_align: .*{message}"):
        ops.segment_roi_align(*arguments)


@pytest.mark.cpu_only
def test_errors_in_values_of_backward():
    with pytest.raises(RuntimeError, match=r"batch indices in \[0, 0\), got 0 in row 0"):
        torch.ops.tal_fast.segment_roi_align_backward(torch.zeros(1, 5, 3), ROIS, 0, 9, 0)


def test_errors_of_backward():
    backward = torch.ops.tal_fast.segment_roi_align_backward
    with pytest.raises(
        RuntimeError, match=r"backward: expected grad of shape \[K, C, R\] and rois"
    ):
        backward(torch.zeros(2, 5, 3), ROIS, 2, 9, 0)
    with pytest.raises(RuntimeError, match=r"backward: expected grad of dtype .* got int64"):
        backward(torch.zeros(1, 5, 3).long(), ROIS, 2, 9, 0)
