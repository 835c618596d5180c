# SPDX-License-Identifier: Apache-2.0
"""Peers' algorithms, written for this benchmark: what stands in where the peer itself is absent.

Each follows the published rule of the project that it stands for, in the form a Python user would
write; a row that used one says ``stand-in``. The formulations for ``torch.compile`` are no
stand-ins: they are peers in their own right, the best eager form of an op handed to the compiler.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "boundary_max_pool",
    "deform_attn_gather",
    "deform_attn_grid_sample",
    "iou_tools",
    "local_attn_unfolded",
    "matching_cost",
    "nms_1d",
    "segment_roi_align_gather",
    "segment_roi_align_matmul",
]


# ---- deformable attention --------------------------------------------------------------------


def deform_attn_grid_sample(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """A sequence as an image of height 1; the vertical coordinate is 0, the middle of its row."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    sampled = []
    for level, rows in enumerate(value.split(list(level_lengths), dim=1)):
        image = rows.permute(0, 2, 3, 1).reshape(batch * heads, channels, 1, -1)
        x = locations[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points)
        grid = torch.stack([2 * x - 1, torch.zeros_like(x)], dim=-1)  # [B*H, Q, P, 2]
        sampled.append(
            functional.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)
        )  # [B*H, D, Q, P]
    share = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)  # [B*H, 1, Q, L*P]
    out = (torch.cat(sampled, dim=-1) * share).sum(-1)  # [B*H, D, Q]
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def deform_attn_gather(
    value: Tensor, level_lengths: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Both neighbours of every sample by index, blended; the natural thing to compile."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = value.new_zeros(batch, heads, queries, channels)
    for level, rows in enumerate(value.split(list(level_lengths), dim=1)):
        length = rows.shape[1]
        table = rows.transpose(1, 2)  # [B, H, T, D]
        x = locations[:, :, :, level].transpose(1, 2) * length - 0.5  # [B, H, Q, P]
        share = weights[:, :, :, level].transpose(1, 2)
        left = x.detach().floor()
        fraction = x - left
        for tap, blend in ((left, 1 - fraction), (left + 1, fraction)):
            inside = (tap >= 0) & (tap <= length - 1)
            index = tap.clamp(0, length - 1).long().reshape(batch, heads, -1, 1)
            taken = table.gather(2, index.expand(-1, -1, -1, channels))
            taken = taken.view(batch, heads, queries, points, channels)
            out = out + (taken * (share * blend * inside)[..., None]).sum(3)
    return out.transpose(1, 2).reshape(batch, queries, heads * channels)


# ---- banded self-attention ---------------------------------------------------------------------


def local_attn_unfolded(
    query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor
) -> Tensor:
    """Every row's window as a dimension of its own."""
    half = window // 2
    hidden = functional.pad(mask, (half, half), value=True).unfold(1, 2 * half + 1, 1)
    keys = functional.pad(key, (0, 0, 0, 0, half, half)).unfold(1, 2 * half + 1, 1)
    values = functional.pad(value, (0, 0, 0, 0, half, half)).unfold(1, 2 * half + 1, 1)
    scores = (query[..., None, :] @ keys)[..., 0, :] * query.shape[-1] ** -0.5  # [B, T, H, window]
    scores = scores.masked_fill(hidden[:, :, None], -torch.inf)
    weights = scores.masked_fill(mask[..., None, None], 0.0).softmax(-1)
    return (values @ weights[..., None])[..., 0].masked_fill(mask[..., None, None], 0.0)


# ---- overlaps and matching -------------------------------------------------------------------


def _parts(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull of all pairs; rows are the second's segments."""
    a, b = second[:, None], first[None]
    inter = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def _iou(first: Tensor, second: Tensor) -> Tensor:
    inter, union, _ = _parts(first, second)
    return inter / union.clamp(min=1e-6)


def _giou(first: Tensor, second: Tensor) -> Tensor:
    inter, union, hull = _parts(first, second)
    return inter / union.clamp(min=1e-6) - (hull - union) / (hull + 1e-6)


def iou_tools() -> types.SimpleNamespace:
    """Eager pairwise overlaps under OpenTAD's names."""
    return types.SimpleNamespace(compute_iou_torch=_iou, compute_giou_torch=_giou)


def matching_cost(outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """TadTR's cost (weights 6, 5, 2) of all queries with all targets, then every video's block."""
    batch, queries = outputs["pred_logits"].shape[:2]
    probability = outputs["pred_logits"].flatten(0, 1).sigmoid()
    segments = outputs["pred_segments"].flatten(0, 1)
    labels = torch.cat([target["labels"] for target in targets])
    wanted = torch.cat([target["segments"] for target in targets])
    absent = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    present = 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log()
    half = segments.new_tensor([-0.5, 0.5])
    a = segments[:, :1] + half * segments[:, 1:]
    b = wanted[:, :1] + half * wanted[:, 1:]
    inter, union, _ = _parts(b, a)
    cost = (
        6 * (present[:, labels] - absent[:, labels])
        + 5 * torch.cdist(segments, wanted, p=1)
        - 2 * inter / union
    )
    sizes = [len(target["labels"]) for target in targets]
    blocks = cost.view(batch, queries, -1).split(sizes, -1)
    return torch.cat([block[i].flatten() for i, block in enumerate(blocks)])


# ---- suppression -----------------------------------------------------------------------------


def _hard(segs: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression at IoU >= threshold, one pass over the rest per kept segment."""
    start, end = segs.numpy().T.copy()
    length = end - start + np.float32(1e-6)
    order = np.argsort(-scores.numpy(), kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        inter = np.minimum(end[best], end[order]) - np.maximum(start[best], start[order])
        inter = np.maximum(inter, np.float32(0))
        overlap = inter / (length[best] + length[order] - inter)
        order = order[~(overlap >= np.float32(iou_threshold))]
    return torch.tensor(np.array(kept, dtype=np.int64))


def _soft(
    segs: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    t1: float = 0.0,
    t2: float = 0.0,
) -> Tensor:
    """Gaussian decay, one pass over the rest per selected segment."""
    if method != 2:
        raise NotImplementedError("the stand-in knows the Gaussian method alone")
    start, end = segs.numpy().T.copy()
    length = end - start + np.float32(1e-6)
    left = scores.numpy().copy()
    rest = np.arange(len(left))
    kept = []
    while len(rest):
        best = rest[np.argmax(left[rest])]
        rest = rest[rest != best]
        dets[len(kept)] = torch.tensor([start[best], end[best], left[best]])
        kept.append(best)
        inter = np.minimum(end[best], end[rest]) - np.maximum(start[best], start[rest])
        inter = np.maximum(inter, np.float32(0))
        overlap = inter / (length[best] + length[rest] - inter)
        left[rest] *= np.exp(-(overlap * overlap) / np.float32(sigma))
        rest = rest[~(left[rest] < np.float32(min_score))]
    return torch.tensor(np.array(kept, dtype=np.int64))


def _voting(kept: Tensor, segs: Tensor, scores: Tensor, threshold: float) -> Tensor:
    inter, union, _ = _parts(segs, kept)
    share = (inter / union >= threshold) * scores
    return (share / share.sum(1, keepdim=True)) @ segs


def _batched(
    segs: Tensor,
    scores: Tensor,
    cls_idxs: Tensor,
    iou_threshold: float = 0.0,
    min_score: float = 0.0,
    max_seg_num: int = 100,
    use_soft_nms: bool = True,
    multiclass: bool = True,
    sigma: float = 0.5,
    voting_thresh: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loop over the classes, then one sort."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    groups = [torch.where(cls_idxs == c)[0] for c in cls_idxs.unique()] if multiclass else [...]
    for rows in groups:
        own, own_scores, own_labels = segs[rows], scores[rows], cls_idxs[rows]
        if use_soft_nms:
            dets = own.new_empty((len(own), 3))
            index = _soft(own, own_scores, dets, iou_threshold, sigma, min_score, 2)[:max_seg_num]
            found.append((dets[: len(index), :2], dets[: len(index), 2], own_labels[index]))
        else:
            valid = own_scores > min_score
            own, own_scores, own_labels = own[valid], own_scores[valid], own_labels[valid]
            index = _hard(own, own_scores, iou_threshold)[:max_seg_num]
            found.append((own[index], own_scores[index], own_labels[index]))
    kept, kept_scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    if voting_thresh > 0 and not multiclass:
        kept = _voting(kept, segs, scores, voting_thresh)
    order = kept_scores.argsort(descending=True)[:max_seg_num]
    return kept[order], kept_scores[order], labels[order]


def nms_1d() -> tuple[types.SimpleNamespace, types.SimpleNamespace]:
    """Returns (native functions, Python layer) under the names of the ``nms_1d_cpu`` family."""
    return (
        types.SimpleNamespace(nms=_hard, softnms=_soft),
        types.SimpleNamespace(batched_nms=_batched, seg_voting=_voting),
    )


# ---- pooling ---------------------------------------------------------------------------------


def _roi_samples(
    rois: Tensor, rows: int, bins: int, most_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Left tap [K, R, n], and the weights of it and of the next row; missing samples weigh 0."""
    start = rois[:, 1:2, None]
    length = (rois[:, 2:3, None] - start).clamp(min=1)  # [K, 1, 1]
    samples = (length / bins).ceil()
    bin_index = torch.arange(bins, device=rois.device)[None, :, None]
    number = torch.arange(most_samples, device=rois.device)[None, None]
    step = length / bins
    position = start + bin_index * step + (number + 0.5) * step / samples
    counts = (number < samples) & (position >= -1) & (position <= rows)
    inside = position.clamp(0, rows - 1)
    left = inside.floor()
    upper = inside - left
    share = counts / samples
    return left.long(), (1 - upper) * share, upper * share


def segment_roi_align_gather(
    features: Tensor, rois: Tensor, output_size: int, most_samples: int
) -> Tensor:
    """Align1D's rule with a fixed number of samples per bin, those a bin lacks masked out.

    Args:
        features: Tensor[B, C, T].
        rois: Tensor[K, 3].
        output_size: number of bins.
        most_samples: samples of the longest roi's bins, ceil(longest / output_size).
    """
    batch, _, rows = features.shape
    table = features.transpose(1, 2).reshape(batch * rows, -1)  # [B * T, C]
    left, low, high = _roi_samples(rois, rows, output_size, most_samples)
    offset = rois[:, 0, None, None].long() * rows
    lower = table[offset + left] * low[..., None]
    upper = table[offset + (left + 1).clamp(max=rows - 1)] * high[..., None]
    return (lower + upper).sum(2).transpose(1, 2)  # [K, C, R]


def segment_roi_align_matmul(
    features: Tensor, rois: Tensor, output_size: int, most_samples: int
) -> Tensor:
    """The same as the linear map that it is: a weight per bin and row, times the features.

    Wants the rois of an item one after another, as many for each.
    """
    batch, channels, rows = features.shape
    left, low, high = _roi_samples(rois, rows, output_size, most_samples)
    weights = features.new_zeros(len(rois), output_size, rows)
    weights = weights.scatter_add(2, left, low)
    weights = weights.scatter_add(2, (left + 1).clamp(max=rows - 1), high)
    sums = torch.bmm(weights.view(batch, -1, rows), features.transpose(1, 2))
    return sums.view(-1, output_size, channels).transpose(1, 2).contiguous()


def boundary_max_pool(features: Tensor, segments: Tensor) -> Tensor:
    """A masked maximum over all rows, for both halves of the channels."""
    rows = features.shape[2]
    bounds = segments.trunc().clamp(0, rows - 1)
    at = torch.arange(rows, device=features.device)
    halves = []
    for half, (left, right) in zip(
        features.chunk(2, 1), (bounds[..., :2].unbind(-1), bounds[..., 2:].unbind(-1)), strict=True
    ):
        inside = (at >= left[..., None]) & (at <= torch.maximum(left, right)[..., None])
        masked = half[:, :, None].masked_fill(~inside[:, None], -torch.inf)  # [B, C/2, K, T]
        halves.append(masked.amax(-1))
    return torch.cat(halves, 1)
