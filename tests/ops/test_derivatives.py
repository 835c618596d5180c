# SPDX-License-Identifier: Apache-2.0
"""No op gives a derivative of 0 that is none: the right one or an error, in both modes of torch.

``CASES`` has every public op. A new one fails here until it says there what its derivatives are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import emulated as emulator
import pytest
import torch
from op_cases import CASES, SCORES, A, B, Case, random
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tal_fast import ops

# Of what a native op gives: outputs beyond these are kept for the backward and seen by nobody else.
RETURNED = {"local_attn": 1}
# A kernel that looks for tangents would take longer than they do: their public functions look.
ASKED_IN_PYTHON = {
    "soft_nms",
    "soft_nms_literal",
    "batched_nms",
    "soft_nms_padded",
    "batched_nms_padded",
    "segment_voting",
}


def cases(*forward: str) -> Any:
    chosen = [
        pytest.param(case, id=f"{name}-{i}")
        for name, own in CASES.items()
        for i, case in enumerate(own)
        if not forward or case.forward in forward
    ]
    return pytest.mark.parametrize("case", chosen)


def draws(case: Case) -> bool:
    """Whether it draws random numbers, which neither vmap nor a trace lets it do."""
    return any(case is own for own in CASES["dropout"])


def attempt(run: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns a result, or the message of the error there was instead."""
    try:
        return run(), None
    except RuntimeError as error:
        return None, str(error)


def floats(result: Any) -> list[Tensor]:
    return [
        x for x in pytree.tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()
    ]


@pytest.mark.cpu_only
def test_every_public_op_has_a_case():
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert set(CASES) == functions


@cases("right")
def test_tangents_are_right(case, device):
    torch.autograd.gradcheck(
        case.call,
        [x.clone().requires_grad_() for x in case.tensors],
        check_forward_ad=True,
        check_batched_forward_grad=not draws(case),
        nondet_tol=0.0,
        fast_mode=device == "cuda-emulated",  # along random directions: each call takes long there
    )


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize of torch
@cases("right")
def test_transforms_give_the_same_tangents(case):
    moved = tuple(random(*x.shape, seed=7) for x in case.tensors)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(case.tensors, moved, strict=True)]
        plain, expected = forward_ad.unpack_dual(case.call(*duals))
    assert torch.equal(plain, case.call(*case.tensors))
    assert expected.abs().sum() > 0
    result, tangent = torch.func.jvp(case.call, case.tensors, moved)
    assert torch.equal(result, plain)
    assert torch.equal(tangent, expected)
    if not draws(case):
        assert torch.equal(torch.func.linearize(case.call, *case.tensors)[1](*moved), expected)
    # one argument at a time: derivatives are linear in the tangents
    total = torch.zeros_like(expected)
    for place, v in enumerate(moved):
        alone = [*case.tensors[:place], None, *case.tensors[place + 1 :]]
        total += torch.func.jvp(
            lambda x, p=place, r=alone: case.call(*r[:p], x, *r[p + 1 :]),
            case.tensors[place:][:1],
            (v,),
        )[1]
    torch.testing.assert_close(total, expected)


@pytest.mark.cpu_only
@cases("refused")
def test_tangents_that_would_be_lost_are_refused(case):
    for place, x in enumerate(case.tensors):

        def call(x: Tensor, p: int = place) -> Any:
            return floats(case.call(*case.tensors[:p], x, *case.tensors[p + 1 :]))[0]

        def check(run: Callable[[], Any]) -> None:
            with pytest.raises(NotImplementedError, match="does not support forward AD"):
                run()

        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            check(lambda f=call, d=dual: f(d))
            call(dual.detach())
        check(lambda f=call, x=x: torch.func.jvp(f, (x,), (torch.ones_like(x),)))
        check(lambda f=call, x=x: torch.func.jacfwd(f)(x))
        torch.func.jvp(lambda x, f=call: f(x.detach()), (x,), (torch.ones_like(x),))


@pytest.mark.cpu_only
@cases("indices")
def test_indices_need_no_tangent(case):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in case.tensors]
        assert floats(case.call(*duals)) == []


