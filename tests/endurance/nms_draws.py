# SPDX-License-Identifier: Apache-2.0
"""Calls of the ops of non-maximum suppression, as ``op_draws`` has those of all others."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import torch
from endurance import op_values as v
from endurance.op_values import Call
from torch import Tensor

from tal_fast import ops
from tal_fast.ops.nms_options import NMSOptions
from tal_fast.reference import nms as twins
from tal_fast.reference import soft_nms_literal as literal_twin

_SOFT = ("linear", "gaussian", "length_gaussian")


def _given(rng: random.Random, dtype: torch.dtype, *, ties: bool = True) -> tuple[Tensor, Tensor]:
    """Segments and scores, mostly few: twins compare all pairs in Python."""
    n = 64 if rng.random() < 0.003 else rng.choice(v.FEW)
    return v.segments(rng, n, dtype), v.scores(rng, n, dtype, ties=ties)


def _overlap(rng: random.Random) -> dict[str, Any]:
    return {
        "iou_threshold": rng.choice((0.0, 0.25, 1 / 3, 0.5, 0.7, 1.0)),
        "iou_comparison": rng.choice(("gt", "ge")),
        "length_eps": rng.choice((0.0, 0.0, 1e-3)),
    }


def _hostile(rng: random.Random, segments: Tensor, options: dict[str, Any]) -> Tensor:
    """Values that are refused, and with ``validate=False`` go through the formula."""
    options["validate"] = rng.random() < 0.7
    return segments if options["validate"] else v.special(rng, segments)


def _padded(found: Tensor, limit: int, padding: float) -> Tensor:
    rest = found.new_full((limit - len(found), *found.shape[1:]), padding)
    return torch.cat((found, rest))


def draw_nms(rng: random.Random) -> Call:
    segments, scores = _given(rng, rng.choice(v.DTYPES))
    options = {**_overlap(rng), "max_segments": rng.choice((None, None, 1, 5))}
    segments = _hostile(rng, segments, options)
    scores = v.special(rng, scores, math.inf, -math.inf)
    chosen = NMSOptions(op="nms", **options)
    return Call(
        lambda s, c: ops.nms(s, c, **options), (segments, scores),
        v.each(lambda s, c: twins.nms(s, c, chosen)),
    )  # fmt: skip


def draw_nms_padded(rng: random.Random) -> Call:
    segments, scores = _given(rng, rng.choice(v.DTYPES))
    options = {**_overlap(rng), "max_segments": rng.choice((1, 5, 100))}
    segments = _hostile(rng, segments, options)
    chosen = NMSOptions(op="nms", **options)

    def twin(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        found = twins.nms(s, c, chosen)
        return _padded(found, options["max_segments"], -1), torch.tensor(len(found))

    return Call(lambda s, c: ops.nms_padded(s, c, **options), (segments, scores), v.each(twin))


def _soft_options(rng: random.Random, *limits: int | None) -> dict[str, Any]:
    """Rules whose weights are the same bits everywhere, or Gaussians that drop nothing."""
    options = {**_overlap(rng), "method": rng.choice(("hard", *_SOFT))}
    options["spare_first"] = rng.random() < 0.3
    if "gaussian" in options["method"]:
        options |= {"sigma": rng.choice((0.1, 0.5)), "min_score": 0.0, "max_segments": 100}
        if options["method"] == "length_gaussian":
            options |= {"t1": rng.choice((0.0, 0.3)), "t2": rng.choice((0.0, 0.01))}
    else:
        options |= {"min_score": rng.choice((0.0, 0.25)), "max_segments": rng.choice(limits)}
    return options


def _call(op: Any, twin: Any, tensors: tuple[Tensor, ...], method: str, at: int = 1) -> Call:
    """A call whose results are the twin's bits; of Gaussians, scores near the twin's.

    A weight that differs by an ulp may change the order of two that are nearly equal.
    """
    if "gaussian" not in method:
        return Call(op, tensors, v.each(twin))

    def sorted_scores(found: Any) -> list[Tensor]:
        return [found[at].flatten().sort().values]

    return Call(
        op, tensors, v.each(lambda *t: sorted_scores(twin(*t))), 4.0,
        told=lambda found: [sorted_scores(case) for case in found],
    )  # fmt: skip


def draw_soft_nms(rng: random.Random) -> Call:
    options = _soft_options(rng, None, 1, 5)
    segments, scores = _given(rng, rng.choice(v.DTYPES), ties="gaussian" not in options["method"])
    chosen = NMSOptions(op="soft_nms", **options)
    return _call(
        lambda s, c: ops.soft_nms(s, c, **options), lambda s, c: twins.soft_nms(s, c, chosen),
        (segments, scores), options["method"],
    )  # fmt: skip


def draw_soft_nms_padded(rng: random.Random) -> Call:
    options = _soft_options(rng, 1, 5, 100)
    segments, scores = _given(rng, rng.choice(v.DTYPES), ties="gaussian" not in options["method"])
    chosen = NMSOptions(op="soft_nms", **options)

    def twin(s: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        rows, found = twins.soft_nms(s, c, chosen)
        limit = options["max_segments"]
        return _padded(rows, limit, -1), _padded(found, limit, 0), torch.tensor(len(rows))

    return _call(lambda s, c: ops.soft_nms_padded(s, c, **options), twin, (segments, scores),
                 options["method"])  # fmt: skip


def draw_soft_nms_literal(rng: random.Random) -> Call:
    method = rng.choice(("hard", *_SOFT))
    options = {
        "method": method,
        "iou_threshold": rng.choice((0.0, 0.25, 0.5)),
        "min_score": 0.0 if "gaussian" in method else rng.choice((0.0, 0.001, 0.25)),
        "length_eps": rng.choice((1e-6, 0.0, 1e-3)),
        "t1": rng.choice((0.0, 0.3)),
        "t2": rng.choice((0.0, 0.01)),
    }
    segments, scores = _given(rng, torch.float32, ties="gaussian" not in method)

    def op(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        rows, found = ops.soft_nms_literal(s, c, **options)
        return rows, found[:, 2]

    def twin(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        rows, found = literal_twin.soft_nms_literal(s, c, **options)
        return rows, found[:, 2]

    return _call(op, twin, (segments, scores), method)


def _classes(rng: random.Random) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    segments, scores = _given(rng, rng.choice(v.DTYPES))
    options = {
        **_overlap(rng),
        "method": rng.choice(("hard", "hard", "linear")),
        "min_score": rng.choice((0.0, 0.25)),
        "per_class": rng.random() < 0.8,
    }
    options["max_per_class"] = rng.choice((None, 1, 5)) if options["per_class"] else None
    n = scores.shape[1]
    return (segments, scores, v.integers(rng, n, 3), v.integers(rng, n, 2)), options


def draw_batched_nms(rng: random.Random) -> Call:
    tensors, options = _classes(rng)
    options["max_segments"] = rng.choice((None, 3))
    chosen = NMSOptions(op="batched_nms", **options)
    return Call(
        lambda *t: ops.batched_nms(*t, **options), tensors,
        v.each(lambda *t: twins.batched_nms(*t, chosen)),
    )  # fmt: skip


def draw_batched_nms_padded(rng: random.Random) -> Call:
    tensors, options = _classes(rng)
    options["max_segments"] = rng.choice((1, 3, 100))
    chosen = NMSOptions(op="batched_nms", **options)

    def twin(s: Tensor, c: Tensor, labels: Tensor, videos: Tensor) -> list[Tensor]:
        rows: list[list[Tensor]] = [[], [], [], []]
        for video in range(2):
            mine = torch.nonzero(videos == video).flatten()
            found = twins.batched_nms(s[mine], c[mine], labels[mine], None, chosen)
            limit = options["max_segments"]
            rows[0].append(_padded(mine[found[0]], limit, -1))
            rows[1].append(_padded(found[1], limit, 0))
            rows[2].append(_padded(found[2], limit, 0))
            rows[3].append(torch.tensor(len(found[0])))
        return [torch.stack(tensors) for tensors in rows]

    def op(*t: Tensor) -> Any:
        return ops.batched_nms_padded(*t, num_videos=2, **options)

    return Call(op, tensors, v.each(twin))


def draw_fuse_windows(rng: random.Random) -> Call:
    (segments, scores, labels, _), options = _classes(rng)
    scope = rng.choice(("all", "overlaps"))
    count = rng.choice((1, 2, 4))
    spans = v.segments(rng, count, segments.dtype)
    of_window, windows = v.integers(rng, count, 2), v.integers(rng, scores.shape[1], count)
    chosen = NMSOptions(op="batched_nms", **options)

    def alone(s: Tensor, w: Tensor, spans: Tensor, of_window: Tensor) -> list[bool]:
        """Whether a segment touches no stretch that two windows of its video share."""
        ends, videos = spans.tolist(), of_window.tolist()
        shared = [
            (video, max(a[0], b[0]), min(a[1], b[1]))
            for (a, video), (b, other) in itertools.combinations(zip(ends, videos, strict=True), 2)
            if video == other and max(a[0], b[0]) < min(a[1], b[1])
        ]
        return [
            not any(
                video == videos[window] and left < end and start < right
                for video, left, right in shared
            )
            for (start, end), window in zip(s.tolist(), w.tolist(), strict=True)
        ]

    def twin(s: Tensor, c: Tensor, classes: Tensor, w: Tensor, *windows: Tensor) -> list[Tensor]:
        options_of, chosen_of = dict(options), chosen
        if scope == "overlaps":
            classes = classes if options["per_class"] else torch.zeros_like(classes)
            options_of["per_class"] = True
            chosen_of = NMSOptions(op="batched_nms", **options_of)
            own = torch.arange(len(c)) + 1000
            mask = torch.tensor(alone(s, w, *windows), dtype=torch.bool)
            classes = torch.where(mask, own, classes)
        return list(twins.batched_nms(s, c, classes, windows[1][w], chosen_of))

    return Call(
        lambda *t: ops.fuse_windows(*t, scope=scope, **options),
        (segments, scores, labels, windows, spans, of_window), v.each(twin),
    )  # fmt: skip


NMS_DRAWS = (
    draw_nms,
    draw_nms_padded,
    draw_soft_nms,
    draw_soft_nms_padded,
    draw_soft_nms_literal,
    draw_batched_nms,
    draw_batched_nms_padded,
    draw_fuse_windows,
)
