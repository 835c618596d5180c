# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tal_fast.ops import deform_attn, deform_attn_fused
from tal_fast.reference.deform_attn_fused import deform_attn_fused as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (out and grad of value and logits, grad of offsets and reference points), each relative to the
# scale of the quantity.
TOLERANCE = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-5, 2e-4),
    torch.float16: (1e-2, 2e-2),
    torch.bfloat16: (4e-2, 5e-2),
}
# (B, lengths, Q, H, D, P): TadTR's shape small, odd sizes, several levels, softmax groups of 4 and
# others, fewer samples than a vector, one of everything.
SHAPES = [
    (2, (12,), 9, 8, 32, 4),
    (1, (1,), 1, 1, 1, 1),
    (2, (7, 4, 1), 5, 3, 5, 3),
    (3, (16, 8), 11, 2, 8, 4),
    (2, (16, 8), 3, 2, 16, 2),
    (1, (9,), 70, 2, 16, 1),
    (1, (20, 10, 5), 3, 2, 33, 30),
    (33, (5,), 2, 3, 4, 4),
    (2, (6, 5), 20, 8, 32, 4),
    (2, (30, 11), 5, 3, 16, 2),  # many rows for the samples: the backward works in place
    (1, (40,), 6, 8, 32, 4),
]


class Inputs(NamedTuple):
    value: Tensor
    level_lengths: tuple[int, ...]
    reference_points: Tensor
    sampling_offsets: Tensor
    attention_logits: Tensor
    padding_mask: Tensor | None

    def leaves(self) -> list[Tensor]:
        return [self[i].detach().clone().requires_grad_() for i in (0, 2, 3, 4)]


def make(
    shape: tuple[int, tuple[int, ...], int, int, int, int],
    dtype: torch.dtype = torch.float32,
    components: int = 1,
    padded: bool = True,
    seed: int = 0,
) -> Inputs:
    """Random inputs; some locations are out of range, none is near an integer row."""
    batch, lengths, queries, heads, channels, points = shape
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(batch, sum(lengths), heads, channels, generator=generator).to(dtype)
    samples = (batch, queries, heads, len(lengths), points)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    reference = torch.rand(batch, queries, len(lengths), components, generator=generator)
    reference = (reference * 0.5 + 0.25).to(wide)
    rows = torch.tensor(lengths, dtype=torch.float64).view(1, 1, 1, -1, 1)
    per_location = 1 / rows
    if components == 2:
        per_location = reference[:, :, None, :, None, 1].double() * 0.5 / points
    centre = reference[:, :, None, :, None, 0].double()
    # Offsets rounded to the dtype first, then moved away from integer positions by changing them
    # once more where they are too near: rounding again moves them by far less.
    offsets = torch.randn(samples, generator=generator, dtype=torch.float64)
    offsets = (offsets * (0.5 / per_location / 2 + 1)).to(dtype)
    for _ in range(4):
        x = (centre + offsets.double() * per_location) * rows - 0.5
        near = (x - x.round()).abs() < 0.05
        moved = (offsets.double() + 0.17 / (rows * per_location)).to(dtype)
        offsets = torch.where(near, moved, offsets)
    logits = torch.randn(samples, generator=generator).to(dtype)
    mask = torch.rand(batch, sum(lengths), generator=generator) < 0.3 if padded else None
    return Inputs(value, lengths, reference, offsets, logits, mask)


def gradients(op: Callable[..., Tensor], inputs: Inputs, weight: Tensor) -> tuple[Tensor, ...]:
    value, reference, offsets, logits = leaves = inputs.leaves()
    out = op(value, inputs.level_lengths, reference, offsets, logits, inputs.padding_mask)
    return torch.autograd.grad(out, leaves, weight.to(out.dtype))


