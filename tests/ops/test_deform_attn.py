# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tal_fast.ops import deform_attn
from tal_fast.reference.deform_attn import deform_attn as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (out, grad of value and weights, grad of locations), each relative to the scale of the quantity.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5, 1e-4),
    torch.float16: (5e-3, 1e-2, 2e-2),
    torch.bfloat16: (2e-2, 4e-2, 5e-2),
}
# (B, lengths, Q, H, D, P): TadTR's shapes small, odd sizes, several levels, every channel template,
# more samples per query than a block of the backward, one of everything; in the last four the rows
# are many for the samples, so that the backward works in place.
SHAPES = [
    (2, (12,), 9, 8, 32, 4),
    (1, (1,), 1, 1, 1, 1),
    (2, (7, 4, 1), 5, 3, 5, 3),
    (3, (16, 8), 11, 2, 8, 4),
    (1, (9,), 70, 2, 16, 1),
    (2, (10, 3), 4, 2, 64, 2),
    (1, (6,), 3, 1, 128, 2),
    (1, (6, 5), 3, 2, 40, 2),
    (1, (20, 10, 5), 3, 2, 33, 30),
    (33, (5,), 2, 2, 4, 2),
    (2, (6, 5), 20, 8, 32, 4),
    (1, (7,), 30, 2, 64, 4),
    (3, (40,), 6, 8, 32, 4),
    (2, (30, 11), 5, 3, 16, 2),
    (1, (64,), 4, 2, 64, 4),
    (1, (25, 15), 2, 2, 128, 4),
]


