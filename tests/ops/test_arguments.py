# SPDX-License-Identifier: Apache-2.0
"""What all ops ask of their arguments, and how they say it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from op_cases import CASES, ENDS, FEATURES, LABELS, SCORES, A, B
from torch import Tensor
from torch.utils import _pytree as pytree

from tal_fast import ops

pytestmark = pytest.mark.cpu_only

NMS_FAMILY: dict[str, Callable[..., Any]] = {
    "nms": lambda a, s, **o: ops.nms(a, s, 0.5, **o),
    "nms_padded": lambda a, s, **o: ops.nms_padded(a, s, 0.5, 3, **o),
    "soft_nms": lambda a, s, **o: ops.soft_nms(a, s, **o),
    "soft_nms_padded": lambda a, s, **o: ops.soft_nms_padded(a, s, max_segments=3, **o),
    "batched_nms": lambda a, s, **o: ops.batched_nms(a, s, LABELS, **o),
    "batched_nms_padded": lambda a, s, **o: ops.batched_nms_padded(
        a, s, LABELS, max_segments=3, **o
    ),
    "segment_voting": lambda a, s, **o: ops.segment_voting(a, a, s, 0.5, **o),
    "fuse_windows": lambda a, s, **o: ops.fuse_windows(
        a, s, LABELS, LABELS, B.to(a.dtype)[:2], LABELS[:2], **o
    ),
}

WITH_WORDS: dict[str, Callable[..., Any]] = {
    **{name: lambda n=name, **o: NMS_FAMILY[n](A, SCORES, **o) for name in NMS_FAMILY},
    "soft_nms_literal": lambda **o: ops.soft_nms_literal(A.float(), SCORES.float(), **o),
    "segment_iou": lambda **o: ops.segment_iou(A, B, **o),
    "iou_loss": lambda **o: ops.iou_loss(A, B, **o),
    "giou_loss": lambda **o: ops.giou_loss(A, B, **o),
    "diou_loss": lambda **o: ops.diou_loss(A, B, **o),
    "boundary_max_pool": lambda **o: ops.boundary_max_pool(FEATURES, ENDS, **o),
}


def words() -> Iterator[tuple[str, str]]:
    """Every argument of a public op that is a word."""
    for name in CASES:
        for argument, parameter in inspect.signature(getattr(ops, name)).parameters.items():
            if isinstance(parameter.default, str) or "Literal" in str(parameter.annotation):
                yield name, argument


@pytest.mark.parametrize("wrong", ["IOU", "", None, 1])
@pytest.mark.parametrize(("name", "argument"), list(words()))
def test_an_unknown_word_is_a_value_error_that_lists_the_known(name, argument, wrong):
    if argument == "compat" and wrong is None:
        return
    expected = rf"{name}: expected {argument} to be one of \w+, [\w, ]+, got {wrong!r}"
    with pytest.raises(ValueError, match=expected):
        WITH_WORDS[name](**{argument: wrong})


def test_the_list_of_words():
    with pytest.raises(ValueError, match="one of iou, giou, diou, ioa, got 'gIoU'"):
        ops.segment_iou(A, B, "gIoU")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compat to be one of None, afsd, got 'AFSD'"):
        ops.boundary_max_pool(FEATURES, ENDS, "AFSD")  # type: ignore[arg-type]


@pytest.mark.parametrize("convert", [Tensor.tolist, Tensor.numpy], ids=["list", "array"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_tensor_is_a_type_error_that_names_the_argument(name, convert):
    known = "|".join(inspect.signature(getattr(ops, name)).parameters)
    for case in CASES[name]:
        for place, tensor in enumerate(case.tensors):
            given: list[Any] = list(case.tensors)
            given[place] = convert(tensor)
            kind = type(given[place]).__name__
            # costs may be a sequence, of tensors
            message = rf"^{name}: expected (?:{known})(?:\[0\])? to be a torch.Tensor, got "
            with pytest.raises(TypeError, match=rf"{message}(?:{kind}|float): torch.as_tensor"):
                case.call(*given)


def test_labels_and_optional_tensors_are_checked_too():
    with pytest.raises(TypeError, match=r"batched_nms: expected labels to be a torch.Tensor, got "):
        ops.batched_nms(A, SCORES, LABELS.tolist())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"batched_nms: expected labels to be .*, got NoneType$"):
        ops.batched_nms(A, SCORES, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dropout: expected residual to be a torch.Tensor, got 1?"):
        ops.dropout(A, residual=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NMS_FAMILY)
def test_suppression_takes_bfloat16_and_what_requires_a_gradient(name):
    call = NMS_FAMILY[name]
    half = (A.bfloat16(), SCORES.bfloat16())
    result = call(*half)
    assert {x.dtype for x in tensors(result)} <= {torch.int64, torch.bfloat16}
    grown = call(*(x.clone().requires_grad_() for x in half))
    for ours, theirs in zip(tensors(grown), tensors(result), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="expected scores of dtype bfloat16 like segments, got"):
        call(half[0], SCORES)


def tensors(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


@contextmanager
def other_defaults() -> Iterator[None]:
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_defaults_of_torch_change_nothing(name):
    for case in CASES[name]:
        given = [x.clone().requires_grad_(case.forward == "right") for x in case.tensors]

        def run(case=case, given=given) -> list[Tensor]:
            result = case.call(*given)
            if case.forward != "right":
                return tensors(result)
            moved = tuple(x.detach() for x in given)
            return [
                result,
                *torch.autograd.grad(result.sum(), given),
                torch.func.jvp(case.call, moved, moved)[1],
            ]

        expected = run()
        with other_defaults():
            found = run()
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
