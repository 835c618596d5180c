# SPDX-License-Identifier: Apache-2.0
"""The short way of a call gives what the dispatcher gives, and leaves to it what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import CASES, A, B, Case
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tal_fast import ops

pytestmark = pytest.mark.cpu_only

SHORT = "tal_fast_{}Backward"  # the class in registration.py
LONG = "GeneratedBackwardFor_tal_fast_{}_defaultBackward"  # torch's
FIRST = {name: own[0] for name, own in CASES.items() if own[0].forward == "right"}
DIRECT = {name: FIRST[name] for name in FIRST if not name.endswith("_loss")}  # whose result it is


def leaves(case: Case) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in case.tensors]


def grad_fn(out: Tensor) -> str:
    return type(out.grad_fn).__name__


def gradients(case: Case, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    tensors = leaves(case)
    out = (call or case.call)(*tensors)
    out.sum().backward()
    return [out.detach(), *(x.grad for x in tensors)]


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **kwargs or {})


class Subclass(Tensor):
    pass


@pytest.mark.parametrize("name", DIRECT)
def test_plain_calls_take_the_short_way(name):
    case = DIRECT[name]
    assert grad_fn(case.call(*leaves(case))) == SHORT.format(name)
    assert case.call(*case.tensors).grad_fn is None
    with torch.no_grad():
        assert not case.call(*leaves(case)).requires_grad
    with torch.inference_mode():
        assert case.call(*case.tensors).is_inference()


@pytest.mark.parametrize("mode", [DispatchMode, FunctionMode])
@pytest.mark.parametrize("name", DIRECT)
def test_modes_see_the_op_and_get_the_same(name, mode):
    case = DIRECT[name]
    with mode():
        assert grad_fn(case.call(*leaves(case))) == LONG.format(name)
        seen = gradients(case)
    assert all(map(torch.equal, seen, gradients(case)))


def test_tensors_of_other_classes_take_the_long_way():
    out = ops.segment_iou(A.clone().requires_grad_().as_subclass(Subclass), B)
    assert isinstance(out, Subclass)
    assert grad_fn(ops.segment_iou(torch.nn.Parameter(A.clone()), B)) == SHORT.format("segment_iou")


def test_autocast_casts_what_it_has_a_rule_for():
    a = A.half().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.segment_iou(a, B.half())
        kept = ops.deform_attn(*attention(torch.bfloat16))
    assert out.dtype == torch.float32
    assert grad_fn(out) == LONG.format("segment_iou")
    assert kept.dtype == torch.bfloat16
    assert grad_fn(kept) == SHORT.format("deform_attn")
    assert torch.autograd.grad(out.sum(), a)[0].dtype == torch.float16


def attention(dtype: torch.dtype) -> tuple[Any, ...]:
    value = torch.rand(1, 4, 1, 2, dtype=dtype).requires_grad_()
    samples = torch.rand(1, 2, 1, 1, 2)
    return value, (4,), samples, samples.to(dtype)


def test_forward_mode_takes_the_long_way():
    with forward_ad.dual_level():
        out = ops.segment_iou(A.clone().requires_grad_(), B)
        assert grad_fn(out) == LONG.format("segment_iou")


def test_tensors_that_left_a_transform():
    leaked: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        leaked.append(x)
        return x.sum()

    torch.func.grad(keep)(A)
    assert torch._C._functorch.is_dead_tensor_wrapper(leaked[0])
    assert torch.equal(ops.segment_iou(leaked[0], B), ops.segment_iou(A, B))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_holds_the_op():
    traced = torch.jit.trace(lambda a: ops.segment_iou(a, B), (A.clone().requires_grad_(),))
    assert "tal_fast::segment_iou" in str(traced.graph)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(name, reentrant):
    case = FIRST[name]
    seen = gradients(case, lambda *x: checkpoint(case.call, *x, use_reentrant=reentrant))
    assert all(map(torch.equal, seen, gradients(case)))


@pytest.mark.parametrize("name", FIRST)
def test_hooks_see_the_same_tensors(name):
    def packed(mode: Any) -> list[torch.Size]:
        shapes: list[torch.Size] = []

        def pack(x: Tensor) -> Tensor:
            shapes.append(x.shape)
            return x

        with mode, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            FIRST[name].call(*leaves(FIRST[name]))
        return shapes

    assert packed(torch.enable_grad()) == packed(FunctionMode())
