# SPDX-License-Identifier: Apache-2.0
"""boundary_max_pool against its twin, by hand-computed maxima, and under torch's machinery."""

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
from tal_fast.reference import boundary_max_pool as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Sums of up to K gradients of unit variance: rounded once, and in float32 for all but float64.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 1e-3, "atol": 1e-3},
    torch.bfloat16: {"rtol": 8e-3, "atol": 8e-3},
}


def make_features(
    batch: int,
    channels: int,
    rows: int,
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = "BCT",
    seed: int = 0,
) -> Tensor:
    """Features [B, C, T] of few distinct values, so that equal maxima are common."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, channels, rows, generator=generator, dtype=torch.float64)
    values = (values * 4).round().div(4).to(dtype)
    if layout == "BTC":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.stack((values, values), dim=-1)[..., 0]
    return values


def make_segments(
    batch: int, count: int, rows: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Ranges of all kinds: inside, across both ends, outside, single rows, reversed."""
    generator = torch.Generator().manual_seed(count + seed)
    start = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) * (rows + 6) - 4
    length = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) ** 2
    segments = torch.stack((start, start + length * rows * 1.2 - 1.5), dim=-1)
    return segments.flatten(2).to(dtype)


# ---- against the twin ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["BCT", "BTC", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "channels", "rows", "count"),
    [
        (1, 2, 1, 3),
        (2, 6, 13, 7),
        (33, 2, 5, 4),
        (1, 150, 21, 3),
        (1, 42, 30, 5),
        (1, 2, 9, 131),
        (2, 4, 9, 0),
        (0, 4, 9, 3),
        (2, 0, 9, 3),
    ],
)
def test_matches_twin(batch, channels, rows, count, dtype, layout):
    features = make_features(batch, channels, rows, dtype, layout=layout).requires_grad_()
    segments = make_segments(batch, count, rows)
    out = ops.boundary_max_pool(features, segments)
    assert out.shape == (batch, channels, count)
    assert out.dtype == dtype
    assert out.is_contiguous()
    wide = features.detach().double().requires_grad_()
    expected = twin.boundary_max_pool(wide, segments)
    assert torch.equal(out.double(), expected)
    with torch.no_grad():
        assert torch.equal(ops.boundary_max_pool(features, segments), out)

    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (ours,) = torch.autograd.grad(out, features, grad)
    assert ours.dtype == dtype
    if expected.numel() == 0:
        assert ours.shape == features.shape
        assert not ours.any()
        return
    (theirs,) = torch.autograd.grad(expected, wide, grad.double())
    torch.testing.assert_close(ours.double(), theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int64])
def test_segments_of_other_dtypes(dtype):
    features = make_features(2, 6, 13, torch.float16)
    segments = make_segments(2, 9, 13).trunc()
    expected = ops.boundary_max_pool(features, segments)
    assert torch.equal(ops.boundary_max_pool(features, segments.to(dtype)), expected)


def test_segments_of_other_strides():
    features, segments = make_features(2, 6, 13), make_segments(2, 9, 13)
    expected = ops.boundary_max_pool(features, segments)
    wide = torch.zeros(2, 9, 8)
    wide[..., 3:7] = segments
    assert torch.equal(ops.boundary_max_pool(features, wide[..., 3:7]), expected)


# ---- the rule, by hand ---------------------------------------------------------------------------

ROWS = torch.tensor([[[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]]]).repeat(1, 2, 1)


