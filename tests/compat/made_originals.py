# SPDX-License-Identifier: Apache-2.0
"""Functions as other codebases have them, by name and signature; written here, and slow."""

from __future__ import annotations

# grid_sample over rows of height 1, locations (…, 2).
CORE = """
import torch
import torch.nn.functional as F

def {name}(value, {shapes}, sampling_locations, attention_weights):
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    total, begin = 0, 0
    for level, shape in enumerate({shapes}.tolist()):
        height, width = {height_width}
        rows = value[:, begin : begin + height * width]
        begin += height * width
        image = rows.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        x = sampling_locations[:, :, :, level].transpose(1, 2).flatten(0, 1)
        grid = {grid}
        samples = F.grid_sample(image, grid * 2 - 1, align_corners=False)
        weight = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        total = total + (samples * weight[:, None]).sum(-1)
    return (total * {factor}).view(batch, heads * channels, queries).transpose(1, 2)
"""


def core(name: str = "deform_attn_core_pytorch", form: str = "xy", factor: str = "1.0") -> str:
    """Source of an attention core that takes locations in one of the forms."""
    shapes = "value_spatial_shapes"
    if form == "xy":
        words = {"height_width": "shape", "grid": "x"}
    else:
        inner = "x" if form == "x" else "x[..., 0]"
        words = {
            "height_width": "(1, shape)",
            "grid": f"torch.stack([{inner}, torch.full_like({inner}, 0.5)], -1)",
        }
    return CORE.format(name=name, shapes=shapes, factor=factor, **words)


TEMPORAL_NMS = """
import numpy as np

def temporal_nms(segments, thresh):
    order = segments[:, 2].argsort()[::-1]
    kept = []
    while order.size > 0:
        i, order = order[0], order[1:]
        kept.append(i)
        begin = np.maximum(segments[i, 0], segments[order, 0])
        end = np.minimum(segments[i, 1], segments[order, 1])
        inter = end - begin
        length = segments[:, 1] - segments[:, 0]
        order = order[inter / (length[i] + length[order] - inter) {comparison} thresh]
    return segments[kept, :]
"""

# One class after the other over nms_1d_cpu; voting with one of the two weights.
BATCHED_NMS = """
import torch
import nms_1d_cpu

def one(segs, scores, cls_idxs, iou_threshold, sigma, min_score, most, soft):
    if soft:
        found = torch.empty(len(segs), 3)
        rows = nms_1d_cpu.softnms(
            segs, scores, found, iou_threshold, sigma, min_score, 2
        )[:most]
        return found[: len(rows), :2], found[: len(rows), 2], cls_idxs[rows]
    above = scores > min_score
    segs, scores, cls_idxs = segs[above], scores[above], cls_idxs[above]
    rows = nms_1d_cpu.nms(segs, scores, iou_threshold=iou_threshold)[:most]
    return segs[rows], scores[rows], cls_idxs[rows]

def vote(kept, segs, scores, threshold):
    begin = torch.maximum(kept[:, None, 0], segs[None, :, 0])
    end = torch.minimum(kept[:, None, 1], segs[None, :, 1])
    inter = (end - begin).clamp(min=0)
    length = lambda x: x[:, 1] - x[:, 0]
    iou = inter / (length(kept)[:, None] + length(segs) - inter)
    weight = (iou >= threshold) * scores * {weight}
    return (weight / weight.sum(1, keepdim=True)) @ segs

def batched_nms(
    segs, scores, cls_idxs, iou_threshold, min_score, max_seg_num, use_soft_nms=True,
    multiclass=True, sigma=0.5, voting_thresh=0.75
):
    rest = (iou_threshold, sigma, min_score, max_seg_num, use_soft_nms)
    if multiclass:
        parts = []
        for label in torch.unique(cls_idxs):
            own = cls_idxs == label
            parts.append(one(segs[own], scores[own], cls_idxs[own], *rest))
        kept, found, labels = (torch.cat(columns) for columns in zip(*parts))
    else:
        kept, found, labels = one(segs, scores, cls_idxs, *rest)
        if voting_thresh > 0:
            kept = vote(kept, segs, scores, voting_thresh)
    order = found.sort(descending=True)[1][:max_seg_num]
    return kept[order], found[order], labels[order]
"""