def output_weight(shape: tuple, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape[0], shape[2], shape[3] * shape[4], generator=generator).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, bound: float, scale: float) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=bound, atol=bound * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_twin(shape: tuple, components: int, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype, components)
    bound, position_bound = TOLERANCE[dtype]
    out = deform_attn_fused(*inputs)
    assert out.shape == (shape[0], shape[2], shape[3] * shape[4])
    assert out.dtype == dtype
    assert_near(out, twin(*inputs), bound, inputs.value.abs().max().item())

    weight = output_weight(shape, dtype)
    ours = gradients(deform_attn_fused, inputs, weight)
    wide = Inputs(*(t.double() if isinstance(t, Tensor) else t for t in inputs[:5]), inputs[5])
    theirs = gradients(twin, wide, weight.double())
    assert [g.dtype for g in ours] == [inputs[i].dtype for i in (0, 2, 3, 4)]
    for mine, reference, limit in zip(
        ours, theirs, (bound, position_bound, position_bound, bound), strict=True
    ):
        size = inputs.value.abs().max().item() * weight.abs().max().item() * shape[4] ** 0.5
        rows = max(shape[1]) if limit == position_bound else 1
        assert_near(mine, reference, limit, max(reference.abs().max().item(), rows * size / 8))


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_without_a_video_or_a_query(batch: int, queries: int) -> None:
    inputs = make((batch, (4,), queries, 2, 8, 2))
    assert deform_attn_fused(*inputs).shape == twin(*inputs).shape == (batch, queries, 16)


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck(components: int, padded: bool) -> None:
    inputs = make((2, (5, 3), 2, 2, 3, 2), torch.float64, components, padded)

    def attend(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return deform_attn_fused(
            value, inputs.level_lengths, reference, offsets, logits, inputs.padding_mask
        )

    assert torch.autograd.gradcheck(attend, inputs.leaves(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_softmax_locations_and_deform_attn(components: int, padded: bool) -> None:
    """Bit for bit, but for the softmax, which may differ in the last bits."""
    inputs = make((3, (100, 37), 11, 8, 32, 4), torch.float32, components, padded)
    value, lengths, reference, offsets, logits, mask = inputs
    if mask is not None:
        value = value.masked_fill(mask[..., None, None], 0.0)
    expanded = reference[:, :, None, :, None]
    if components == 1:
        locations = expanded[..., 0] + offsets / offsets.new_tensor(lengths)[:, None]
    else:
        locations = expanded[..., 0] + offsets * (expanded[..., 1] * (0.5 / 4))
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    out = deform_attn_fused(*inputs)
    torch.testing.assert_close(out, deform_attn(value, lengths, locations, weights))
    # One sample per query and head: the weight is exactly one, so the locations must agree.
    single = (offsets[:, :, :, :1, :1], logits[:, :, :, :1, :1])
    where = expanded[:, :, :, :1]
    if components == 1:
        locations = where[..., 0] + single[0] / 100.0
    else:
        locations = where[..., 0] + single[0] * (where[..., 1] * 0.5)
    assert torch.equal(
        deform_attn_fused(value[:, :100], (100,), reference[:, :, :1], *single),
        deform_attn(value[:, :100], (100,), locations, torch.ones_like(locations)),
    )


def test_softmax_of_extreme_logits() -> None:
    # The value is the number of the row, so the output says which weights were used.
    value = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float32).view(1, 4, 1, 1)
    reference = torch.full((1, 1, 1, 1), 0.125)
    for group in (4, 3):  # both forms of the softmax
        offsets = torch.arange(float(group)).view(1, 1, 1, 1, group)

        def attend(logits: list[float], offsets: Tensor = offsets) -> float:
            out = deform_attn_fused(
                value, (4,), reference, offsets, torch.tensor(logits).view_as(offsets)
            )
            return out.item()

        low = [-1e30] * (group - 1)
        assert attend([*low, 1e30]) == float(2 ** (group - 1))
        assert attend([*low, -1e29]) == float(2 ** (group - 1))
        assert attend([*[-torch.inf] * (group - 1), 5.0]) == float(2 ** (group - 1))
        expected = torch.tensor([*[-80.0] * (group - 1), 0.0], dtype=torch.float64).softmax(0)
        expected = expected @ value.flatten()[:group].double()
        assert attend([*[-80.0] * (group - 1), 0.0]) == pytest.approx(expected.item(), rel=1e-6)
        for bad in ([*low, torch.nan], [torch.inf, *low], [-torch.inf] * group):
            assert torch.tensor(attend(bad)).isnan()


def test_softmax_is_exact_to_two_units() -> None:
    # Two points on rows 0 and 1 holding 0 and 1: the output is the second one's weight.
    value = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    logits = torch.linspace(-60, 60, 20_001).view(1, -1, 1, 1, 1)
    for filler in (0, 2):  # groups of 2 and 4
        rest = torch.full((1, 20_001, 1, 1, filler), -torch.inf)
        both = torch.cat((torch.zeros_like(logits), logits, rest), dim=-1)
        offsets = torch.tensor([0.0, 1.0] + [0.0] * filler).expand_as(both)
        reference = torch.full((1, 20_001, 1, 1), 0.25)
        out = deform_attn_fused(value, (2,), reference, offsets, both)
        expected = both.double().softmax(-1)[..., 1].flatten()
        error = (out.flatten().double() - expected).abs() / expected
        assert error.max().item() < 4 * 2.0**-24 + 2.0**-23


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, (9, 6), 20, 2, 24, 4), (3, (40, 6), 7, 3, 32, 2)])
def test_padding_may_hold_anything(shape: tuple, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype)
    mask = inputs.padding_mask
    assert mask is not None
    mask[1] = False  # an element without padding ...
    mask[2] = True  # ... and one of nothing else
    dirty = inputs.value.clone()
    dirty[mask] = torch.nan
    dirty[0, mask[0]] = torch.inf
    clean = inputs._replace(value=inputs.value.masked_fill(mask[..., None, None], 0.0))
    inputs = inputs._replace(value=dirty)
    assert torch.equal(
        deform_attn_fused(*inputs), deform_attn_fused(*clean._replace(padding_mask=None))
    )
    assert not deform_attn_fused(*inputs)[2].any()
    weight = output_weight(shape, dtype)
    ours = gradients(deform_attn_fused, inputs, weight)
    theirs = gradients(deform_attn_fused, clean._replace(padding_mask=None), weight)
    assert not ours[0][mask].any()
    assert torch.equal(ours[0][~mask], theirs[0][~mask])
    assert theirs[0][mask].any(), "the mask hides rows that samples do touch"
    assert all(torch.equal(x, y) for x, y in zip(ours[1:], theirs[1:], strict=True))


