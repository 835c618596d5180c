# SPDX-License-Identifier: Apache-2.0
"""local_attn against its twin, at the edges of band, video and padding, and under torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import emulated as emulator
import pytest
import torch
from torch import Tensor

from tal_fast.ops import local_attn
from tal_fast.reference.local_attn import local_attn as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Of result and gradients, relative to the largest entry.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}
# (B, T, H, D, window): channels around whole vectors, tiles that end anywhere, several blocks of
# rows, windows of one row, even ones, and wider than the video.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 13, 3, 5, 4),
    (1, 40, 4, 16, 19),
    (33, 5, 2, 8, 3),
    (2, 101, 2, 33, 7),
    (1, 97, 1, 128, 19),
    (1, 64, 1, 20, 1),
    (2, 7, 2, 3, 2),
    (1, 130, 1, 24, 61),
    (3, 9, 2, 8, 99),
]


class Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    window: int
    mask: Tensor | None

    def leaves(self) -> list[Tensor]:
        return [tensor.detach().clone().requires_grad_() for tensor in self[:3]]


def make(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype = torch.float32,
    padded: bool = True,
    seed: int = 0,
) -> Inputs:
    """Random inputs; padding lies anywhere, also between rows."""
    *size, window = shape
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(size, generator=generator).to(dtype) for _ in range(3))
    mask = torch.rand(size[:2], generator=generator) < 0.3 if padded else None
    return Inputs(query * 2, key, value, window, mask)


def output_weight(inputs: Inputs) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(inputs.query.shape, generator=generator).to(inputs.query.dtype)


def results(op: Callable[..., Tensor], inputs: Inputs, weight: Tensor) -> tuple[Tensor, ...]:
    """The result and the gradients of query, key and value."""
    leaves = inputs.leaves()
    out = op(*leaves, inputs.window, inputs.mask)
    return (out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype)))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_twin(shape: tuple, padded: bool, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype, padded)
    weight = output_weight(inputs)
    ours = results(local_attn, inputs, weight)
    wide = Inputs(*(tensor.double() for tensor in inputs[:3]), *inputs[3:])
    for mine, reference in zip(ours, results(twin, wide, weight), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == inputs.query.shape
        assert mine.is_contiguous()
        bound = TOLERANCE[dtype]
        scale = max(reference.abs().max().item(), 1e-3)
        torch.testing.assert_close(mine.double(), reference, rtol=bound, atol=bound * scale)


@pytest.mark.parametrize("size", [(0, 5, 2, 4), (2, 0, 2, 4), (2, 5, 0, 4), (2, 5, 2, 0)])
def test_nothing_in_nothing_out(size: tuple[int, ...]) -> None:
    leaves = [torch.ones(size, requires_grad=True) for _ in range(3)]
    out = local_attn(*leaves, 3, torch.zeros(size[:2], dtype=torch.bool))
    assert out.shape == size
    assert all(grad.shape == size for grad in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("window", [1, 2, 5, 99])
@pytest.mark.parametrize("padded", [False, True])
def test_gradcheck(window: int, padded: bool, device: str) -> None:
    inputs = make((2, 7, 2, 3, window), torch.float64, padded)
    assert torch.autograd.gradcheck(
        lambda *leaves: local_attn(*leaves, window, inputs.mask),
        inputs.leaves(),
        eps=1e-6,
        fast_mode=device == "cuda-emulated",  # along random directions: each call takes long there
    )


@pytest.mark.parametrize(("window", "seen"), [(1, 0), (2, 1), (3, 1), (4, 2), (13, 6), (10**12, 9)])
def test_each_side_sees_half_a_window(window: int, seen: int) -> None:
    # Equal scores: the weight of row s in row t says whether t sees s.
    same = torch.zeros(1, 9, 1, 9)
    weights = local_attn(same, same, torch.eye(9).view(1, 9, 1, 9), window).squeeze()
    rows = torch.arange(9)
    expected = ((rows[:, None] - rows).abs() <= seen).float()
    torch.testing.assert_close(weights, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 101, 2, 24, 7), (3, 30, 1, 7, 99)])
def test_padding_may_hold_anything(shape: tuple, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype)
    mask = inputs.mask
    assert mask is not None
    mask[1] = False  # an element without padding ...
    mask[2] = True  # ... and one of nothing else
    weight = output_weight(inputs)
    clean = results(local_attn, inputs, weight)
    for bad in (torch.nan, torch.inf):
        for tensor in (*inputs[:3], weight):
            tensor[mask] = bad
        assert_same(results(local_attn, inputs, weight), clean)
    assert not any(part[mask].any() for part in clean)
    assert all(part[~mask].any() for part in clean)


def test_padding_behind_a_video_changes_no_bit() -> None:
    alone = make((1, 75, 2, 32, 9), padded=False)
    padding = torch.full((1, 96, 2, 32), torch.nan)
    longer = [torch.cat((tensor, padding), 1) for tensor in alone[:3]]
    mask = torch.arange(171)[None] >= 75
    weight = output_weight(alone)
    inputs = Inputs(*longer, 9, mask)
    ours = results(local_attn, inputs, torch.cat((weight, padding), 1))
    assert_same(tuple(part[:, :75] for part in ours), results(local_attn, alone, weight))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_nan_stays_in_its_window(part: int) -> None:
    shape = (1, 120, 2, 20, 7)
    inputs = make(shape, padded=False)
    weight = output_weight(inputs)
    clean = results(local_attn, inputs, weight)
    inputs[part][0, 52, 0] = torch.nan  # of one head
    ours = results(local_attn, inputs, weight)
    # A row's result is its window's; its gradient is that of all rows that see it.
    reach = [0 if part == 0 else 3, *(3 if part == 0 else 6 for _ in range(3))]
    for mine, theirs, far in zip(ours, clean, reach, strict=True):
        touched = mine.isnan().any(-1).any(0)  # [T, H]
        assert not touched[:, 1].any()
        assert not touched[: 52 - far, 0].any()
        assert not touched[53 + far :, 0].any()
        assert torch.equal(mine[:, ~touched[:, 0]], theirs[:, ~touched[:, 0]])
    assert ours[0][0, 52 - reach[0] : 53 + reach[0], 0].isnan().any(-1).all()


def test_softmax_of_extreme_scores() -> None:
    value = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    query = torch.ones(1, 3, 1, 1)

    def middle(*scores: float) -> float:
        return local_attn(query, torch.tensor(scores).view(1, 3, 1, 1), value, 3)[0, 1].item()

    assert middle(-1e30, 1e30, -1e30) == 2.0
    assert middle(3e38, -3e38, -3e38) == 1.0
    assert middle(-torch.inf, 5.0, -torch.inf) == 2.0
    assert middle(-80.0, -80.0, 0.0) == pytest.approx(4.0, rel=1e-6)
    for bad in ([torch.nan, 0.0, 0.0], [torch.inf, 0.0, 0.0], [-torch.inf] * 3):
        assert torch.tensor(middle(*bad)).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [32, 7])
def test_any_strides(channels: int, dtype: torch.dtype) -> None:
    inputs = make((2, 21, 3, channels, 5), dtype)
    weight = output_weight(inputs)
    expected = results(local_attn, inputs, weight)

    # Three parts of one projection, as a layer has them.
    joined = torch.cat([tensor.flatten(2) for tensor in inputs[:3]], -1).requires_grad_()
    parts = [part.unflatten(-1, (3, channels)) for part in joined.chunk(3, -1)]
    out = local_attn(*parts, inputs.window, inputs.mask)
    (by_joined,) = torch.autograd.grad(out, joined, weight)
    assert torch.equal(out, expected[0])
    assert torch.equal(by_joined, torch.cat([grad.flatten(2) for grad in expected[1:]], -1))

    def reversed_strides(tensor: Tensor) -> Tensor:
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).contiguous().permute(order)

    assert inputs.mask is not None
    leaves = [reversed_strides(tensor).requires_grad_() for tensor in inputs[:3]]
    out = local_attn(*leaves, inputs.window, reversed_strides(inputs.mask))
    grads = torch.autograd.grad(out, leaves, reversed_strides(weight))
    assert_same((out, *grads), expected)
    # A gradient that is one number everywhere has strides of 0.
    ones = results(local_attn, inputs, torch.ones_like(weight))
    leaves = inputs.leaves()
    out = local_attn(*leaves, inputs.window, inputs.mask)
    assert_same(torch.autograd.grad(out.sum(), leaves), ones[1:])


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_kept_weights_change_no_bit(shape: tuple, padded: bool, dtype: torch.dtype) -> None:
    inputs = make(shape, dtype, padded)
    grad = output_weight(inputs)
    out, weights = torch.ops.tal_fast.local_attn(*inputs, True)
    assert torch.equal(out, torch.ops.tal_fast.local_attn(*inputs, False)[0])
    seen = torch.ones(inputs.query.shape[:3]) if inputs.mask is None else ~inputs.mask[..., None]
    torch.testing.assert_close(
        weights.sum(-1), seen.to(weights.dtype).expand(weights.shape[:-1]), rtol=0, atol=1e-6
    )

    def backward(kept: Tensor | None) -> tuple[Tensor, ...]:
        return torch.ops.tal_fast.local_attn_backward(
            grad, *inputs[:3], kept, *inputs[3:], True, True, True
        )

    assert_same(backward(weights), backward(None))


@pytest.mark.cpu_only
@pytest.mark.parametrize(("window", "kept"), [(8, True), (9, False)])
def test_weights_are_kept_where_they_are_small(window: int, kept: bool) -> None:
    saved = []
    leaves = make((1, 30, 2, 8, window)).leaves()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        local_attn(*leaves, window)
        with torch.no_grad():
            local_attn(*leaves, window)
    assert saved == [(1, 30, 2, 8)] * 3 + [(1, 30, 2, 9)] * kept


@pytest.mark.cpu_only
def test_views_are_read_where_they_lie() -> None:
    wide = torch.zeros(1, 64, 3 * 4 * 32)
    parts = [part.unflatten(-1, (4, 32)) for part in wide.chunk(3, -1)]
    mask = torch.zeros(1, 64, dtype=torch.bool)
    with torch.profiler.profile(profile_memory=True) as profile:
        local_attn(*parts, 9, mask)
    allocated = [event.self_cpu_memory_usage for event in profile.key_averages()]
    assert sum(size for size in allocated if size > 0) == 64 * 4 * 32 * 4  # the result


@pytest.mark.parametrize(
    "wanted", [w for n in range(1, 4) for w in itertools.combinations(range(3), n)]
)
def test_gradient_only_where_asked(wanted: tuple[int, ...]) -> None:
    inputs = make((2, 50, 2, 24, 5))
    weight = output_weight(inputs)
    everything = results(local_attn, inputs, weight)[1:]
    leaves = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(inputs[:3])]
    local_attn(*leaves, inputs.window, inputs.mask).backward(weight)
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, everything[i])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_every_run_and_thread_count(
    dtype: torch.dtype, thread_counts: tuple[int, ...]
) -> None:
    inputs = make((2, 700, 4, 32, 19), dtype)
    weight = output_weight(inputs)
    seen = []
    for threads, _ in itertools.product(thread_counts, range(2)):
        torch.set_num_threads(threads)
        seen.append(results(local_attn, inputs, weight))
    for other in seen[1:]:
        assert_same(seen[0], other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_video_gets_the_same_bits_in_a_batch(dtype: torch.dtype) -> None:
    inputs = make((20, 60, 4, 16, 5), dtype)  # enough work for larger blocks of rows than one has
    weight = output_weight(inputs)
    together = results(local_attn, inputs, weight)
    assert inputs.mask is not None
    alone = Inputs(*(tensor[7:8] for tensor in inputs[:3]), 5, inputs.mask[7:8])
    ours = results(local_attn, alone, weight[7:8])
    assert_same(ours, tuple(part[7:8] for part in together))


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 70, 2, 40, 61), (1, 45, 1, 150, 9)])
def test_little_shared_memory(device: str, shape: tuple, dtype: torch.dtype) -> None:
    """Rows in several chunks, and blocks of fewer warps."""
    if device != "cuda-emulated":
        pytest.skip("chooses the kernel by the emulated device's memory")
    inputs = make(shape, dtype)
    weight = output_weight(inputs)
    plenty = results(local_attn, inputs, weight)
    with emulator.shared_memory(48 * 1024):
        little = results(local_attn, inputs, weight)
    bound = TOLERANCE[dtype]
    for mine, theirs in zip(little, plenty, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=bound, atol=bound * scale)
    with (
        emulator.shared_memory(1024),
        pytest.raises(RuntimeError, match=r"local_attn: expected channels D .* got D = "),
    ):
        local_attn(*inputs)


# ---- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, padded: bool, requires_grad: bool) -> None:
    inputs = make((2, 9, 2, 8, 5), dtype, padded)
    leaves = [tensor.detach().clone().requires_grad_(requires_grad) for tensor in inputs[:3]]
    torch.library.opcheck(torch.ops.tal_fast.local_attn, (*leaves, *inputs[3:], False))


@pytest.mark.cpu_only  # a GPU keeps no weights
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("window", [5, 99])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck_with_weights(dtype: torch.dtype, window: int, requires_grad: bool) -> None:
    inputs = make((2, 9, 2, 8, window), dtype)
    leaves = [tensor.detach().clone().requires_grad_(requires_grad) for tensor in inputs[:3]]
    torch.library.opcheck(torch.ops.tal_fast.local_attn, (*leaves, *inputs[3:], True))


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_opcheck_backward(needs: tuple[bool, bool, bool]) -> None:
    inputs = make((2, 9, 2, 8, 5))
    arguments = (output_weight(inputs), *inputs[:3], None, *inputs[3:], *needs)
    torch.library.opcheck(torch.ops.tal_fast.local_attn_backward, arguments)


def test_second_derivative_says_so() -> None:
    query, key, value = make((1, 5, 1, 4, 3), torch.float64).leaves()
    out = local_attn(query, key, value, 3)
    (grad,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="local_attn: second derivatives"):
        grad.sum().backward()


def test_compile_fullgraph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(joined: Tensor, mask: Tensor) -> Tensor:
        parts = (part.unflatten(-1, (2, 8)) for part in joined.chunk(3, -1))
        return local_attn(*parts, 5, mask).flatten(2)

    inputs = make((2, 19, 2, 8, 5))
    joined = torch.cat([tensor.flatten(2) for tensor in inputs[:3]], -1).requires_grad_()
    compiled = torch.autograd.grad(attend(joined, inputs.mask).sum(), joined)
    plain = attend._torchdynamo_orig_callable(joined, inputs.mask)
    assert_same(compiled, torch.autograd.grad(plain.sum(), joined))


def test_compile_dynamic_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return local_attn(query, key, value, 5, mask) * 2

    first = 0
    # torch assumes that sizes which are equal in the first call stay equal: none are.
    for batch, rows in ((5, 9), (3, 12), (2, 30), (4, 7)):
        inputs = make((batch, rows, 2, 8, 5))
        leaves = inputs.leaves()
        out = attend(*leaves, inputs.mask)
        assert torch.equal(out, local_attn(*inputs) * 2)
        torch.autograd.grad(out.sum(), leaves)
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_layers(dtype: torch.dtype) -> None:
    inputs = make((2, 30, 2, 16, 7), dtype)
    with torch.autocast("cpu", dtype):
        out = local_attn(*inputs)
        projected = torch.nn.functional.linear(torch.randn(2, 30, 32), torch.randn(32, 32))
        halves = projected.unflatten(-1, (2, 16))
        assert local_attn(halves, halves, halves, 7).dtype == dtype
    assert out.dtype == dtype
    assert torch.equal(out, local_attn(*inputs))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.ones(2, 9, 16)}, r"query of shape \[B, T, H, D\], got \[2, 9, 16\]"),
        ({"query": torch.ones(2, 9, 2, 8).int()}, "query of dtype float64, .* got int32"),
        (
            {"key": torch.ones(2, 8, 2, 8)},
            r"key of the shape of query \[2, 9, 2, 8\], got \[2, 8, 2, 8\]",
        ),
        ({"value": torch.ones(2, 9, 16)}, r"value of the shape of query .*, got \[2, 9, 16\]"),
        ({"key": torch.ones(2, 9, 2, 8).half()}, "key of the dtype of query, float32, got float16"),
        ({"value": torch.ones(2, 9, 2, 8).double()}, "value of the dtype .* got float64"),
        ({"window": 0}, "window >= 1, got 0"),
        (
            {"mask": torch.zeros(2, 8, dtype=torch.bool)},
            r"mask of shape \[B, T\] = \[2, 9\], got \[2, 8\]",
        ),
        ({"mask": torch.zeros(2, 9)}, "mask of dtype bool, got float32"),
    ],
)
def test_errors(changes: dict[str, object], message: str) -> None:
    inputs = make((2, 9, 2, 8, 5))._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"^local_attn: expected {message}"):
        local_attn(*inputs)


@pytest.mark.parametrize("grad", [torch.ones(2, 9, 2, 7), torch.ones(2, 9, 2, 8).double()])
def test_backward_refuses_a_wrong_gradient(grad: Tensor) -> None:
    inputs = make((2, 9, 2, 8, 5))
    with pytest.raises(RuntimeError, match="local_attn_backward: expected grad of the shape and"):
        torch.ops.tal_fast.local_attn_backward(
            grad, *inputs[:3], None, *inputs[3:], True, True, True
        )


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 9, 2, 4), r"shape \[B, T, H, W\] = \[2, 9, 2, 5\], got \[2, 9, 2, 4\]"),
        (torch.ones(2, 9, 2, 5).double(), "dtype float32, got float64"),
    ],
)
def test_backward_refuses_wrong_weights(weights: Tensor, message: str) -> None:
    inputs = make((2, 9, 2, 8, 5))
    with pytest.raises(RuntimeError, match=f"local_attn_backward: expected weights of {message}"):
        torch.ops.tal_fast.local_attn_backward(
            inputs.query, *inputs[:3], weights, *inputs[3:], True, True, True
        )


@pytest.mark.parametrize("window", [2, 4, 18, 98])
def test_an_even_window_is_the_next_odd_one(window):
    even, odd = (make((2, 21, 2, 8, rows)) for rows in (window, window + 1))
    weight = output_weight(even)
    assert_same(results(local_attn, even, weight), results(local_attn, odd, weight))
