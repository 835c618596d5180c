# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression of segments: hard, soft, and batched over videos and classes.

One set of rules holds for all three functions:

* IoU = inter / (length_a + length_b - inter) with inter = max(0, overlap) and no epsilon. Two
  segments of length zero have IoU 0 / 0 = NaN and do not act on each other.
* All is computed in float64 for float64 input and in float32 for float32, float16 and bfloat16,
  thresholds included, without fused multiply-add: results are the same on every machine.
* Detections are ordered by falling score, equal scores by rising index.
* Nothing here is differentiable: the returned scores carry no gradient, the returned indices select
  from differentiable tensors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

METHODS = ("hard", "linear", "gaussian")
"""Words for the argument ``method``; their positions are the numbers that the native ops take."""


class BatchedNMSResult(NamedTuple):
    """What ``batched_nms`` keeps, K detections.

    With ``videos`` they are grouped by rising video; within a video, and without ``videos``
    altogether, they are ordered by falling score, equal scores by rising index.

    Attributes:
        indices: int64 Tensor[K], rows of the input.
        scores: Tensor[K] in the dtype of the input, decayed if the method is soft.
        segments: Tensor[K, 2], ``segments[indices]``.
    """

    indices: Tensor
    scores: Tensor
    segments: Tensor


def nms(segments: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keeps the best of segments that overlap: greedy non-maximum suppression.

    Goes through the segments by falling score and keeps each one whose IoU with every segment kept
    before is at most ``iou_threshold``: an IoU exactly on the threshold does not suppress.

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device. Infinite ones are allowed.
        iou_threshold: largest IoU that two kept segments may have, in [0, 1].

    Returns:
        int64 Tensor[K]: the kept rows by falling score, equal scores by rising index.

    Raises:
        RuntimeError: on wrong shapes, dtypes or devices, a threshold outside [0, 1], a NaN score,
            or a segment that is not finite or ends before it starts (the row is named).

    Example:
        >>> segments = torch.tensor([[0.0, 10.0], [1.0, 10.0], [20.0, 30.0]])
        >>> nms(segments, torch.tensor([0.8, 0.9, 0.1]), iou_threshold=0.5)
        tensor([1, 2])
    """
    _check_device("nms", segments, scores=scores)
    kept: Tensor = torch.ops.tal_fast.nms.default(segments, scores, iou_threshold)
    return kept


def soft_nms(
    segments: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_segments: int | None = 200,
) -> tuple[Tensor, Tensor]:
    """Lowers the scores of segments that overlap a better one (Bodla et al., "Soft-NMS", 2017).

    Repeats: take the segment with the highest current score, of equal ones that with the lowest
    index, then multiply the score of every other remaining segment by a weight of its IoU with it:

    ============  ==================================================================
    ``method``    weight
    ============  ==================================================================
    ``gaussian``  exp(-IoU² / sigma), for every IoU
    ``linear``    1 - IoU where IoU >= ``iou_threshold``, else 1
    ``hard``      removed where IoU > ``iou_threshold``, else 1: the rule of ``nms``
    ============  ==================================================================

    A segment whose score is below ``min_score`` is dropped, at the beginning as well as after a
    decay. (Other implementations spare the very first pick whatever its score; this one does not.)

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device.
        method: "gaussian", "linear" or "hard".
        sigma: width of the Gaussian, > 0; unused otherwise.
        iou_threshold: in [0, 1]; unused by "gaussian".
        min_score: scores below it are dropped. Not negative for the soft methods.
        max_segments: return at most so many; None: no limit.

    Returns:
        indices: int64 Tensor[K], the kept rows in the order in which they were taken, which is by
            falling final score.
        scores: Tensor[K] in the dtype of ``scores``, the final scores (rounded once from float32
            for the 16-bit types). Not differentiable.

    Raises:
        ValueError: if ``method`` is none of the three.
        RuntimeError: on wrong shapes, dtypes or devices, options out of range, a NaN score, or a
            segment that is not finite or ends before it starts (the row is named).
    """
    _check_device("soft_nms", segments, scores=scores)
    code = _method_code("soft_nms", method)
    indices, kept_scores = torch.ops.tal_fast.soft_nms.default(
        segments, scores, code, sigma, iou_threshold, min_score, max_segments
    )
    return indices, kept_scores


def batched_nms(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None = None,
    *,
    method: str = "hard",
    iou_threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.0,
    max_segments: int | None = None,
    per_class: bool = True,
) -> BatchedNMSResult:
    """Suppresses within each class of each video, for all of them in one parallel native call.

    Every (video, class) is one problem, solved as ``nms`` (method "hard") or ``soft_nms``
    ("linear", "gaussian") would; then the detections of a video are merged by falling score and cut
    to ``max_segments``. The result does not depend on the number of threads.

    Args:
        segments: Tensor[N, 2] of float64, float32, float16 or bfloat16: start and end, in seconds
            or any other unit, with start <= end.
        scores: Tensor[N] of the same dtype and device.
        labels: int64 or int32 Tensor[N], any numbers.
        videos: int64 or int32 Tensor[N], any numbers; None: all segments are of one video.
        method: "hard", "linear" or "gaussian", see ``soft_nms``.
        iou_threshold: in [0, 1]; "hard" removes above it, "linear" decays from it on.
        sigma: width of the Gaussian, > 0; unused otherwise.
        min_score: scores below it are dropped, so the default drops negative scores: give
            ``-math.inf`` to keep logits (method "hard" only).
        max_segments: keep at most so many per video; None: no limit.
        per_class: False lets segments act on each other whatever their labels.

    Returns:
        BatchedNMSResult(indices, scores, segments). Indices and scores are not differentiable;
        ``segments`` is ``segments[indices]``.

    Raises:
        ValueError: if ``method`` is none of the three.
        RuntimeError: on wrong shapes, dtypes or devices, options out of range, a NaN score, or a
            segment that is not finite or ends before it starts (the row is named).
    """
    _check_device("batched_nms", segments, scores=scores, labels=labels, videos=videos)
    code = _method_code("batched_nms", method)
    indices, kept_scores = torch.ops.tal_fast.batched_nms.default(
        segments,
        scores,
        labels,
        videos,
        code,
        iou_threshold,
        sigma,
        min_score,
        max_segments,
        per_class,
    )
    return BatchedNMSResult(indices, kept_scores, segments.index_select(0, indices))


def _method_code(op: str, method: str) -> int:
    if method not in METHODS:
        raise ValueError(f"{op}: expected method to be one of {', '.join(METHODS)}, got {method!r}")
    return METHODS.index(method)


def _check_device(op: str, segments: Tensor, **others: Tensor | None) -> None:
    # Here and not in the op: which implementation runs depends on the devices, so none of them
    # sees every mixture.
    for name, other in others.items():
        if other is not None and other.device != segments.device:
            raise RuntimeError(
                f"{op}: expected {name} on {segments.device} like segments, got {other.device}"
            )


@torch.library.register_fake("tal_fast::nms")
def _nms_fake(segments: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64)


@torch.library.register_fake("tal_fast::soft_nms")
def _soft_nms_fake(
    segments: Tensor,
    scores: Tensor,
    method: int,
    sigma: float,
    iou_threshold: float,
    min_score: float,
    max_segments: int | None,
) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)


@torch.library.register_fake("tal_fast::batched_nms")
def _batched_nms_fake(
    segments: Tensor,
    scores: Tensor,
    labels: Tensor,
    videos: Tensor | None,
    method: int,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    max_segments: int | None,
    per_class: bool,
) -> tuple[Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(kept, dtype=torch.int64), scores.new_empty(kept)


# Not differentiable, said out loud: without a registered rule the scores would claim to require a
# gradient, and backward would only warn and stop there.


def _mark_non_differentiable(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(ctx, *grads):  # type: ignore[no-untyped-def]
    raise RuntimeError("tal_fast: non-maximum suppression has no gradient")


for _op in ("tal_fast::nms", "tal_fast::soft_nms", "tal_fast::batched_nms"):
    torch.library.register_autograd(_op, _no_gradient, setup_context=_mark_non_differentiable)
    # Half scores tie far too often, and half seconds are far too coarse.
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(_op, _device, torch.float32)
del _op, _device