@pytest.mark.parametrize(
    "wanted", [w for n in range(1, 5) for w in itertools.combinations(range(4), n)]
)
def test_gradient_only_where_asked(wanted: tuple[int, ...]) -> None:
    inputs = make((2, (7, 4), 5, 2, 24, 3), components=2)
    everything = gradients(deform_attn_fused, inputs, torch.ones(2, 5, 48))
    leaves = [inputs[i].clone().requires_grad_(n in wanted) for n, i in enumerate((0, 2, 3, 4))]
    value, *rest = leaves
    out = deform_attn_fused(value, inputs.level_lengths, *rest, inputs.padding_mask)
    out.sum().backward()
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, everything[i])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_of_one_projection_and_any_strides(dtype: torch.dtype) -> None:
    inputs = make((2, (9, 4), 6, 3, 16, 2), dtype)
    value, lengths, reference, offsets, logits, mask = inputs
    expected = deform_attn_fused(*inputs)
    weight = output_weight((2, (9, 4), 6, 3, 16, 2), dtype)
    theirs = gradients(deform_attn_fused, inputs, weight)

    projection = torch.cat((offsets.flatten(2), logits.flatten(2)), dim=-1).requires_grad_()
    halves = [half.view(offsets.shape) for half in projection.chunk(2, dim=-1)]
    out = deform_attn_fused(value, lengths, reference, *halves, mask)
    assert torch.equal(out, expected)
    (ours,) = torch.autograd.grad(out, projection, weight)
    assert torch.equal(ours, torch.cat([g.flatten(2) for g in theirs[2:]], dim=-1))

    def reversed_strides(t: Tensor) -> Tensor:
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order)

    assert mask is not None
    strided = Inputs(
        reversed_strides(value),
        lengths,
        reversed_strides(reference),
        reversed_strides(offsets),
        reversed_strides(logits),
        reversed_strides(mask),
    )
    assert not strided.sampling_offsets.is_contiguous()
    assert torch.equal(deform_attn_fused(*strided), expected)
    across = gradients(deform_attn_fused, strided, reversed_strides(weight))
    assert all(torch.equal(x, y) for x, y in zip(across, theirs, strict=True))