class Calls(TorchDispatchMode):
    """Notes the native ops that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "tal_fast":
            self.arguments[func._schema.name.removeprefix("tal_fast::")] = (func, args)
        return func(*args, **kwargs or {})


def test_native_ops_lose_no_tangent():
    """Those that gradients call, too."""
    with Calls() as calls:
        for case in (case for own in CASES.values() for case in own if case.forward == "right"):
            out = case.call(*[x.clone().requires_grad_() for x in case.tensors])
            out.sum().backward()
        for case in (case for own in CASES.values() for case in own if case.forward != "right"):
            case.call(*case.tensors)
    assert sorted(calls.arguments) == sorted({*emulator.op_names(), "soft_nms_literal"})
    for name, (op, arguments) in calls.arguments.items():
        if name in ASKED_IN_PYTHON:
            continue
        with forward_ad.dual_level():
            duals = pytree.tree_map_only(
                Tensor,
                lambda x: (
                    forward_ad.make_dual(x.detach().clone(), torch.ones_like(x))
                    if x.is_floating_point()
                    else x
                ),
                arguments,
            )
            out, refusal = attempt(lambda op=op, duals=duals: op(*duals))
            assert refusal is None or "does not support forward AD" in refusal, name
            for x in floats(out)[: RETURNED.get(name)]:
                assert forward_ad.unpack_dual(x).tangent is not None, name


@pytest.mark.cpu_only
@cases("right")
def test_second_derivatives_are_right_or_refused(case):
    tensors = [x.clone().requires_grad_() for x in case.tensors]
    if case.twice:
        torch.autograd.gradgradcheck(case.call, tensors, check_fwd_over_rev=True)
        return
    refused = pytest.raises(NotImplementedError, match="second derivatives are not implemented")
    grads = torch.autograd.grad(case.call(*tensors).sum(), tensors, create_graph=True)
    with refused:
        sum(grad.sum() for grad in grads).backward()

    def dual(*tensors: Tensor) -> Tensor:
        return case.call(*[forward_ad.make_dual(x, torch.ones_like(x)) for x in tensors])

    with forward_ad.dual_level():
        out = dual(*tensors).sum()
        with refused:
            torch.autograd.grad(out, tensors)

    def tangent(*tensors: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(dual(*tensors)).tangent

    # A tangent that is composed of ops may have a gradient, which is then right. (torch cannot take
    # that of its own softmax.)
    _, refusal = attempt(lambda: torch.autograd.gradcheck(tangent, tensors))
    assert refusal is None or "second derivatives" in refusal or "output 0 of Exp" in refusal


@pytest.mark.cpu_only
def test_gradient_beside_a_tangent():
    """Outside the level the gradient of a result that had a tangent is the ordinary one."""
    a = A.clone().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, torch.ones_like(a))
        out = ops.segment_iou(dual, B)
        assert forward_ad.unpack_dual(out).tangent is not None
    (grad,) = torch.autograd.grad(out.sum(), a)
    assert torch.equal(grad, torch.autograd.grad(ops.segment_iou(a, B).sum(), a)[0])


@pytest.mark.cpu_only
@cases("right", "refused")
def test_gradients_of_torch_func_are_those_of_autograd_or_refused(case):
    def total(*tensors: Tensor) -> Tensor:
        return floats(case.call(*tensors))[0].sum()

    places = tuple(range(len(case.tensors)))
    grads, refusal = attempt(lambda: torch.func.grad(total, places)(*case.tensors))
    if refusal is not None:  # where autograd has a formula in torch's own words
        assert "setup_context" in refusal or "has no gradient" in refusal
        return
    tensors = [x.clone().requires_grad_() for x in case.tensors]
    assert case.forward == "right"
    assert all(map(torch.equal, grads, torch.autograd.grad(total(*tensors), tensors)))


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore::UserWarning")  # vmap runs a custom op once per element
def test_vmap_inside_and_outside_of_forward_mode():
    batch = torch.stack([A, A * 2, A + 1])
    moved = random(*batch.shape, seed=7)

    def tangent(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: ops.segment_iou(x, B), (x,), (v,))[1]

    expected = torch.stack([tangent(x, v) for x, v in zip(batch, moved, strict=True)])
    assert torch.equal(torch.vmap(tangent)(batch, moved), expected)
    mapped = torch.vmap(lambda x: ops.segment_iou(x, B))
    assert torch.equal(torch.func.jvp(mapped, (batch,), (moved,))[1], expected)

    soft = torch.vmap(lambda s: ops.soft_nms_padded(A, s, max_segments=2)[1])
    scores = torch.stack([SCORES, 1 - SCORES])
    with pytest.raises(NotImplementedError, match="does not support forward AD"):
        torch.func.jvp(soft, (scores,), (scores,))
    with pytest.raises(NotImplementedError, match="soft_nms_padded has no gradient"):
        torch.func.grad(lambda s: soft(s).sum())(scores)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@cases("right")
def test_tangents_have_the_dtype_of_the_result(case, dtype):
    tensors = [x.to(dtype) for x in case.tensors]
    if dtype.itemsize == 2 and len(case.tensors) > 2:  # locations and references stay wide
        tensors[1] = tensors[1].float()
    moved = [torch.ones_like(x) for x in tensors]
    out, tangent = torch.func.jvp(case.call, tuple(tensors), tuple(moved))
    expected = torch.func.jvp(
        case.call, tuple(x.double() for x in tensors), tuple(v.double() for v in moved)
    )[1]
    assert tangent.dtype == out.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(tangent.double(), expected, rtol=16 * step, atol=16 * step)


@pytest.mark.cpu_only
def test_compiled_functions_keep_their_tangents():
    def tangent(x: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: ops.segment_iou(x, B), (x,), (v,))[1]

    def in_a_level(x: Tensor, v: Tensor) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(ops.segment_iou(forward_ad.make_dual(x, v), B))[1]

    moved = random(*A.shape, seed=7)
    expected = tangent(A, moved)
    for function in (tangent, in_a_level):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(A, moved), expected)
