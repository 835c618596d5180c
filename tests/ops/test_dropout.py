# SPDX-License-Identifier: Apache-2.0
"""dropout: the twin's very mask, gradients, threads, and randomness that is random enough."""

from __future__ import annotations

import emulated as emulator
import pytest
import torch

from tal_fast import ops
from tal_fast.reference import dropout as twin

OP = torch.ops.tal_fast.dropout.default
BACKWARD = torch.ops.tal_fast.dropout_backward.default
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float64: 1e-15, torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(0,), (1,), (33, 7), (2, 3, 5), (1001,)]


def close(actual, expected, dtype):
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "relu", "residual"])
def test_forward_is_the_twins(dtype, shape, kind):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    residual = torch.randn(shape).to(dtype) if kind == "residual" else None
    for p, seed in ((0.1, 5), (0.5, 2**62 + 12345)):
        out = OP(x, p, seed, kind == "relu", residual)
        assert out.dtype == dtype
        close(out, twin.dropout(x, p, seed, kind == "relu", residual), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_backward_uses_the_forwards_mask(dtype, relu):
    torch.manual_seed(0)
    x = torch.randn(17, 11).to(dtype)
    grad = torch.randn(17, 11).to(dtype)
    out = OP(x, 0.3, 7, relu, None)
    keep = twin.keep_mask(x.numel(), 0.3, 7).view(x.shape)
    expected = grad.double() * keep / 0.7 * ((x > 0) if relu else 1)
    close(BACKWARD(grad, out if relu else None, 0.3, 7), expected, dtype)


def test_mask_goes_on_across_blocks_of_a_million():
    """Elements around the block border, where the key changes, still follow the twin."""
    x = torch.ones(2**20 + 64)
    kept = OP(x, 0.5, 11, False, None) != 0
    assert 0.4 < kept[2**20 :].float().mean() < 0.6
    tail = torch.tensor([bool(twin_bit) for twin_bit in _twin_bits(2**20 - 8, 2**20 + 64, 0.5, 11)])
    assert torch.equal(kept[2**20 - 8 :], tail)


def _twin_bits(begin, end, p, seed):
    for index in range(begin, end):
        key = twin._splitmix64(seed, index // 2**20)
        bits = twin._mix((index % 2**20) ^ (key & 0xFFFFFFFF))
        yield twin._mix((bits + (key >> 32)) & 0xFFFFFFFF) >= round(p * 2**32)


def test_same_for_any_number_of_threads_and_layout(thread_counts):
    x = torch.randn(300, 1000)
    results = []
    for count in thread_counts:
        torch.set_num_threads(count)
        results.append(OP(x, 0.1, 3, False, None))
    assert all(torch.equal(results[0], other) for other in results[1:])
    transposed = x.t().contiguous().t()
    assert torch.equal(OP(transposed, 0.1, 3, False, None), results[0])


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "relu", "residual"])
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "unaligned"])
def test_cuda_has_the_bits_of_the_cpu(dtype, kind, first):
    """Sizes around those of a pack, a turn and a block of threads; several blocks of threads."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 8200, generator=generator).to(dtype)
    values[0, 3::50] = -0.0
    values[0, 5::50] = torch.nan

    def both(size: int, p: float) -> tuple[torch.Tensor, torch.Tensor]:
        x, grad, residual = values[:, first : first + size]
        relu = kind == "relu"
        out = OP(x, p, 77, relu, residual if kind == "residual" else None)
        return out, BACKWARD(grad, out if relu else None, p, 77)

    for size in (1, 3, 7, 8, 9, 255, 257, 1024, 1025, 2047, 2049, 4097, 8192, 8199):
        for p in (0.3, 1.0) if size < 1000 else (0.3,):
            expected = both(size, p)
            for actual in emulator.cuda_results(lambda size=size, p=p: both(size, p)):
                torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda_only
def test_unaligned_tensors_take_the_general_kernels():
    emulator.launches()
    x = torch.ones(9)
    BACKWARD(OP(x, 0.5, 1), None, 0.5, 1)
    BACKWARD(OP(x[1:], 0.5, 1), None, 0.5, 1)
    OP(x[:8], 0.5, 1, False, x[1:])
    if emulator.LIBRARY.exists():
        assert emulator.launches() in (
            [],  # on a GPU
            [
                "dropout forward",
                "dropout backward",
                "dropout forward, general",
                "dropout backward",
                "dropout forward, general",
            ],
        )


def test_seed_on_the_device_is_added():
    """What a captured CUDA graph draws anew in every replay."""
    x, grad = torch.ones(3000), torch.rand(3000)
    for seed, more in ((5, 0), (7, 2**62), (2**63 - 1, 2**63 - 1), (3, -4)):
        device_seed = torch.tensor(more)
        whole = (seed + more + 2**63) % 2**64 - 2**63
        out = OP(x, 0.5, seed, False, None, device_seed)
        assert torch.equal(out, OP(x, 0.5, whole))
        assert torch.equal(
            BACKWARD(grad, None, 0.5, seed, device_seed), BACKWARD(grad, None, 0.5, whole)
        )
        assert torch.equal(out != 0, BACKWARD(grad, None, 0.5, seed, device_seed) != 0)


@pytest.mark.parametrize("relu", [False, True])
def test_seed_on_the_device_under_autograd(relu):
    x = torch.rand(100, requires_grad=True)
    arguments = (x, 0.5, 3, relu, None, torch.tensor(9))
    out = OP(*arguments)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad != 0, out != 0)
    torch.library.opcheck(OP, arguments)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.37, 1.0])
def test_share_and_scale(p):
    torch.manual_seed(1)
    out = ops.dropout(torch.ones(200_000), p)
    # five standard deviations of a binomial share
    assert abs((out == 0).float().mean().item() - p) <= 5 * (p * (1 - p) / 200_000) ** 0.5
    if p < 1:
        torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)))


def test_neighbours_and_seeds_are_uncorrelated():
    a = OP(torch.ones(1_000_000), 0.5, 1, False, None).clamp(max=1) - 0.5
    b = OP(torch.ones(1_000_000), 0.5, 2, False, None).clamp(max=1) - 0.5
    for lag in (1, 2, 8, 64, 256, 1024):
        assert abs((a[:-lag] * a[lag:]).mean().item() * 4) < 5e-3
    assert abs((a * b).mean().item() * 4) < 5e-3


def test_manual_seed_decides():
    x = torch.ones(1000)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(ops.dropout(x, 0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_evaluation_is_the_identity():
    x, y = torch.randn(9), torch.randn(9)
    assert torch.equal(ops.dropout(x, 0.5, training=False), x)
    assert torch.equal(ops.dropout(x, 0.5, training=False, relu=True), x.relu())
    assert torch.equal(ops.dropout(x, 0.5, training=False, residual=y), x + y)


@pytest.mark.parametrize("kind", ["plain", "relu", "residual"])
def test_gradcheck(kind):
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    residual = None
    if kind == "residual":
        residual = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def function(x, residual):
        return OP(x, 0.4, 9, kind == "relu", residual)

    assert torch.autograd.gradcheck(function, (x, residual))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("kind", ["plain", "relu", "residual"])
def test_opcheck(kind, requires_grad):
    x = torch.randn(5, 4, requires_grad=requires_grad)
    residual = torch.randn(5, 4) if kind == "residual" else None
    torch.library.opcheck(OP, (x, 0.4, 9, kind == "relu", residual))


def test_residual_of_another_dtype():
    x = torch.randn(6, dtype=torch.bfloat16)
    assert ops.dropout(x, 0.5, residual=torch.randn(6)).dtype == torch.float32


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_falls_back_to_torchs_ops(backend):
    function = torch.compile(
        lambda x: ops.dropout(x, 0.5, relu=True), fullgraph=True, backend=backend
    )
    out = function(torch.ones(1000))
    assert 0.3 < (out == 0).float().mean() < 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), 1.5, 0), r"dropout: expected p in \[0, 1\], got 1.5"),
        ((torch.ones(3), float("nan"), 0), r"expected p in \[0, 1\], got nan"),
        ((torch.ones(3, dtype=torch.int64), 0.5, 0), "expected x of dtype float64.*got int64"),
        (
            (torch.ones(3), 0.5, 0, False, torch.ones(4)),
            r"expected residual of shape \[3\] and dtype float32, got \[4\] and float32",
        ),
        ((torch.ones(3), 0.5, 0, True, torch.ones(3)), "expected relu or residual, got both"),
        (
            (torch.ones(3), 0.5, 0, False, None, torch.ones(2, dtype=torch.int64)),
            r"expected device_seed to be one int64, got \[2\] int64",
        ),
        (
            (torch.ones(3), 0.5, 0, False, None, torch.ones(())),
            r"expected device_seed to be one int64, got \[\] float32",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)
    if len(arguments) > 3 and arguments[3]:
        with pytest.raises(RuntimeError, match=message):
            ops.dropout(arguments[0], residual=arguments[4], relu=True)