def test_expanded_reference_and_flat_logits() -> None:
    inputs = make((3, (9, 4), 6, 3, 16, 2))
    value, lengths, reference, offsets, logits, mask = inputs
    shared = reference[:1].clone().requires_grad_()
    flat = logits.flatten(3).clone().requires_grad_()
    out = deform_attn_fused(value, lengths, shared.expand(3, -1, -1, -1), offsets, flat, mask)
    copied = inputs._replace(reference_points=shared.detach().expand(3, -1, -1, -1).contiguous())
    assert torch.equal(out, deform_attn_fused(*copied))
    by_shared, by_flat = torch.autograd.grad(out.sum(), (shared, flat))
    _, by_reference, _, by_logits = gradients(deform_attn_fused, copied, torch.ones(3, 6, 48))
    torch.testing.assert_close(by_shared, by_reference.sum(0, keepdim=True))
    assert torch.equal(by_flat, by_logits.flatten(3))


@pytest.mark.parametrize(
    "shape",
    [(0, (4,), 3, 2, 8, 2), (2, (4,), 0, 2, 8, 2), (2, (4,), 3, 2, 0, 2), (2, (4,), 3, 2, 8, 0)],
)
def test_nothing_in_zeros_out(shape: tuple) -> None:
    batch, lengths, queries, heads, channels, points = shape
    leaves = [
        torch.ones(batch, sum(lengths), heads, channels, requires_grad=True),
        torch.ones(batch, queries, 1, 2, requires_grad=True),
        torch.ones(batch, queries, heads, 1, points, requires_grad=True),
        torch.ones(batch, queries, heads, 1, points, requires_grad=True),
    ]
    out = deform_attn_fused(leaves[0], lengths, *leaves[1:])
    assert torch.equal(out, torch.zeros(batch, queries, heads * channels))
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))


def test_the_slope_at_rows() -> None:
    value = torch.tensor([1.0, 5.0, 2.0, 8.0], dtype=torch.float64).view(1, 4, 1, 1)
    logits = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    for row, slope in ((0, 4.0), (1, -3.0), (2, 6.0), (3, -8.0)):
        centre = torch.full((1, 1, 1, 1), 0.125, dtype=torch.float64, requires_grad=True)
        offset = torch.full((1, 1, 1, 1, 1), float(row), dtype=torch.float64, requires_grad=True)
        out = deform_attn_fused(value, (4,), centre, offset, logits)
        assert out.item() == value[0, row].item()
        by_centre, by_offset = torch.autograd.grad(out.sum(), (centre, offset))
        assert (by_centre.item(), by_offset.item()) == (4 * slope, slope)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_offset_gives_nan_there_alone(bad: float) -> None:
    inputs = make((2, (9,), 4, 2, 32, 3))
    expected = deform_attn_fused(*inputs)
    inputs.sampling_offsets[1, 2, 0, 0, 1] = bad
    out = deform_attn_fused(*inputs)
    assert out[1, 2, :32].isnan().all()
    out[1, 2, :32] = expected[1, 2, :32]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_every_run_and_thread_count(
    dtype: torch.dtype, thread_counts: tuple[int, ...]
) -> None:
    shape = (4, (64, 32), 600, 8, 32, 4)
    inputs = make(shape, dtype, components=2)
    weight = output_weight(shape, dtype)
    seen = []
    for threads, _ in itertools.product(thread_counts, range(2)):
        torch.set_num_threads(threads)
        seen.append((deform_attn_fused(*inputs), *gradients(deform_attn_fused, inputs, weight)))
    for other in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


