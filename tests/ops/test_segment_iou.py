# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import itertools
import math
import os
from pathlib import Path

import emulated as emulator
import pytest
import torch
from torch import Tensor

from tal_fast.ops import segment_iou
from tal_fast.reference.segment_iou import segment_iou as twin

KINDS = ("iou", "giou", "diou", "ioa")
SYMMETRIC_KINDS = ("iou", "giou", "diou")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# The compute type is float32 for 16-bit inputs, so their error is one rounding of a value <= 2.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


def make(n: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 10.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator, dtype=torch.float64) * scale
    length = torch.rand(n, generator=generator, dtype=torch.float64) * scale * 0.5 + 0.25
    return torch.stack((start, start + length), dim=1).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0), (1, 1), (33, 7), (5, 131), (64, 48)])
def test_pairwise_matches_twin(n: int, m: int, kind: str, dtype: torch.dtype) -> None:
    a, b = make(n, dtype), make(m, dtype, seed=1)
    out = segment_iou(a, b, kind)
    assert out.shape == (n, m)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), twin(a, b, kind), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 33, 257])
def test_aligned_matches_twin(n: int, kind: str, dtype: torch.dtype) -> None:
    a, b = make(n, dtype), make(n, dtype, seed=1)
    out = segment_iou(a, b, kind, aligned=True)
    assert out.shape == (n,)
    expected = twin(a, b, kind, aligned=True)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_bit_equal_to_the_formula(kind: str, aligned: bool) -> None:
    # The documented order of operations in plain float32 torch ops: no contraction, true division.
    a, b = make(70), make(70, seed=1)
    s, t = (a, b) if aligned else (a[:, None], b[None])
    inner = (torch.minimum(s[..., 1], t[..., 1]) - torch.maximum(s[..., 0], t[..., 0])).clamp(min=0)
    union = (s[..., 1] - s[..., 0]) + (t[..., 1] - t[..., 0]) - inner
    hull = torch.maximum(s[..., 1], t[..., 1]) - torch.minimum(s[..., 0], t[..., 0])
    centre = 0.5 * ((s[..., 0] + s[..., 1]) - (t[..., 0] + t[..., 1]))
    expected = inner / (union + 1e-6)
    if kind == "giou":
        expected = expected - (hull - union) / (hull + 1e-6)
    elif kind == "diou":
        expected = expected - (centre * centre) / (hull * hull + 1e-6)
    elif kind == "ioa":
        expected = inner / ((s[..., 1] - s[..., 0]) + 1e-6)
    assert torch.equal(segment_iou(a, b, kind, aligned=aligned, eps=1e-6), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_twin(kind: str, aligned: bool, dtype: torch.dtype) -> None:
    a, b = make(33, dtype).requires_grad_(), make(33, dtype, seed=1).requires_grad_()
    out = segment_iou(a, b, kind, aligned=aligned, eps=1e-3)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    grads = torch.autograd.grad(out, (a, b), weight)
    a64, b64 = (x.detach().double().requires_grad_() for x in (a, b))
    reference_out = twin(a64, b64, kind, aligned=aligned, eps=1e-3)
    expected = torch.autograd.grad(reference_out, (a64, b64), weight.double())
    bound = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 4 * TOLERANCE[dtype])
    for ours, theirs in zip(grads, expected, strict=True):
        assert ours.dtype == dtype
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, aligned: bool) -> None:
    a = make(5, torch.float64).requires_grad_()
    b = make(5, torch.float64, seed=1).requires_grad_()
    for first, second in ((a, b), (a, b.detach()), (a.detach(), b)):
        assert torch.autograd.gradcheck(
            lambda x, y: segment_iou(x, y, kind, aligned=aligned, eps=1e-3),
            (first, second),
            eps=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 17), (33, 16), (70, 1000), (3, 40000)])
