# SPDX-License-Identifier: Apache-2.0
"""Errors of a public op name it and one of its own arguments, whatever op it is made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from op_cases import (
    ATTENTION,
    COUNTS,
    ENDS,
    FEATURES,
    FIRST,
    LABELS,
    LEVELS,
    PADDED,
    ROIS,
    ROWS,
    SCORES,
    A,
    B,
    random,
)
from torch import Tensor

from tal_fast import ops
from tal_fast.ops.arguments import renamed

pytestmark = pytest.mark.cpu_only

QUERY = random(2, 6, 2, 3, seed=6)
VIDEOS = torch.zeros_like(LABELS)
SEGMENTS = {"segments": A, "scores": SCORES}
#: A right call of every op, by its arguments.
RIGHT: dict[str, dict[str, Any]] = {
    "segment_iou": {"a": A, "b": B},
    "iou_loss": {"pred": A, "target": B},
    "giou_loss": {"pred": A, "target": B},
    "diou_loss": {"pred": A, "target": B},
    "deform_attn": {
        "value": ATTENTION[0],
        "level_lengths": LEVELS,
        "sampling_locations": ATTENTION[1],
        "attention_weights": ATTENTION[2],
    },
    "deform_attn_fused": {
        "value": ATTENTION[0],
        "level_lengths": LEVELS,
        "reference_points": random(2, 2, 2, 1, seed=5),
        "sampling_offsets": ATTENTION[1] * 3,
        "attention_logits": ATTENTION[2],
        "padding_mask": PADDED,
    },
    "local_attn": {"query": QUERY, "key": QUERY, "value": QUERY, "window": 3, "mask": PADDED},
    "boundary_max_pool": {"features": FEATURES, "segments": ENDS},
    "segment_roi_align": {"features": FEATURES, "rois": ROIS, "output_size": 3},
    "dropout": {"x": A, "residual": B},
    "gather_windows": {"store": FEATURES[0], "first_row": FIRST, "rows": ROWS, "length": 3},
    "matching_cost": {
        "logits": FEATURES,
        "segments": random(2, 4, 2),
        "labels": LABELS[1:4],
        "targets": B[:3],
        "counts": COUNTS,
    },
    "nms": {**SEGMENTS, "iou_threshold": 0.5},
    "nms_padded": {**SEGMENTS, "iou_threshold": 0.5, "max_segments": 3},
    "soft_nms": SEGMENTS,
    "soft_nms_padded": {**SEGMENTS, "max_segments": 3},
    "soft_nms_literal": {"segments": A.float(), "scores": SCORES.float()},
    "batched_nms": {**SEGMENTS, "labels": LABELS, "videos": VIDEOS},
    "batched_nms_padded": {**SEGMENTS, "labels": LABELS, "videos": VIDEOS, "max_segments": 3},
    "fuse_windows": {
        **SEGMENTS,
        "labels": LABELS,
        "windows": LABELS,
        "window_spans": B[:2],
        "window_videos": VIDEOS[:2],
    },
    "segment_voting": {"kept_segments": A[:2], **SEGMENTS, "iou_threshold": 0.5},
    "linear_assignment": {"costs": random(6), "row_counts": [2], "column_counts": [3]},
    "ragged_index": {"counts": COUNTS, "like": A},
}


def public() -> dict[str, Callable[..., Any]]:
    return {
        name: getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))
    }


def test_every_op_has_a_right_call():
    assert RIGHT.keys() == public().keys()
    for name, function in public().items():
        function(**RIGHT[name])


def wrong_ones(value: Any) -> Iterator[Any]:
    """Yields what an argument should not be; some of it may be right all the same."""
    if isinstance(value, Tensor):
        yield from (None, value.tolist(), value[None], value.flatten(), value.flatten()[0])
        yield from (value[:-1], torch.cat([value, value]))
        yield from (
            value.to(torch.complex64),
            value.half(),
            value.float(),
            value.int(),
            value.bool(),
        )
        if value.dtype != torch.bool:
            yield from (-value.double(), -1 - value)
        if value.is_floating_point():
            yield value * float("nan")
        return
    yield from ("x", None, object(), -1, -7.5, 2**70, float("nan"), float("inf"))
    yield from ([1], [True], [-1], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", RIGHT)
def test_an_error_names_the_function_and_an_argument_of_it(name):
    function, refused = public()[name], 0
    parameters = inspect.signature(function).parameters
    own = re.compile(rf"\b({'|'.join(parameters)})\b")
    for argument, parameter in parameters.items():
        if parameter.kind == parameter.VAR_KEYWORD:
            continue
        for wrong in wrong_ones(RIGHT[name].get(argument, parameter.default)):
            try:
                function(**{**RIGHT[name], argument: wrong})
            except (RuntimeError, TypeError, ValueError) as error:
                refused += 1
                message = str(error)
                called = message.startswith((f"{name}: ", f"tal_fast::{name}() "))
                assert called, f"{argument}={wrong!r}: {message}"
                assert own.search(message), f"{argument}={wrong!r}: {message}"
    assert refused >= 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "fuse_windows: expected method to be one of hard, "),
        ({"sigma": -1.0, "method": "gaussian"}, "fuse_windows: expected sigma > 0, got -1"),
        ({"sgima": 1.0}, r"fuse_windows\(\) got an unexpected keyword argument 'sgima'"),
    ],
)
def test_options_of_the_inner_op_are_those_of_the_function(options, message):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"^{message}"):
        ops.fuse_windows(**RIGHT["fuse_windows"], **options)


def test_the_losses_say_pred_and_target():
    for name in ("iou_loss", "giou_loss", "diou_loss"):
        loss = getattr(ops, name)
        with pytest.raises(
            RuntimeError, match=rf"^{name}: expected pred of shape \[N, 2\], got \[5"
        ):
            loss(A[:, 0], B)
        lengths = rf"^{name}: expected pred and target of one length, got \[4, 2\] and \[5, 2\]"
        with pytest.raises(RuntimeError, match=lengths):
            loss(A[:4], B)
        with pytest.raises(RuntimeError, match=rf"^{name}: expected eps >= 0, got -1"):
            loss(A, B, eps=-1.0)
        with pytest.raises(RuntimeError, match=rf"^{name}: expected eps of type float, got str"):
            loss(A, B, eps="small")


def test_errors_of_others_are_left_alone():
    error = RuntimeError("out of memory for a tensor")
    assert renamed(error, "diou_loss", "segment_iou", a="pred") is error
    assert str(renamed(RuntimeError("segment_iou: a.b and b of a"), "x", "segment_iou", a="p")) == (
        "x: a.b and b of p"
    )