@pytest.mark.parametrize(
    ("start", "end", "expected", "row"),
    [
        (0.0, 1.0, 3.0, 0),  # both ends included
        (1.0, 2.0, 4.0, 2),
        (1.0, 1.0, 1.0, 1),
        (2.9, 4.9, 5.0, 4),  # truncated: [2, 4]
        (-0.9, 0.9, 3.0, 0),  # toward zero
        (-5.0, 2.0, 4.0, 2),
        (-5.0, -3.0, 3.0, 0),  # clamped to the first row
        (6.0, 99.0, 6.0, 7),
        (50.0, 99.0, 6.0, 7),  # and to the last
        (4.0, 2.0, 5.0, 4),  # reversed: the first alone
        (9.0, 2.0, 6.0, 7),
        (-math.inf, math.inf, 9.0, 5),
        (1e30, 1e38, 6.0, 7),
    ],
)
def test_by_hand(start, end, expected, row):
    features = ROWS.clone().requires_grad_()
    segments = torch.tensor([[[start, end, 0.0, 0.0], [0.0, 0.0, start, end]]])
    out = ops.boundary_max_pool(features, segments)
    assert out.tolist() == [[[expected, 3.0], [3.0, expected]]]
    (grad,) = torch.autograd.grad(out, features, torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    assert grad[0, 0].nonzero().flatten().tolist() == [row]
    assert grad[0, 1].nonzero().flatten().tolist() == [row]
    assert grad[0, :, row].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ([1.0, 7.0, 7.0, 7.0], 1),
        ([0.0, -0.0, -1.0, -0.0], 0),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([-math.inf, -math.inf, -math.inf, -math.inf], 0),
        ([1.0, math.nan, 3.0, math.nan], 1),  # a NaN beats every number
        ([math.nan, 2.0, math.inf, 4.0], 0),
        ([1.0, math.inf, math.inf, 4.0], 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_first_maximum_wins(values, row, dtype):
    features = torch.tensor([[values, values]], dtype=dtype).requires_grad_()
    segments = torch.tensor([[[0.0, 3.0, 0.0, 3.0]]])
    out = ops.boundary_max_pool(features, segments)
    with torch.no_grad():
        again = ops.boundary_max_pool(features, segments)
    for result in (out, again):
        pooled = result.flatten().tolist()
        assert pooled == pytest.approx([values[row]] * 2, nan_ok=True)
        assert [math.copysign(1, p) for p in pooled] == [math.copysign(1, values[row])] * 2
    (grad,) = torch.autograd.grad(out, features, torch.ones_like(out))
    assert grad[0, 0].tolist() == [1.0 if t == row else 0.0 for t in range(4)]


# ---- the historic gradient -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["BCT", "BTC"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "count"), [(13, 5), (9, 8), (9, 1), (9, 9)])
def test_afsd_gradient_matches_twin(rows, count, dtype, layout):
    features = make_features(2, 6, rows, dtype, layout=layout).requires_grad_()
    segments = make_segments(2, count, rows)
    out = ops.boundary_max_pool(features, segments, compat="afsd")
    assert torch.equal(out, ops.boundary_max_pool(features, segments))
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (ours,) = torch.autograd.grad(out, features, grad)
    expected = twin.boundary_max_pool_afsd_gradient(
        grad.double(), features.detach().double(), segments
    )
    torch.testing.assert_close(ours.double(), expected, **TOLERANCE[dtype])
    (right,) = torch.autograd.grad(ops.boundary_max_pool(features, segments), features, grad)
    assert torch.equal(ours, right) == (count == rows)


def test_afsd_gradient_by_hand():
    # T = 4 rows, K = 2 segments: channel 1 (row 4 of memory on) is looked for at element 2.
    features = torch.tensor([[[1.0, 5.0, 2.0, 8.0], [3.0, 4.0, 9.0, 0.0]]], requires_grad=True)
    segments = torch.tensor([[[0.0, 3.0, 0.0, 3.0], [2.0, 2.0, 0.0, 0.0]]])
    grad = torch.tensor([[[1.0, 10.0], [100.0, 1000.0]]])
    out = ops.boundary_max_pool(features, segments, "afsd")
    assert out.tolist() == [[[8.0, 2.0], [9.0, 3.0]]]
    (ours,) = torch.autograd.grad(out, features, grad)
    # Channel 0 as [1, 5] with rows clamped to 1; channel 1 as [2, 8].
    assert ours.tolist() == [[[0.0, 11.0, 1000.0, 100.0], [0.0, 0.0, 0.0, 0.0]]]
    (right,) = torch.autograd.grad(ops.boundary_max_pool(features, segments), features, grad)
    assert right.tolist() == [[[0.0, 0.0, 10.0, 1.0], [1000.0, 0.0, 100.0, 0.0]]]


# ---- what only CUDA kernels have -----------------------------------------------------------------


def both_ways(features: Tensor, segments: Tensor, afsd: bool = False) -> tuple[Tensor, ...]:
    native = torch.ops.tal_fast
    out, argmax = native.boundary_max_pool(features, segments, True, afsd)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    rows = features.shape[2]
    return out, argmax, native.boundary_max_pool_backward(grad, argmax, rows, afsd)


@pytest.mark.cpu_only
@pytest.mark.parametrize("layout", ["BCT", "BTC", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_has_the_bits_of_the_cpu(dtype, layout):
    """Sizes around packs, groups of channels, chunks of segments and slices of rows."""
    for batch, channels, rows, count in (
        (2, 18, 8, 63),
        (1, 16, 31, 64),
        (1, 130, 32, 65),
        (1, 62, 72, 3),
        (1, 4, 400, 129),
    ):
        features = make_features(batch, channels, rows, dtype, layout=layout)
        segments = make_segments(batch, count, rows)
        expected = both_ways(features, segments)
        for results in emulator.cuda_results(lambda f=features, s=segments: both_ways(f, s)):
            for ours, theirs in zip(results, expected, strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.cuda_only
@pytest.mark.parametrize("layout", ["BCT", "BTC"])
def test_paths(device, layout):
    """The same maxima however much shared memory there is, and however many channels."""
    if device != "cuda-emulated":
        pytest.skip("chooses the kernel by the emulated device's memory")
    few, segments = make_features(1, 40, 400, layout=layout), make_segments(1, 70, 400)
    emulator.launches()
    expected = both_ways(few, segments)
    names = emulator.launches()
    assert names == ["boundary_max_pool forward, narrow", "boundary_max_pool backward"]
    with emulator.shared_memory(18 * 1024):
        # Little memory: no staging, and the backward in slices of 8 rows.
        results = both_ways(few, segments)
        assert emulator.launches()[0] == "boundary_max_pool forward, general"
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)
    many, segments = make_features(66, 70, 8, layout=layout), make_segments(66, 3, 8)
    wide = both_ways(many, segments)
    assert emulator.launches()[0] == "boundary_max_pool forward, wide"
    for b in (0, 41, 65):
        one = both_ways(many[b : b + 1], segments[b : b + 1])
        assert torch.equal(wide[0][b], one[0][0])
        assert torch.equal(wide[1][b], one[1][0])


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_begin_anywhere(dtype):
    flat = make_features(1, 1, 2 * 6 * 16 + 1, dtype).view(-1)
    aligned, shifted = flat[:-1].view(2, 6, 16), flat[1:].view(2, 6, 16)
    segments = make_segments(2, 9, 16)
    for features in (aligned, shifted):
        expected = both_ways(features.clone(), segments)
        assert torch.equal(both_ways(features, segments)[0], expected[0])
        assert torch.equal(both_ways(features, segments)[1], expected[1])


@pytest.mark.cuda_only
def test_the_same_bits_in_every_run():
    features, segments = make_features(2, 70, 40), make_segments(2, 90, 40)
    first = both_ways(features, segments)
    for _ in range(3):
        for again, before in zip(both_ways(features, segments), first, strict=True):
            assert torch.equal(again, before)


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_cpu_refuses_gives_nan(dtype):
    features, segments = make_features(2, 6, 9, dtype), with_nan()
    out, argmax = torch.ops.tal_fast.boundary_max_pool(features, segments, True)
    expected = torch.zeros(2, 6, 3, dtype=torch.bool)
    expected[1, 3:, 2] = True  # the half that reads the segment's second range
    assert torch.equal(out.isnan(), expected)
    argmax[0, 1, 2], argmax[1, 4, 0] = 9, -1
    grad = torch.ops.tal_fast.boundary_max_pool_backward(torch.ones_like(out), argmax, 9)
    expected = torch.zeros(2, 6, 9, dtype=torch.bool)
    expected[0, 1] = expected[1, 4] = True  # the channel whose sum is not known
    assert torch.equal(grad.isnan(), expected)


# ---- torch ---------------------------------------------------------------------------------------


def distinct(batch: int, channels: int, rows: int) -> Tensor:
    """Features no two of which are closer than gradcheck's step."""
    order = torch.randperm(batch * channels * rows, generator=torch.Generator().manual_seed(0))
    return order.double().view(batch, channels, rows) / 16


@pytest.mark.parametrize("layout", ["BCT", "BTC"])
def test_gradcheck(layout):
    features = distinct(2, 4, 9)
    if layout == "BTC":
        features = features.transpose(1, 2).contiguous().transpose(1, 2)
    features.requires_grad_()
    segments = make_segments(2, 5, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda x: ops.boundary_max_pool(x, segments), (features,))


@pytest.mark.parametrize("compat", [None, "afsd"])
def test_second_derivative(compat):
    features = distinct(2, 4, 9).requires_grad_()
    segments = make_segments(2, 5, 9, torch.float64)
    argmax = torch.ops.tal_fast.boundary_max_pool(features, segments, True, compat == "afsd")[1]

    def backward(grad: Tensor) -> Tensor:
        return torch.ops.tal_fast.boundary_max_pool_backward(grad, argmax, 9, compat == "afsd")

    grad = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(backward, (grad,))
    assert torch.autograd.gradgradcheck(backward, (grad,))
    if compat is None:
        assert torch.autograd.gradgradcheck(
            lambda x: ops.boundary_max_pool(x, segments) ** 2, (features,)
        )


def test_segments_get_no_gradient():
    features = make_features(2, 6, 13).requires_grad_()
    segments = make_segments(2, 5, 13).requires_grad_()
    ops.boundary_max_pool(features, segments).sum().backward()
    assert features.grad is not None
    assert segments.grad is None
    assert not ops.boundary_max_pool(features.detach(), segments.detach()).requires_grad


def test_only_a_gradient_costs_memory():
    features, segments = make_features(2, 6, 13).requires_grad_(), make_segments(2, 5, 13)
    native = torch.ops.tal_fast.boundary_max_pool.default
    assert native(features, segments)[1].shape == (0,)
    out, argmax = native(features, segments, True)
    assert argmax.dtype == torch.int32
    assert not argmax.requires_grad
    assert torch.equal(features.gather(2, argmax.long()), out)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("afsd", [False, True])
@pytest.mark.parametrize("layout", ["BCT", "BTC"])
def test_opcheck(layout, afsd, requires_grad):
    features = make_features(2, 6, 9, layout=layout).requires_grad_(requires_grad)
    segments = make_segments(2, 5, 9)
    native = torch.ops.tal_fast
    for with_argmax in (True, requires_grad):
        torch.library.opcheck(
            native.boundary_max_pool.default, (features, segments, with_argmax, afsd)
        )
    argmax = native.boundary_max_pool(features, segments, True, afsd)[1]
    grad = torch.randn(2, 6, 5, requires_grad=requires_grad)
    torch.library.opcheck(native.boundary_max_pool_backward.default, (grad, argmax, 9, afsd))


@pytest.mark.parametrize(("batch", "channels"), [(16, 64), (1, 300), (5, 130)])
def test_same_bits_in_every_run_and_for_any_number_of_threads(batch, channels, thread_counts):
    features = make_features(batch, channels, 60).requires_grad_()
    segments = make_segments(batch, 90, 60)
    grad = torch.randn(batch, channels, 90, generator=torch.Generator().manual_seed(1))
    results = []
    for count in (1, *thread_counts, *thread_counts):
        torch.set_num_threads(count)
        out = ops.boundary_max_pool(features, segments)
        results.append((out, *torch.autograd.grad(out, features, grad)))
    for out, grad_features in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(grad_features, results[0][1])


BITS = """
import hashlib, torch
from tal_fast import ops
generator = torch.Generator().manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    features = (torch.randn(2, 86, 70, generator=generator) * 4).round().to(dtype) * 0.0
    features = (features + torch.randn(2, 86, 70, generator=generator).to(dtype)).requires_grad_()
    start = torch.rand(2, 40, 2, generator=generator) * 70 - 3
    segments = torch.stack((start, start + 9.7), dim=-1).flatten(2)
    out = ops.boundary_max_pool(features, segments)
    (grad,) = torch.autograd.grad(out.square().sum(), features)
    digest.update(out.detach().double().numpy().tobytes() + grad.double().numpy().tobytes())
print(digest.hexdigest())
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


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def pooled(features, segments):
        return ops.boundary_max_pool(features * 2, segments + 1).flatten(1).sum(1)

    for batch, rows, count in ((2, 11, 5), (3, 13, 7), (4, 17, 9)):
        features = make_features(batch, 6, rows).requires_grad_()
        segments = make_segments(batch, count, rows)
        (grad,) = torch.autograd.grad(pooled(features, segments).square().sum(), features)
        eager = ops.boundary_max_pool(features * 2, segments + 1).flatten(1).sum(1)
        (expected,) = torch.autograd.grad(eager.square().sum(), features)
        torch.testing.assert_close(grad, expected)
    assert counter.frame_count == (1 if dynamic else 2)  # None: once more to become dynamic
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_features_and_widens_segments(dtype):
    features, segments = make_features(2, 6, 13, dtype), make_segments(2, 5, 13, dtype)
    with torch.autocast("cpu", dtype):
        out = ops.boundary_max_pool(features, segments)
        wide = ops.boundary_max_pool(features.float(), segments)
    assert out.dtype == dtype
    assert wide.dtype == torch.float32
    assert torch.equal(out, ops.boundary_max_pool(features, segments.float()))


# ---- errors --------------------------------------------------------------------------------------

FEATURES = torch.zeros(2, 6, 9)
SEGMENTS = torch.zeros(2, 3, 4)


def with_nan() -> Tensor:
    segments = SEGMENTS.clone()
    segments[1, 2, 3] = math.nan
    return segments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES[0], SEGMENTS), r"features of shape \[B, C, T\] with an even C, got \[6, 9\]"),
        ((FEATURES[:, :5], SEGMENTS), r"with an even C, got \[2, 5, 9\]"),
        ((FEATURES.long(), SEGMENTS), "expected features of dtype float64, .* got int64"),
        ((FEATURES, SEGMENTS[0]), r"expected segments of shape \[2, K, 4\], got \[3, 4\]"),
        ((FEATURES, SEGMENTS[:1]), r"expected segments of shape \[2, K, 4\], got \[1, 3, 4\]"),
        ((FEATURES, SEGMENTS[..., :2]), r"expected segments of shape \[2, K, 4\], got \[2, 3, 2\]"),
        ((FEATURES, SEGMENTS.half()), "segments of dtype float32, float64, .* got float16"),
        ((FEATURES[..., :0], SEGMENTS), r"features with at least one row, got \[2, 6, 0\]"),
        ((FEATURES[..., :2], SEGMENTS, "afsd"), "at most T = 2 segments with compat='afsd', got 3"),
        ((FEATURES, SEGMENTS.to("meta")), "expected segments on cpu like features, got meta"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=f"boundary_max_pool: .*{message}"):
        ops.boundary_max_pool(*arguments)


@pytest.mark.cpu_only
def test_errors_in_values():
    with pytest.raises(RuntimeError, match=r"without NaN, got \[0, -?nan\] in segment 2 of item 1"):
        ops.boundary_max_pool(FEATURES, with_nan())
    backward = torch.ops.tal_fast.boundary_max_pool_backward
    grad, argmax = torch.zeros(2, 6, 3), torch.zeros(2, 6, 3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"backward: expected argmax in \[0, 9\)"):
        backward(grad, argmax + 9, 9)


def test_errors_of_backward():
    backward = torch.ops.tal_fast.boundary_max_pool_backward
    grad, argmax = torch.zeros(2, 6, 3), torch.zeros(2, 6, 3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"expected grad and argmax of one shape \[B, C, K\]"):
        backward(grad, argmax[:1], 9)
    with pytest.raises(RuntimeError, match=r"the latter int32, got .* int64"):
        backward(grad, argmax.long(), 9)
    with pytest.raises(RuntimeError, match="backward: expected at most T = 2 segments"):
        backward(grad, argmax, 2, True)
    with pytest.raises(RuntimeError, match=r"backward: expected grad of dtype .* got int32"):
        backward(argmax, argmax, 9)
    features = FEATURES.clone().requires_grad_()
    out, _ = torch.ops.tal_fast.boundary_max_pool(features, SEGMENTS)
    with pytest.raises(RuntimeError, match="expected with_argmax=True for a gradient"):
        out.sum().backward()
