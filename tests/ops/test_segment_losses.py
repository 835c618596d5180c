# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tal_fast.ops import diou_loss, giou_loss, iou_loss
from tal_fast.reference import segment_losses as twins

Loss = Callable[..., Tensor]
PAIRS = ((iou_loss, twins.iou_loss), (giou_loss, twins.giou_loss), (diou_loss, twins.diou_loss))
LOSSES = tuple(loss for loss, _ in PAIRS)
# 16-bit inputs are computed in float32: one rounding of 1 - x for x in [-1, 1], one of the IoU.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}


def make(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n, generator=generator, dtype=torch.float64) * 10
    length = torch.rand(n, generator=generator, dtype=torch.float64) * 5 + 0.25
    return torch.stack((start, start + length), dim=1).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("n", [0, 1, 33])
@pytest.mark.parametrize(("loss", "twin"), PAIRS)
def test_matches_twin(loss: Loss, twin: Loss, n: int, reduction: str, dtype: torch.dtype) -> None:
    pred, target = make(n, dtype).requires_grad_(), make(n, dtype, seed=1).requires_grad_()
    ours = loss(pred, target, reduction, eps=1e-3)
    expected = twin(pred, target, reduction, eps=1e-3)
    assert ours.dtype == dtype
    assert ours.shape == expected.shape
    bound = TOLERANCE[dtype] * (2 * max(n, 1) if reduction == "sum" else 1)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=bound)
    if n == 0:  # the twin has no graph then
        return
    grads = torch.autograd.grad(ours.sum(), (pred, target))
    wanted = torch.autograd.grad(expected.sum(), (pred, target))
    for mine, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Loss) -> None:
    pred = make(7, torch.float64).requires_grad_()
    target = make(7, torch.float64, seed=1).requires_grad_()
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda p, t, reduction=reduction: loss(p, t, reduction, 1e-3),
            (pred, target),
            eps=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_prediction(loss: Loss) -> None:
    segments = make(5)
    assert loss(segments, segments, eps=0.0).tolist() == [0.0] * 5


def test_known_values() -> None:
    pred, target = torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 4.0]])  # hull 4, union 3
    assert iou_loss(pred, target).item() == 1
    assert giou_loss(pred, target).item() == pytest.approx(1 + 1 / 4)
    assert diou_loss(pred, target).item() == pytest.approx(1 + 2.5**2 / 16)


def test_disjoint_segments_are_pulled_together() -> None:
    pred = torch.tensor([[0.0, 2.0]], dtype=torch.float64).requires_grad_()
    target = torch.tensor([[5.0, 6.0]], dtype=torch.float64)
    (by_iou,) = torch.autograd.grad(iou_loss(pred, target, "sum"), pred)
    assert torch.equal(by_iou, torch.zeros(1, 2, dtype=torch.float64))
    # A step against the gradient moves the centre of the prediction to the right, to the target.
    for loss in (giou_loss, diou_loss):
        (by_pull,) = torch.autograd.grad(loss(pred, target, "sum"), pred)
        assert by_pull.sum() < 0
        assert by_pull[0, 1] < 0


@pytest.mark.parametrize("loss", LOSSES)
def test_training_brings_segments_that_touch_together(loss: Loss) -> None:
    pred = torch.tensor([[0.0, 2.0]], dtype=torch.float64).requires_grad_()
    target = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    for _ in range(400):
        (grad,) = torch.autograd.grad(loss(pred, target, "sum"), pred)
        pred = (pred - 0.05 * grad).detach().requires_grad_()
    assert loss(pred, target, "sum").item() < 0.05


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_costs_nothing(loss: Loss, reduction: str) -> None:
    pred = torch.zeros(0, 2, requires_grad=True)
    value = loss(pred, torch.zeros(0, 2), reduction)
    assert value.item() == 0
    value.backward()
    assert pred.grad is not None
    assert pred.grad.shape == (0, 2)


def test_points_and_nan() -> None:
    point, nan = torch.tensor([[1.0, 1.0]]), torch.tensor([[torch.nan, 1.0]])
    for loss in LOSSES:
        assert loss(point, point).item() == 1
        assert loss(point, point, eps=0.0).isnan().item()
        assert loss(nan, point).isnan().item()


def test_compile_fullgraph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def compiled(pred: Tensor, target: Tensor) -> Tensor:
        return diou_loss(pred, target, "mean") + giou_loss(pred, target, "sum")

    for n in (4, 7):
        pred, target = make(n).requires_grad_(), make(n, seed=1)
        (grad,) = torch.autograd.grad(compiled(pred, target), pred)
        plain = diou_loss(pred, target, "mean") + giou_loss(pred, target, "sum")
        torch.testing.assert_close(grad, torch.autograd.grad(plain, pred)[0])


def test_autocast_computes_in_float32() -> None:
    pred, target = make(6), make(6, torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        value = diou_loss(pred, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, diou_loss(pred, target.float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_errors(loss: Loss) -> None:
    with pytest.raises(RuntimeError, match=r"one length, got \[3, 2\] and"):
        loss(make(3), make(4))