def make(
    shape: tuple[int, tuple[int, ...], int, int, int, int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, tuple[int, ...], Tensor, Tensor]:
    """Random inputs; a quarter of the locations is out of range, none is near an integer row."""
    batch, lengths, queries, heads, channels, points = shape
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(batch, sum(lengths), heads, channels, generator=generator)
    samples = (batch, queries, heads, len(lengths), points)
    sizes = torch.tensor(lengths, dtype=torch.float64).view(1, 1, 1, -1, 1)
    x = torch.rand(samples, generator=generator, dtype=torch.float64) * (1.3 * sizes + 2)
    x = x - 0.15 * sizes - 1.5
    fraction = (x - x.floor()).clamp(0.02, 0.98)
    locations = (x.floor() + fraction + 0.5) / sizes
    weights = torch.rand(samples, generator=generator).flatten(3).softmax(-1).view(samples)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return value.to(dtype), lengths, locations.to(wide), weights.to(dtype)


def gradients(
    op: object, inputs: tuple[Tensor, tuple[int, ...], Tensor, Tensor], weight: Tensor
) -> tuple[Tensor, ...]:
    value, lengths, locations, weights = inputs
    leaves = [t.detach().clone().requires_grad_() for t in (value, locations, weights)]
    out = op(leaves[0], lengths, leaves[1], leaves[2])  # type: ignore[operator]
    return torch.autograd.grad(out, leaves, weight.to(out.dtype))


def assert_near(actual: Tensor, expected: Tensor, bound: float, scale: float) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=bound * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_twin(shape: tuple, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype)
    out = deform_attn(*inputs)
    assert out.shape == (shape[0], shape[2], shape[3] * shape[4])
    assert out.dtype == dtype
    assert_near(out, twin(*inputs), TOLERANCE[dtype][0], inputs[0].abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_matches_twin(shape: tuple, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype)
    value, lengths, locations, weights = inputs
    out_shape = (shape[0], shape[2], shape[3] * shape[4])
    weight = torch.randn(out_shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    ours = gradients(deform_attn, inputs, weight)
    wide = (value.double(), lengths, locations.double(), weights.double())
    theirs = gradients(twin, wide, weight.double())
    _, bound, location_bound = TOLERANCE[dtype]
    assert [g.dtype for g in ours] == [value.dtype, locations.dtype, weights.dtype]
    size = value.abs().max().item() * weight.abs().max().item() * shape[4] ** 0.5
    assert_near(ours[0], theirs[0], bound, theirs[0].abs().max().item())
    assert_near(ours[1], theirs[1], location_bound, max(lengths) * size)
    assert_near(ours[2], theirs[2], bound, size)


@pytest.mark.parametrize("shape", [(1, (5, 3), 2, 2, 3, 2), (2, (4,), 3, 1, 8, 2)])
def test_gradcheck(shape: tuple) -> None:
    value, lengths, locations, weights = make(shape, torch.float64)
    leaves = (value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda v, loc, w: deform_attn(v, lengths, loc, w), leaves, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_gradient_only_where_asked(wanted: tuple[int, ...]) -> None:
    value, lengths, locations, weights = make((2, (7, 4), 5, 2, 24, 3))
    everything = gradients(deform_attn, (value, lengths, locations, weights), torch.ones(2, 5, 48))
    leaves = [value, locations, weights]
    for i in wanted:
        leaves[i] = leaves[i].clone().requires_grad_()
    deform_attn(leaves[0], lengths, leaves[1], leaves[2]).sum().backward()
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, everything[i])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(dtype: torch.dtype) -> None:
    value, lengths, locations, weights = make((2, (9, 4), 6, 3, 16, 2), dtype)
    strided = (
        value.transpose(0, 1).contiguous().transpose(0, 1),
        lengths,
        locations.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        weights.transpose(1, 2).contiguous().transpose(1, 2),
    )
    plain = (value, lengths, locations, weights)
    assert torch.equal(deform_attn(*strided), deform_attn(*plain))
    weight = torch.randn(2, 48, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = gradients(deform_attn, strided, weight.transpose(1, 2))
    theirs = gradients(deform_attn, plain, weight.transpose(1, 2).contiguous())
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "shape",
    [(0, (4,), 3, 2, 8, 2), (2, (4,), 0, 2, 8, 2), (2, (4,), 3, 2, 0, 2), (2, (4,), 3, 2, 8, 0)],
)
def test_nothing_in_zeros_out(shape: tuple) -> None:
    value, lengths, locations, weights = make(shape)
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    out = deform_attn(value, lengths, locations, weights)
    assert torch.equal(out, torch.zeros(shape[0], shape[2], shape[3] * shape[4]))
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def one_sample(value: list[float], location: float) -> tuple[float, float, list[float]]:
    """Output, location gradient and value gradient of one sample with weight 2."""
    v = torch.tensor(value, dtype=torch.float64).view(1, -1, 1, 1).requires_grad_()
    loc = torch.full((1, 1, 1, 1, 1), location, dtype=torch.float64).requires_grad_()
    out = deform_attn(v, (len(value),), loc, torch.full_like(loc, 2.0).detach())
    grad_value, grad_location = torch.autograd.grad(out.sum(), (v, loc))
    return out.item(), grad_location.item(), grad_value.flatten().tolist()


def test_positions_and_the_slope_at_rows() -> None:
    value = [1.0, 5.0, 2.0, 8.0]  # x = 4 * loc - 0.5
    assert one_sample(value, 0.125) == (2.0, 4 * 2 * 4.0, [2, 0, 0, 0])  # x = 0: slope to the right
    assert one_sample(value, 0.25) == (6.0, 4 * 2 * 4.0, [1, 1, 0, 0])  # halfway
    assert one_sample(value, 0.875) == (16.0, 4 * 2 * -8.0, [0, 0, 0, 2])  # x = 3: falls to zero
    assert one_sample(value, 0.0) == (1.0, 4 * 2 * 1.0, [1, 0, 0, 0])  # x = -0.5: half of row 0
    assert one_sample(value, 1.0) == (8.0, 4 * 2 * -8.0, [0, 0, 0, 1])  # x = 3.5
    for outside in (-0.125, 1.125, -0.2, 7.0, -1e30, 1e30):  # x = -1, x = 4, further out
        assert one_sample(value, outside) == (0.0, 0.0, [0, 0, 0, 0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_location_gives_nan_there_alone(bad: float) -> None:
    value, lengths, locations, weights = make((2, (9,), 4, 2, 32, 3))
    expected = deform_attn(value, lengths, locations, weights)
    locations[1, 2, 0, 0, 1] = bad
    out = deform_attn(value, lengths, locations, weights)
    assert out[1, 2, :32].isnan().all()
    out[1, 2, :32] = expected[1, 2, :32]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("location", [0.4, 7.0])
def test_a_bad_weight_shows_there_alone(bad: float, location: float) -> None:
    value, lengths, locations, weights = make((2, (9,), 4, 2, 32, 3))
    locations[1, 2, 0, 0, 1] = location  # among the rows, or far beyond them
    expected = deform_attn(value, lengths, locations, weights)
    weights[1, 2, 0, 0, 1] = bad
    out = deform_attn(value, lengths, locations, weights)
    assert not out[1, 2, :32].isfinite().any()
    out[1, 2, :32] = expected[1, 2, :32]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_value_goes_to_the_samples_beside_its_row(bad: float) -> None:
    value = torch.ones(1, 9, 1, 4)
    value[0, 4, 0, 1] = bad
    # x = 2.75, 3.0, 3.25, 4.0, 4.75, 5.0; a sample on row 3 reads row 4 with a share of zero.
    locations = ((torch.tensor([2.75, 3.0, 3.25, 4.0, 4.75, 5.0]) + 0.5) / 9).view(1, 6, 1, 1, 1)
    out = deform_attn(value, (9,), locations, torch.ones(1, 6, 1, 1, 1))[0]
    plain = deform_attn(torch.ones(1, 9, 1, 4), (9,), locations, torch.ones(1, 6, 1, 1, 1))[0]
    assert torch.equal(out[:, [0, 2, 3]], plain[:, [0, 2, 3]])
    assert torch.equal(out[[0, 5], 1], plain[[0, 5], 1])
    told = torch.tensor(bad).expand(2)
    assert out[1, 1].isnan()
    torch.testing.assert_close(out[[2, 4], 1], told, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("lengths", "channels"), [((3, 4, 2), 20), ((30, 40, 20), 32)])
def test_rows_that_no_sample_touches_cannot_leak(lengths: tuple, channels: int) -> None:
    # Levels, heads and batch elements lie one after another: NaN all around must not come in.
    value, lengths, _, weights = make((1, lengths, 6, 1, channels, 4))
    value[:, : lengths[0]] = torch.nan
    value[:, lengths[0] + lengths[1] :] = torch.nan
    weights[:, :, :, 0] = 0
    weights[:, :, :, 2] = 0
    # Middle level: everywhere including both edges. Other levels: far outside.
    locations = torch.full_like(weights, 5.0)
    locations[:, :, :, 1] = torch.linspace(-0.3, 1.3, 24).view(1, 6, 1, 4)
    leaves = value, lengths, locations, weights
    out = deform_attn(*leaves)
    clean = deform_attn(value.nan_to_num(), lengths, locations, weights)
    assert torch.equal(out, clean)
    assert not any(
        g.isnan().any() for g in gradients(deform_attn, leaves, torch.ones(1, 6, channels))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [100, 20])
def test_same_bits_on_every_run_and_thread_count(
    queries: int, dtype: torch.dtype, thread_counts: tuple[int, ...]
) -> None:
    inputs = make((4, (64, 32), queries, 8, 32, 4), dtype)
    weight = torch.randn(4, queries, 256, generator=torch.Generator().manual_seed(2)).to(dtype)
    seen = []
    for threads, _ in itertools.product(thread_counts, range(3)):
        torch.set_num_threads(threads)
        seen.append((deform_attn(*inputs), *gradients(deform_attn, inputs, weight)))
    for other in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_dtypes(dtype: torch.dtype, weights_dtype: torch.dtype) -> None:
    value, lengths, locations, weights = make((2, (9, 4), 6, 3, 16, 2), dtype)
    weights, locations = weights.to(weights_dtype), locations.double()
    out = deform_attn(value, lengths, locations, weights)
    assert out.dtype == dtype
    assert_near(out, twin(value, lengths, locations, weights), TOLERANCE[dtype][0], 4.0)
    grads = gradients(deform_attn, (value, lengths, locations, weights), torch.ones(2, 6, 48))
    assert [g.dtype for g in grads] == [dtype, torch.float64, weights_dtype]


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, requires_grad: bool) -> None:
    value, lengths, locations, weights = make((2, (7, 4), 5, 2, 8, 3), dtype)
    for tensor in (value, locations, weights):
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(
        torch.ops.tal_fast.deform_attn, (value, list(lengths), locations, weights)
    )


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck_backward(needs: tuple[bool, bool]) -> None:
    value, lengths, locations, weights = make((2, (7, 4), 5, 2, 8, 3))
    arguments = (torch.randn(2, 5, 16), value, list(lengths), locations, weights, *needs)
    torch.library.opcheck(torch.ops.tal_fast.deform_attn_backward, arguments)


def test_second_derivative_says_so() -> None:
    value, lengths, locations, weights = make((1, (4,), 2, 1, 4, 1), torch.float64)
    value.requires_grad_()
    weights.requires_grad_()
    out = deform_attn(value, lengths, locations, weights)
    (grad,) = torch.autograd.grad(out.sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="deform_attn: second derivatives"):
        grad.sum().backward()


def test_compile_fullgraph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1).view_as(logits)
        return deform_attn(value, (9, 4), offsets + 0.5, weights)

    value, _, locations, weights = make((2, (9, 4), 6, 3, 16, 2))
    leaves = [t.requires_grad_() for t in (value, locations - 0.5, weights)]
    compiled = torch.autograd.grad(attend(*leaves).sum(), leaves)
    plain = torch.autograd.grad(attend._torchdynamo_orig_callable(*leaves).sum(), leaves)
    torch.testing.assert_close(compiled, plain)


def test_compile_dynamic_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deform_attn(value, (value.shape[1],), locations, weights) * 2

    first = 0
    # torch assumes that sizes which are equal in the first call stay equal: none are.
    for batch, length, queries in ((5, 9, 7), (3, 12, 7), (2, 30, 11), (4, 8, 40)):
        value, lengths, locations, weights = make((batch, (length,), queries, 2, 8, 3))
        leaves = [t.requires_grad_() for t in (value, locations, weights)]
        out = attend(*leaves)
        assert torch.equal(out, deform_attn(value, lengths, locations, weights) * 2)
        torch.autograd.grad(out.sum(), leaves)
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    value, lengths, locations, weights = make((2, (9,), 6, 2, 16, 2))
    compiled = torch.compile(
        lambda v, loc, w: deform_attn(v * 2, lengths, loc, w).sum(1), fullgraph=True
    )
    expected = deform_attn(value * 2, lengths, locations, weights).sum(1)
    torch.testing.assert_close(compiled(value, locations, weights), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_locations_wide(dtype: torch.dtype) -> None:
    value, lengths, locations, weights = make((2, (300,), 6, 2, 16, 2))
    expected = deform_attn(value.to(dtype), lengths, locations, weights)
    with torch.autocast("cpu", dtype):
        out = deform_attn(value.to(dtype), lengths, locations, weights)
        # Already rounded by the caller's own arithmetic: accepted, and computed in float32.
        rounded = deform_attn(value, lengths, locations.to(dtype), weights)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(rounded, deform_attn(value, lengths, locations.to(dtype).float(), weights))


def bad(**changes: object) -> dict[str, object]:
    value, lengths, locations, weights = make((2, (7, 4), 5, 2, 8, 3))
    inputs: dict[str, object] = {
        "value": value,
        "level_lengths": lengths,
        "sampling_locations": locations,
        "attention_weights": weights,
    }
    return inputs | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": torch.ones(2, 11, 16)}, r"value of shape \[B, S, H, D\], got \[2, 11, 16\]"),
        ({"value": torch.ones(2, 11, 2, 8).int()}, "value of dtype .*, got int32"),
        (
            {"level_lengths": (7, 5)},
            r"level_lengths that sum to value.shape\[1\] = 11, got \(7, 5\)",
        ),
        ({"level_lengths": ()}, r"level_lengths that sum to .* got \(\)"),
        ({"level_lengths": (12, -1)}, r"level_lengths between 1 and 2\^24, got \(12, -1\)"),
        ({"level_lengths": (11, 0)}, r"level_lengths between 1 and 2\^24, got \(11, 0\)"),
        ({"level_lengths": (11,)}, r"sampling_locations of shape .* L = 1, got \[2, 5, 2, 2, 3\]"),
        ({"sampling_locations": torch.ones(2, 5, 2, 2)}, r"sampling_locations of shape .* got \["),
        (
            {"sampling_locations": torch.ones(3, 5, 2, 2, 3)},
            r"sampling_locations of shape .* B = 2, H = 2 and L = 2, got \[3, 5, 2, 2, 3\]",
        ),
        ({"attention_weights": torch.ones(2, 5, 1, 2, 3)}, "attention_weights of shape .* H = 2"),
        (
            {"attention_weights": torch.ones(2, 5, 2, 2, 4)},
            r"shape of sampling_locations, got \[2, 5, 2, 2, 4\] and \[2, 5, 2, 2, 3\]",
        ),
        (
            {"sampling_locations": torch.ones(2, 5, 2, 2, 3).bfloat16()},
            "sampling_locations of dtype float32 or float64 .* got bfloat16",
        ),
        (
            {"attention_weights": torch.ones(2, 5, 2, 2, 3).long()},
            "attention_weights of a floating-point dtype, got int64",
        ),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(
        RuntimeError, match=f"deform_attn: expected {message}|deform_attn: .*{message}"
    ):
        deform_attn(**bad(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("grad", [torch.ones(2, 5, 17), torch.ones(2, 5, 16).double()])
def test_backward_refuses_a_wrong_gradient(grad: Tensor) -> None:
    value, lengths, locations, weights = make((2, (7, 4), 5, 2, 8, 3))
    with pytest.raises(RuntimeError, match="deform_attn_backward: expected grad of the shape"):
        torch.ops.tal_fast.deform_attn_backward(
            grad, value, lengths, locations, weights, True, True
        )


@pytest.mark.parametrize("channels", [64, 63, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_is_widened_and_rounded_right(
    dtype: torch.dtype, channels: int, device: str
) -> None:
    # One row, sampled exactly: the output is weight * value, computed in float32, rounded once.
    step = 29 if device == "cuda-emulated" else 1  # not all of them, for time
    count = -(-(2**16) // (channels * step)) * channels
    bits = (torch.arange(count, dtype=torch.int32) * step).to(torch.int16)
    value = bits.view(dtype).view(-1, 1, 1, channels)
    locations = torch.full((len(value), 1, 1, 1, 1), 0.5)
    generator = torch.Generator().manual_seed(0)
    for weights in (
        torch.ones_like(locations),
        torch.rand(locations.shape, generator=generator) + 0.5,
        torch.rand(locations.shape, generator=generator) * 1e-7,
    ):
        out = deform_attn(value, (1,), locations, weights).view(-1, channels)
        expected = (value.float().view(-1, channels) * weights.view(-1, 1)).to(dtype)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
