# SPDX-License-Identifier: Apache-2.0
"""The training objective of TadTR."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tal_fast import ops, ranges
from tal_fast.data.batches import to_device
from tal_fast.models.base import Targets, Whole
from tal_fast.models.losses import focal_loss
from tal_fast.models.segments import center_width_to_start_end, start_end_to_center_width
from tal_fast.models.tadtr.config import TadTRLoss
from tal_fast.models.tadtr.matching import match

__all__ = ["TadTROutput", "tadtr_loss"]

_EPS = 1e-12  # keeps the IoU of two segments of zero width at 0 instead of NaN


class TadTROutput(NamedTuple):
    """What one forward pass gives, for every decoder layer (K of them, the last one counts).

    Attributes:
        logits: ``Tensor[K, B, Q, classes]``.
        segments: ``Tensor[K, B, Q, 2]``, (centre, width) in [0, 1] of the window.
        actionness: ``Tensor[B, Q]`` in [0, 1] for the last layer's segments, or None.
    """

    logits: Tensor
    segments: Tensor
    actionness: Tensor | None


def tadtr_loss(
    output: TadTROutput, targets: Targets, config: TadTRLoss, whole: Whole | None = None
) -> dict[str, Tensor]:
    """Set loss over all decoder layers, plus actionness on the last.

    Per layer: focal classification of every query, L1 and 1 - IoU of the matched ones, each summed
    over the batch and divided by its number of instances (TadTR, section III-D).

    Args:
        output: of the model, K layers, B windows, Q queries.
        targets: of the B windows.
        config: weights.
        whole: the batch that these windows are a part of; then the losses of all parts add up to
            those of the whole batch. These windows are all of it when None.

    Returns:
        Scalars ``classification``, ``l1``, ``iou``, ``actionness`` (each summed over the layers,
        unweighted) and ``total`` (weighted), the one to differentiate.
    """
    logits, predicted = output.logits, output.segments
    counts = list(targets.counts)
    all_labels = to_device(targets.labels, logits.device)
    all_targets = to_device(_shares(targets), predicted.device).to(predicted.dtype)
    whole = whole or Whole(targets)
    number, real = whole.instances, targets.real
    instances = number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)

    with ranges.range("tal_fast.matching"):
        pairs = match(logits, predicted, all_labels, all_targets, counts, config, real)

    is_class = torch.zeros_like(logits)
    there = 1.0 if real is None else real[pairs.target].to(logits.dtype)
    is_class[pairs.layer, pairs.window, pairs.query, all_labels[pairs.target]] = there
    focal = focal_loss(logits, is_class, config.focal_alpha, config.focal_gamma)
    matched = predicted[pairs.layer, pairs.window, pairs.query]
    # Without an assignment there is no loss: NaN, which ends the training.
    matched = matched.masked_fill((pairs.query < 0)[:, None], math.nan)
    wanted = all_targets[pairs.target]
    edges = center_width_to_start_end(matched), center_width_to_start_end(wanted)
    if real is None:
        missed = ops.iou_loss(*edges, "sum", eps=_EPS)
        distance = F.l1_loss(matched, wanted, reduction="sum")
    else:
        none = ~real[pairs.target]
        missed = ops.iou_loss(*edges, eps=_EPS).masked_fill(none, 0.0).sum()
        distance = F.l1_loss(matched, wanted, reduction="none").masked_fill(none[:, None], 0.0)
        distance = distance.sum()
    losses = {
        "classification": focal.sum() / instances,
        "l1": distance / instances,
        "iou": missed / instances,
    }
    if output.actionness is not None:
        last = predicted[-1].detach()
        if config.actionness_targets == "video":
            target = _best_iou(last, all_targets, counts, real)
        else:
            everywhere = whole.targets()
            if everywhere is not targets:
                all_targets = to_device(_shares(everywhere), last.device).to(last.dtype)
            target = _best_iou(last, all_targets, real=real)
        distance = F.l1_loss(output.actionness, target, reduction="sum")
        losses["actionness"] = distance / (whole.clips * output.actionness.shape[1])
    weights = {
        "classification": config.classification,
        "l1": config.l1,
        "iou": config.iou,
        "actionness": config.actionness,
    }
    losses["total"] = torch.stack([weights[key] * value for key, value in losses.items()]).sum()
    return losses


def _shares(targets: Targets) -> Tensor:
    """Returns ``Tensor[N, 2]`` float32, (centre, width) of instances in [0, 1] of the window."""
    return (start_end_to_center_width(targets.edges) / targets.length).float()


def _best_iou(
    segments: Tensor,
    targets: Tensor,
    counts: list[int] | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Returns ``Tensor[B, Q]``: the IoU of each segment with the instance it covers best.

    Of its own window's instances where ``counts`` says how many each window has, else of all; of
    the ``real`` ones where some are not.
    """
    batch, queries = segments.shape[:2]
    if not len(targets):
        return segments.new_zeros(batch, queries)
    overlap = ops.segment_iou(
        center_width_to_start_end(segments.reshape(-1, 2)),
        center_width_to_start_end(targets),
        eps=_EPS,
    ).view(batch, queries, -1)
    if real is not None:
        overlap = overlap * real
    if counts is not None:
        owner = ops.ragged_index(counts, overlap).group
        same_clip = owner == torch.arange(batch, device=overlap.device)[:, None]
        overlap = overlap * same_clip[:, None]
    return overlap.amax(-1)