def test_gradient_of_many_columns_and_rows(n: int, m: int, kind: str) -> None:
    # Whole and partial groups of columns, one part and several; each gradient alone as together.
    a, b = make(n, torch.float64).requires_grad_(), make(m, torch.float64, 1).requires_grad_()
    weight = torch.randn(n, m, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = torch.autograd.grad(segment_iou(a, b, kind, eps=1e-3), (a, b), weight)
    expected = torch.autograd.grad(twin(a, b, kind, eps=1e-3), (a, b), weight)
    torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-9)
    (alone_a,) = torch.autograd.grad(segment_iou(a, b.detach(), kind, eps=1e-3), a, weight)
    (alone_b,) = torch.autograd.grad(segment_iou(a.detach(), b, kind, eps=1e-3), b, weight)
    assert torch.equal(alone_a, together[0])
    assert torch.equal(alone_b, together[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_has_the_same_bits_on_every_instruction_set(dtype: torch.dtype) -> None:
    # Every term is the weight times an exact 1/8, so that what shows is the order of additions: in
    # 16 lanes, which are then halved.
    a = torch.tensor([[0.0, 4.0]], dtype=dtype).requires_grad_()
    b = torch.stack((torch.full((37,), 1.0), torch.full((37,), 3.0)), 1).to(dtype)
    weight = torch.randn(1, 37, generator=torch.Generator().manual_seed(2)).to(dtype)
    (grad,) = torch.autograd.grad(segment_iou(a, b, "ioa"), a, weight)
    terms = torch.zeros(48)
    terms[:37] = weight.float() * 0.125  # inner / length^2
    lanes = (terms[:16] + terms[16:32]) + terms[32:]
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    assert torch.equal(grad[0], torch.cat((lanes, -lanes)).to(dtype))


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_on_every_device(kind: str, dtype: torch.dtype) -> None:
    # Around tiles of 16 rows, lanes, turns of 64 or 128 columns; one part and several.
    backward = torch.ops.tal_fast.segment_iou_backward
    for n, m in ((1, 1), (15, 63), (16, 64), (17, 129), (33, 16), (2, 300), (300, 2), (70, 1000)):
        a, b = make(n, dtype), make(m, dtype, seed=1)
        b[0], a[-1, 0] = a[0], torch.nan  # a tie, and what no sum may lose
        weight = torch.randn(n, m, generator=torch.Generator().manual_seed(2)).to(dtype)
        rows = min(n, m)
        for aligned, grad, s, t in (
            (False, weight, a, b),
            (True, weight.flatten()[:rows], a[:rows], b[:rows]),
        ):
            given = (KINDS.index(kind), aligned, 1e-3)
            emulator.assert_same_bits(
                lambda grad=grad, s=s, t=t, given=given: (
                    torch.ops.tal_fast.segment_iou(s, t, *given),
                    *backward(grad, s, t, *given, True, True),
                    backward(grad, s, t, *given, True, False)[0],
                    backward(grad, s, t, *given, False, True)[1],
                )
            )


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_quotients_of_zeros_have_the_same_bits_on_every_device(
    kind: str, dtype: torch.dtype
) -> None:
    """Zeros of both signs over what is positive, zero, negative, infinite or NaN; from the second
    segment on the columns are not aligned to packs."""
    ends = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1.0, 3.0, torch.inf], dtype=dtype)
    segments = torch.cartesian_prod(ends, ends)

    def pairs(columns: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        out = torch.ops.tal_fast.segment_iou(segments, columns, KINDS.index(kind), False, eps)
        return out, out.signbit() & ~out.isnan()

    for columns in (segments[:48], segments[1:], segments):
        for eps in (0.0, 1e-3):
            emulator.assert_same_bits(lambda columns=columns, eps=eps: pairs(columns, eps))


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_at_the_ends_of_the_range(kind: str, dtype: torch.dtype) -> None:
    """A GPU divides faster where every end is +0 or between 2**-56 and 2**40 in size, segments are
    not turned round and denominators at least 2**-80: at, within and beyond all of these."""
    sizes = [2.0**e * x for e in (-149, -80, -57, -56, -55, 0, 39, 40, 41, 127) for x in (1, 1.5)]
    ends = torch.tensor([-x for x in reversed(sizes)] + [0.0] + sizes, dtype=torch.float64)
    wide = torch.cartesian_prod(ends, ends).to(dtype)  # half of them turned round
    ordered = wide[wide[:, 0] <= wide[:, 1]]
    usual = ordered[
        ((ordered == 0) | ((ordered.abs() >= 2**-56) & (ordered.abs() <= 2**40))).all(1)
    ]
    generator = torch.Generator().manual_seed(0)
    lengths = 2.0 ** torch.randint(-50, 38, (64,), generator=generator)
    near = torch.rand(64, generator=generator) * lengths
    near = torch.stack((near, near + lengths * torch.rand(64, generator=generator)), 1).to(dtype)
    columns = torch.cat((usual[:200], near, usual[:8]))[:256]
    for eps in (0.0, 2.0**-81, 2.0**-80, 1e-3, 2.0**41, 2.0**42, math.inf):
        for rows in (usual, near, ordered[:300], wide[::7]):
            emulator.assert_same_bits(
                lambda rows=rows, eps=eps: torch.ops.tal_fast.segment_iou(
                    rows, columns, KINDS.index(kind), False, eps
                )
            )


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_of_any_strides(aligned: bool) -> None:
    a, b = make(19), make(19, seed=1)
    shape = (19,) if aligned else (19, 19)
    generator = torch.Generator().manual_seed(2)
    for weight in (
        torch.randn(2 * shape[0], *shape[1:], generator=generator)[::2],
        torch.randn(*shape, 3, generator=generator)[..., 1],
        torch.randn(shape, generator=generator).t(),
        torch.randn(shape[-1:], generator=generator).expand(shape),
        torch.randn((), generator=generator).expand(shape),
    ):
        strided, plain = (
            torch.ops.tal_fast.segment_iou_backward(w, a, b, 1, aligned, 1e-3, True, True)
            for w in (weight, weight.contiguous())
        )
        assert all(torch.equal(x, y) for x, y in zip(strided, plain, strict=True))


@pytest.mark.cuda_only
def test_kernels_of_the_gradient(device: str) -> None:
    if device != "cuda-emulated":
        pytest.skip("about the emulator")
    arguments = (make(3), make(3, seed=1), 0)
    emulator.launches()
    for aligned, grad, launched in (
        (False, torch.ones(3, 3), ["pairwise", "join"]),
        (True, torch.ones(3), ["aligned"]),
    ):
        torch.ops.tal_fast.segment_iou_backward(grad, *arguments, aligned, 0.0, True, True)
        assert emulator.launches() == [f"segment_iou_backward {name}" for name in launched]
    torch.ops.tal_fast.segment_iou_backward(torch.ones(3, 3), *arguments, False, 0.0, True, False)
    assert emulator.launches() == ["segment_iou_backward pairwise"]


def test_large_result() -> None:
    # Above 32 MiB the result is backed by huge pages where the system has them.
    a, b = make(4096), make(2100, seed=1)
    out = segment_iou(a, b)
    for i in (0, 1, 2047, 4095):
        assert torch.equal(out[i], segment_iou(a[i : i + 1], b)[0])


def test_gradient_only_where_asked() -> None:
    a, b = make(4).requires_grad_(), make(3, seed=1)
    segment_iou(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is None
    assert not segment_iou(a.detach(), b).requires_grad


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)])
def test_gradient_of_nothing_is_zero(n: int, m: int) -> None:
    a, b = make(n).requires_grad_(), make(m, seed=1).requires_grad_()
    segment_iou(a, b).sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad, torch.zeros(n, 2))
    assert b.grad is not None
    assert torch.equal(b.grad, torch.zeros(m, 2))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_at_ties_is_torchs(kind: str, aligned: bool) -> None:
    # Equal starts, equal ends, the same segment, touching segments.
    a = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 3.0], [1.0, 2.0], [0.0, 2.0], [2.0, 5.0]], dtype=torch.float64)
    inputs = a.requires_grad_(), b.requires_grad_()
    ours = torch.autograd.grad(segment_iou(*inputs, kind, aligned=aligned).sum(), inputs)
    theirs = torch.autograd.grad(twin(*inputs, kind, aligned=aligned).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_second_derivative_says_so() -> None:
    a = make(3, torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(segment_iou(a, make(2).double()).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="segment_iou: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_strides(kind: str, aligned: bool) -> None:
    a, b = make(9), make(9, seed=1)
    expected = segment_iou(a, b, kind, aligned=aligned)
    wide = torch.full((9, 4), torch.nan)
    wide[:, 1::2] = a
    columns = torch.empty(2, 9).copy_(b.t())
    assert torch.equal(segment_iou(wide[:, 1::2], columns.t(), kind, aligned=aligned), expected)


def test_gradient_of_an_expanded_output() -> None:
    # sum() hands a gradient with strides 0 to the backward.
    a, b = make(4).requires_grad_(), make(6, seed=1).requires_grad_()
    expanded = torch.autograd.grad(segment_iou(a, b).sum(), (a, b))
    plain = torch.autograd.grad(segment_iou(a, b), (a, b), torch.ones(4, 6))
    assert all(torch.equal(x, y) for x, y in zip(expanded, plain, strict=True))


@pytest.mark.parametrize("kind", SYMMETRIC_KINDS)
def test_symmetric(kind: str) -> None:
    a, b = make(40), make(30, seed=1)
    assert torch.equal(segment_iou(a, b, kind), segment_iou(b, a, kind).t())


def test_known_values() -> None:
    a = torch.tensor([[0.0, 2.0]])
    b = torch.tensor([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0], [3.0, 5.0], [0.5, 1.0]])
    assert segment_iou(a, b)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0, 0.25])
    assert segment_iou(a, b, "giou")[0].tolist() == pytest.approx([1, 1 / 3, 0, -1 / 5, 0.25])
    expected = [1, 1 / 3 - 1 / 9, -4 / 16, -9 / 25, 0.25 - 0.0625 / 4]
    assert segment_iou(a, b, "diou")[0].tolist() == pytest.approx(expected)
    assert segment_iou(a, b, "ioa")[0].tolist() == pytest.approx([1, 0.5, 0, 0, 0.25])
    assert segment_iou(b, a, "ioa")[:, 0].tolist() == pytest.approx([1, 0.5, 0, 0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_zero_length_and_nan(kind: str) -> None:
    point = torch.tensor([[1.0, 1.0]])
    whole = torch.tensor([[0.0, 2.0]])
    bad = torch.tensor([[torch.nan, 2.0], [0.0, torch.nan]])
    assert segment_iou(point, point, kind).isnan().all()
    assert segment_iou(point, point, kind, eps=1e-6).item() == 0
    assert segment_iou(point, whole).item() == 0
    assert segment_iou(whole, point, "ioa").item() == 0
    assert segment_iou(bad, whole, kind).isnan().all()
    assert segment_iou(whole, bad, kind).isnan().all()


def test_iou_exactly_on_a_threshold() -> None:
    a = torch.tensor([[0.0, 4.0]])
    b = torch.tensor([[0.0, 2.0], [2.0, 4.0], [1.0, 2.0]])
    assert segment_iou(a, b)[0].tolist() == [0.5, 0.5, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_on_every_run_and_thread_count(
    dtype: torch.dtype, thread_counts: tuple[int, ...]
) -> None:
    # Enough pairs for several parts, whose sums of the gradient for b are joined.
    a, b = make(900, dtype).requires_grad_(), make(150, dtype, seed=1).requires_grad_()
    weight = torch.randn(900, 150, generator=torch.Generator().manual_seed(2)).to(dtype)
    seen = []
    for threads, _ in itertools.product(thread_counts, range(3)):
        torch.set_num_threads(threads)
        out = segment_iou(a, b, "giou")
        seen.append((out.detach(), *torch.autograd.grad(out, (a, b), weight)))
    for other in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_opcheck(aligned: bool, requires_grad: bool) -> None:
    for dtype, kind in itertools.product((torch.float32, torch.bfloat16), range(4)):
        a = make(5, dtype).requires_grad_(requires_grad)
        b = make(5, dtype, seed=1).requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.tal_fast.segment_iou, (a, b, kind, aligned, 1e-3))
    grad = torch.randn(5) if aligned else torch.randn(5, 5)
    torch.library.opcheck(
        torch.ops.tal_fast.segment_iou_backward,
        (grad, make(5), make(5), 0, aligned, 0.0, True, True),
    )


def test_compile_fullgraph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (1 - segment_iou(a, b, "giou", aligned=True)).sum()

    a, b = make(8).requires_grad_(), make(8, seed=1)
    (grad,) = torch.autograd.grad(loss(a, b), a)
    plain = (1 - segment_iou(a, b, "giou", aligned=True)).sum()
    assert torch.equal(grad, torch.autograd.grad(plain, a)[0])


def test_compile_dynamic_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def cost(a: Tensor, b: Tensor) -> Tensor:
        return -segment_iou(a, b)

    first = 0
    for n, m in ((5, 7), (6, 9), (40, 11), (33, 8)):
        a, b = make(n), make(m, seed=1)
        assert torch.equal(cost(a, b), -segment_iou(a, b))
        # The first call may trace twice (torch tries to keep the float eps symbolic); no later one.
        first = first or counter.frame_count
    assert counter.frame_count == first


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    compiled = torch.compile(lambda a, b: segment_iou(a * 2, b * 2).sum(0), fullgraph=True)
    a, b = make(6), make(4, seed=1)
    torch.testing.assert_close(compiled(a, b), segment_iou(a, b).sum(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    a, b = make(6), make(4, dtype, seed=1)
    with torch.autocast("cpu", dtype):
        out = segment_iou(a, b)
    assert out.dtype == torch.float32
    assert torch.equal(out, segment_iou(a, b.float()))


@pytest.mark.parametrize(
    ("a", "b", "settings", "message"),
    [
        (torch.ones(7, 1), torch.ones(3, 2), {}, r"expected a of shape \[N, 2\], got \[7, 1\]"),
        (torch.ones(2), torch.ones(3, 2), {}, r"expected a of shape \[N, 2\], got \[2\]"),
        (torch.ones(3, 2), torch.ones(1, 3, 2), {}, r"expected b of shape .* got \[1, 3, 2\]"),
        (torch.ones(3, 2).int(), torch.ones(3, 2), {}, "expected a of dtype .* got int32"),
        (torch.ones(3, 2), torch.ones(3, 2).long(), {}, "expected b of dtype .* got int64"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2).double(),
            {},
            "expected a and b of one dtype, got float32 and float64",
        ),
        (
            torch.ones(3, 2),
            torch.ones(4, 2),
            {"aligned": True},
            r"one length with aligned=True, got \[3, 2\] and \[4, 2\]",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), {"eps": -1.0}, "expected eps >= 0, got -1"),
        (torch.ones(3, 2), torch.ones(3, 2), {"eps": float("nan")}, "expected eps >= 0, got -?nan"),
    ],
)
def test_errors(a: Tensor, b: Tensor, settings: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"segment_iou: {message}|segment_iou: .*{message}"):
        segment_iou(a, b, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("grad", [torch.ones(3, 3), torch.ones(3), torch.ones(3, 2).double()])
def test_backward_refuses_a_wrong_gradient(grad: Tensor) -> None:
    with pytest.raises(RuntimeError, match="segment_iou_backward: expected grad of the shape"):
        torch.ops.tal_fast.segment_iou_backward(grad, make(3), make(2), 0, False, 0.0, True, True)


@pytest.mark.skipif("TAL_FAST_PEERS" not in os.environ, reason="TAL_FAST_PEERS is not set")
def test_is_opentads() -> None:
    path = Path(os.environ["TAL_FAST_PEERS"]) / "OpenTAD/opentad/models/utils/iou_tools.py"
    if not path.is_file():
        pytest.skip("no OpenTAD under TAL_FAST_PEERS")
    spec = importlib.util.spec_from_file_location("peer", path)
    assert spec is not None
    assert spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    # Rows are its second argument. It clamps its denominators where eps is added here.
    truth, anchors = make(60), make(200, seed=1)
    for kind, eps in (("iou", 0.0), ("ioa", 0.0), ("giou", 1e-6), ("diou", 0.0)):
        theirs = getattr(peer, f"compute_{kind}_torch")(truth, anchors)
        torch.testing.assert_close(segment_iou(anchors, truth, kind, eps=eps), theirs)  # type: ignore[arg-type]
    aligned = peer.compute_batched_iou_torch(truth[None], anchors[None, :60])[0]
    torch.testing.assert_close(segment_iou(anchors[:60], truth, aligned=True), aligned)