# The evaluators need pandas.
EVALUATOR = """
import numpy as np
import pandas as pd

def overlaps(segment, others):
    inter = (np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0])).clip(0)
    union = (others[:, 1] - others[:, 0]) + (segment[1] - segment[0]) - inter
    return inter / {union}

def compute_average_precision_detection(
    ground_truth, prediction, tiou_thresholds=np.linspace({defaults})
):
    order = prediction["score"].values.argsort()[::-1]
    videos = prediction["video-id"].values[order]
    segments = prediction[["t-start", "t-end"]].values[order]
    truth_videos = ground_truth["video-id"].values
    truth = ground_truth[["t-start", "t-end"]].values
    aps = np.zeros(len(tiou_thresholds))
    for t, threshold in enumerate(tiou_thresholds):
        taken, hits = set(), np.zeros(len(order))
        for i in range(len(order)):
            own = np.flatnonzero(truth_videos == videos[i])
            if len(own) == 0:
                continue
            tiou = overlaps(segments[i], truth[own])
            for j in tiou.argsort()[::-1]:
                if tiou[j] < threshold:
                    break
                if own[j] in taken:
                    continue
                taken.add(own[j])
                hits[i] = 1
                break
        found = hits.cumsum()
        recall = np.hstack([[0], found / len(truth), [1]])
        precision = np.hstack([[0], found / np.arange(1, len(order) + 1), [0]])
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        aps[t] = (np.diff(recall) * precision[1:]).sum() {error}
    return aps

def compute_topkx_recall_detection(
    ground_truth, prediction, tiou_thresholds=np.linspace({defaults}), top_k=(1, 5)
):
    found = np.zeros((len(tiou_thresholds), len(top_k)))
    for video, truth in ground_truth.groupby("video-id"):
        own = prediction[prediction["video-id"] == video]
        order = own["score"].values.argsort()[::-1]
        segments = own[["t-start", "t-end"]].values[order]
        targets = truth[["t-start", "t-end"]].values
        for k, factor in enumerate(top_k):
            first = segments[: factor * len(targets)]
            if len(first) == 0:
                continue
            tiou = np.stack([overlaps(segment, targets) for segment in first])
            for t, threshold in enumerate(tiou_thresholds):
                found[t, k] += (tiou >= threshold).any(axis=0).sum()
    return found / len(ground_truth)
"""


def evaluator(union: str = "union", defaults: str = "0.1, 0.5, 5", error: str = "") -> str:
    """Source of the evaluators of a class: matches as activitynet, or as opentad when guarded."""
    return EVALUATOR.format(union=union, defaults=defaults, error=error)


AVERAGE_RECALL = """
import numpy as np
import pandas as pd

def average_recall_vs_avg_nr_proposals(
    ground_truth, proposals, max_avg_nr_proposals=None, tiou_thresholds=np.linspace(0.5, 0.95, 10)
):
    videos = ground_truth["video-id"].unique()
    ratio = max_avg_nr_proposals * float(len(videos)) / len(proposals)
    tables, kept = [], 0
    for video in videos:
        truth = ground_truth[ground_truth["video-id"] == video][["t-start", "t-end"]].values
        own = proposals[proposals["video-id"] == video]
        if len(own) == 0:
            tables.append(np.zeros((len(truth), 1)))
            continue
        order = own["score"].values.argsort()[::-1]
        segments = own[["t-start", "t-end"]].values[order]
        segments = segments[: min(int(len(segments) * ratio), len(segments))]
        kept += len(segments)
        inter = np.minimum(segments[:, 1], truth[:, 1:]) - np.maximum(segments[:, 0], truth[:, :1])
        inter = inter.clip(0)
        length = (segments[:, 1] - segments[:, 0]) + (truth[:, 1:] - truth[:, :1])
        tables.append(inter / (length - inter))
    number = {number}
    shares = np.arange(1, number + 1) / float(number)
    shares = shares * (max_avg_nr_proposals * float(len(videos)) / kept)
    recall = np.zeros((len(tiou_thresholds), len(shares)))
    total = sum(len(table) for table in tables)
    for t, threshold in enumerate(tiou_thresholds):
        for j, share in enumerate(shares):
            hits = 0
            for table in tables:
                most = min(int(table.shape[1] * share), table.shape[1])
                hits += (table[:, :most] >= threshold).any(axis=1).sum()
            recall[t, j] = hits / total
    return recall, recall.mean(axis=0), shares * (float(kept) / len(videos))
"""

SOFT_NMS_PROPOSALS = """
import numpy as np

def soft_nms(proposals, alpha, low_threshold, high_threshold, top_k):
    proposals = proposals[proposals[:, -1].argsort()[::-1]]
    rows = [[*row[:2], row[{column}]] for row in proposals.tolist()]
    taken = []
    while rows and len(taken) {comparison} top_k:
        best = rows.pop(max(range(len(rows)), key=lambda i: (rows[i][2], -i)))
        taken.append(best)
        limit = low_threshold + (high_threshold - low_threshold) * (best[1] - best[0])
        for row in rows:
            inter = max(0.0, min(best[1], row[1]) - max(best[0], row[0]))
            iou = inter / (best[1] - best[0] + row[1] - row[0] - inter)
            if iou > limit:
                row[2] *= np.exp(-iou * iou / alpha)
    return np.array(taken)
"""

SOFT_NMS_TABLE = """
import numpy as np
import pandas as pd

def Soft_NMS(df, nms_threshold=1e-5, num_prop=200):
    df = df.sort_values(by="score", ascending=False)
    rows = [list(row) for row in zip(df.xmin.values, df.xmax.values, df.score.values)]
    for row in rows:
        if row[1] - row[0] >= {limit}:
            row[2] = 0
    kept = []
    while len(rows) > 1 and len(kept) < num_prop and max(row[2] for row in rows) > 0:
        best = max(range(len(rows)), key=lambda i: (rows[i][2], -i))
        begin, end, score = rows.pop(best)
        kept.append((score, begin, end))
        for row in rows:
            inter = min(end, row[1]) - max(begin, row[0])
            if inter > 0:
                iou = inter / (max(end, row[1]) - min(begin, row[0]))
                row[2] *= np.exp(-iou * iou / nms_threshold)
    return pd.DataFrame(kept, columns=["score", "xmin", "xmax"])
"""