@pytest.mark.parametrize(
    ("value_type", "offset_type", "logit_type"),
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.bfloat16),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_mixed_dtypes(
    value_type: torch.dtype, offset_type: torch.dtype, logit_type: torch.dtype
) -> None:
    shape = (2, (9, 4), 6, 3, 16, 4)
    value, lengths, reference, offsets, logits, mask = make(shape, torch.bfloat16, components=2)
    inputs = Inputs(
        value.to(value_type), lengths, reference, offsets.to(offset_type), logits.to(logit_type),
        mask,
    )  # fmt: skip
    out = deform_attn_fused(*inputs)
    assert out.dtype == value_type
    assert_near(out, twin(*inputs), TOLERANCE[value_type][0] + 1e-5, 4.0)
    grads = gradients(deform_attn_fused, inputs, torch.ones(2, 6, 48))
    assert [g.dtype for g in grads] == [value_type, torch.float32, offset_type, logit_type]
    wide = Inputs(*(t.double() if isinstance(t, Tensor) else t for t in inputs[:5]), mask)
    for mine, theirs in zip(
        grads, gradients(twin, wide, torch.ones(2, 6, 48).double()), strict=True
    ):
        assert_near(mine, theirs, 4e-2, theirs.abs().max().item())


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, padded: bool, requires_grad: bool) -> None:
    inputs = make((2, (7, 4), 5, 2, 8, 3), dtype, components=2, padded=padded)
    value, reference, offsets, logits = (
        inputs[i].requires_grad_(requires_grad) for i in (0, 2, 3, 4)
    )
    torch.library.opcheck(
        torch.ops.tal_fast.deform_attn_fused,
        (value, list(inputs.level_lengths), reference, offsets, logits, inputs.padding_mask),
    )


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_opcheck_backward(needs: tuple[bool, bool, bool]) -> None:
    inputs = make((2, (7, 4), 5, 2, 8, 3), components=2)
    arguments = (torch.randn(2, 5, 16), inputs[0], list(inputs[1]), *inputs[2:], *needs)
    torch.library.opcheck(torch.ops.tal_fast.deform_attn_fused_backward, arguments)


def test_second_derivative_says_so() -> None:
    inputs = make((1, (4,), 2, 1, 4, 1), torch.float64)
    value, reference, offsets, logits = inputs.leaves()
    out = deform_attn_fused(value, (4,), reference, offsets, logits)
    (grad,) = torch.autograd.grad(out.sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="deform_attn_fused: second derivatives"):
        grad.sum().backward()


