# SPDX-License-Identifier: Apache-2.0
"""``batched_nms``: the NMS of all classes of a video, of ActionFormer, OpenTAD and their kin.

With ``nms="literal"`` it stays: on our ``nms_1d_cpu`` it gives its own result, bit for bit. With
``nms="fused"`` all classes are one native call. Then equal scores are ordered by row, decays are
rounded correctly, and voted segments are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tal_fast import ops
from tal_fast.compat.options import Options
from tal_fast.compat.proof import (
    Proof,
    UnprovedError,
    UnsuitableError,
    arguments_of,
    first_that_agrees,
)
from tal_fast.ops.nms import METHODS

__all__ = ["prove"]

_TOLERANCE = 2e-5
_VOTES = ("score_iou", "score")


def prove(original: Callable[..., Any], options: Options) -> Proof:
    """Finds the weight of the votes under which ours gives the original's detections."""
    if options.nms == "literal":
        raise UnprovedError("runs as it is on our nms_1d_cpu; nms=fused replaces it as a whole")
    if not options.wants("nms_1d_cpu"):
        raise UnprovedError("nms_1d_cpu, which it needs for the proof, is not ours")
    inputs = _made_inputs()

    def run(function: Callable[..., Any]) -> list[Any]:
        return [
            function(
                *inputs,
                iou_threshold=0.3,
                min_score=0.05,
                max_seg_num=most,
                use_soft_nms=soft,
                multiclass=multiclass,
                sigma=0.5,
                voting_thresh=voting,
            )
            for soft in (True, False)
            for multiclass in (True, False)
            for voting in (0.0, 0.6)
            for most in (200, 25)
        ]

    candidates = {words: _make(original, words) for words in _VOTES}
    words, off = first_that_agrees(
        partial(run, original),
        [(name, partial(run, ours)) for name, ours in candidates.items()],
        _difference,
        _TOLERANCE,
    )
    return Proof(candidates[words], f"votes by {words}; differs by {off:.0e}")


def _made_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu")

    start, length = random(120) * 60, random(120) * 12 + 0.5
    scores = (torch.randperm(120, generator=generator, device="cpu") + 1).float() / 121
    labels = torch.randint(0, 4, (120,), generator=generator, device="cpu")
    return torch.stack([start, start + length], 1), scores, labels


def _difference(expected: list[Any], actual: list[Any]) -> float:
    worst = 0.0
    for (a, a_scores, a_labels), (b, b_scores, b_labels) in zip(expected, actual, strict=True):
        if a.shape != b.shape or not torch.equal(a_labels, b_labels):
            return math.inf
        if len(a):
            worst = max(worst, float((a - b).abs().max()), float((a_scores - b_scores).abs().max()))
    return worst


def _make(original: Callable[..., Any], votes: str) -> Callable[..., Any]:
    bind = arguments_of(original)

    def batched_nms(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        given = bind(*args, **kwargs)
        segments, scores, labels = (given[name] for name in ("segs", "scores", "cls_idxs"))
        soft, multiclass = bool(given["use_soft_nms"]), bool(given["multiclass"])
        method = given.get("method", 2) if soft else 0
        most = given["max_seg_num"]
        if "method" in given:  # OpenTAD's converts
            segments, scores = segments.float(), scores.float()
        if segments.dtype != torch.float32 or scores.dtype != torch.float32:
            raise UnsuitableError(f"segments of dtype {segments.dtype}")
        if len(segments) == 0 or most <= 0:
            raise UnsuitableError("no segment, or no limit")
        least = given["min_score"]
        if soft and (method not in (2, 3) or not given["sigma"] > 0 or not least >= 0):
            raise UnsuitableError(f"method {method}, sigma {given['sigma']}, min_score {least}")
        if not 0 <= given["iou_threshold"] <= 1 or not bool(scores.isfinite().all()):
            raise UnsuitableError("a threshold out of range, or a score that is not finite")
        if soft:  # the original's results of soft-NMS are on the CPU
            segments, scores, labels = segments.cpu(), scores.cpu(), labels.cpu()
        else:  # the original drops what equals min_score
            least = _next_float(least) if least > 0 else -math.inf
        voting = given["voting_thresh"]
        numbers = labels.long()
        if labels.is_floating_point() and not torch.equal(numbers.to(labels.dtype), labels):
            raise UnsuitableError("labels that are no whole numbers")
        found = ops.batched_nms(
            segments.detach(),
            scores.detach(),
            numbers,
            method=METHODS[method] if soft else "hard",
            iou_threshold=float(given["iou_threshold"]),
            iou_comparison="ge",
            length_eps=1e-6,
            sigma=float(given["sigma"]) if soft else 0.5,
            t1=float(given.get("t1", 0.0)),
            t2=float(given.get("t2", 0.0)),
            min_score=float(least),
            max_segments=int(most),
            max_per_class=int(most) if multiclass else None,
            per_class=multiclass,
            voting_threshold=voting if not multiclass and voting > 0 else None,
            voting_weight=votes,
            spare_first=soft,
            validate=False,
        )
        return found.segments, found.scores, labels[found.indices]

    return batched_nms


def _next_float(value: float) -> float:
    above = torch.tensor([value, math.inf], dtype=torch.float32, device="cpu")
    return float(torch.nextafter(above[0], above[1]))