def test_compile_fullgraph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(value: Tensor, projection: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        offsets, logits = (half.view(2, 6, 3, 2, 2) for half in projection.chunk(2, dim=-1))
        return deform_attn_fused(value, (9, 4), reference.sigmoid(), offsets, logits, mask)

    value, _, reference, offsets, logits, mask = make((2, (9, 4), 6, 3, 16, 2), components=2)
    projection = torch.cat((offsets.flatten(2), logits.flatten(2)), dim=-1)
    leaves = [t.requires_grad_() for t in (value, projection, reference)]
    compiled = torch.autograd.grad(attend(*leaves, mask).sum(), leaves)
    plain = torch.autograd.grad(attend._torchdynamo_orig_callable(*leaves, mask).sum(), leaves)
    torch.testing.assert_close(compiled, plain)


def test_compile_dynamic_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(value: Tensor, *rest: Tensor) -> Tensor:
        return deform_attn_fused(value, (value.shape[1],), *rest) * 2

    first = 0
    # torch assumes that sizes which are equal in the first call stay equal: none are.
    for batch, length, queries in ((5, 9, 7), (3, 12, 7), (2, 30, 11), (4, 8, 40)):
        inputs = make((batch, (length,), queries, 2, 8, 3), components=2)
        value, *rest = inputs.leaves()
        out = attend(value, *rest, inputs.padding_mask)
        assert torch.equal(out, deform_attn_fused(*inputs) * 2)
        torch.autograd.grad(out.sum(), [value, *rest])
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_positions_wide(dtype: torch.dtype) -> None:
    inputs = make((2, (300,), 6, 2, 16, 2), dtype)
    expected = deform_attn_fused(*inputs)
    rounded = inputs._replace(reference_points=inputs.reference_points.to(dtype))
    with torch.autocast("cpu", dtype):
        out = deform_attn_fused(*inputs)
        # Already rounded by the caller's own arithmetic: accepted, and computed in float32.
        from_rounded = deform_attn_fused(*rounded)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    widened = inputs._replace(reference_points=rounded.reference_points.float())
    assert torch.equal(from_rounded, deform_attn_fused(*widened))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": torch.ones(2, 11, 16)}, r"value of shape \[B, S, H, D\], got \[2, 11, 16\]"),
        ({"value": torch.ones(2, 11, 2, 8).int()}, "value of dtype .*, got int32"),
        (
            {"level_lengths": (7, 5)},
            r"level_lengths that sum to value.shape\[1\] = 11, got \(7, 5\)",
        ),
        ({"level_lengths": (11, 0)}, r"level_lengths between 1 and 2\^24, got \(11, 0\)"),
        (
            {"sampling_offsets": torch.ones(2, 5, 2, 1, 3)},
            r"sampling_offsets of shape .* B = 2, H = 2 and L = 2, got \[2, 5, 2, 1, 3\]",
        ),
        ({"sampling_offsets": torch.ones(2, 5, 2, 6)}, r"sampling_offsets of shape .* got \["),
        (
            {"attention_logits": torch.ones(2, 5, 2, 5)},
            r"attention_logits of shape .* like sampling_offsets \[2, 5, 2, 2, 3\], "
            r"got \[2, 5, 2, 5\]",
        ),
        (
            {"attention_logits": torch.ones(2, 5, 2, 3, 2)},
            r"attention_logits of shape .* got \[2, 5, 2, 3, 2\]",
        ),
        (
            {"reference_points": torch.ones(2, 5, 2, 3)},
            r"reference_points of shape .* B = 2, Q = 5 and L = 2, got \[2, 5, 2, 3\]",
        ),
        ({"reference_points": torch.ones(1, 5, 2, 1)}, "reference_points of shape"),
        (
            {"reference_points": torch.ones(2, 5, 2, 1).bfloat16()},
            "reference_points of dtype float32 or float64 .* got bfloat16",
        ),
        (
            {"sampling_offsets": torch.ones(2, 5, 2, 2, 3).long()},
            "sampling_offsets of a floating-point dtype, got int64",
        ),
        (
            {"attention_logits": torch.ones(2, 5, 2, 2, 3).long()},
            "attention_logits of a floating-point dtype, got int64",
        ),
        (
            {"padding_mask": torch.zeros(2, 10, dtype=torch.bool)},
            r"padding_mask of shape \[B, S\] = \[2, 11\], got \[2, 10\]",
        ),
        ({"padding_mask": torch.zeros(2, 11).int()}, "padding_mask of dtype bool, got int32"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    inputs = make((2, (7, 4), 5, 2, 8, 3))._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"^deform_attn_fused: expected {message}"):
        deform_attn_fused(*inputs)


@pytest.mark.parametrize("grad", [torch.ones(2, 5, 17), torch.ones(2, 5, 16).double()])
def test_backward_refuses_a_wrong_gradient(grad: Tensor) -> None:
    inputs = make((2, (7, 4), 5, 2, 8, 3))
    with pytest.raises(RuntimeError, match="deform_attn_fused_backward: expected grad of the sha"):
        torch.ops.tal_fast.deform_attn_fused_backward(grad, *inputs, True, True, True)
