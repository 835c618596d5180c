# SPDX-License-Identifier: Apache-2.0
"""Ops on tensors of more than 2^31 elements, which are never there: pages that nobody wrote.

Such a tensor has numbers only in its last rows, where offsets do not fit into 32 bits. An op must
give there what it gives for a copy of these rows alone, and must not copy the whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from endurance import op_values as v
from endurance.subject import expect
from endurance.warm_cases import begin_peak, memory_of
from torch import Tensor

from tal_fast import ops

__all__ = ["beyond_int32", "large_results"]

_TAIL = 64
#: What a case may write: results, scratch, the tail.
_MAY_WRITE = 512 << 20
_NEEDS = 12 << 30


def _one(draw: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """Draws a tensor of one case."""
    return draw(*arguments, cases=1, **options)[0]


def _unwritten(rng: random.Random, *shape: int, axis: int) -> tuple[Tensor, Tensor]:
    """A tensor of float16 with numbers in the last rows of an axis, and a copy of these.

    Pages that are only read are one and the same page of zeros, so it takes no memory.
    """
    whole = torch.from_numpy(np.zeros(shape, np.float16))
    expect(whole.numel() > 2**31, "only", whole.numel(), "elements")
    place = whole[(-1,) * (whole.ndim > 2 and axis > 0)] if axis else whole
    rows = place.narrow(-1 if axis else 0, shape[axis] - _TAIL, _TAIL)
    rows.copy_(_one(v.numbers, rng, *rows.shape, dtype=torch.float16, scale=5.0))
    return whole, rows.clone()


def gather_windows(rng: random.Random) -> None:
    whole, tail = _unwritten(rng, 2**28 + 100, 8, axis=0)
    starts = _one(v.integers, rng, 4, _TAIL - 8)
    sizes = _one(v.integers, rng, 4, 8)
    first = rng.random() < 0.5
    found = ops.gather_windows(whole, starts + len(whole) - _TAIL, sizes, 8, channels_first=first)
    wanted = ops.gather_windows(tail, starts, sizes, 8, channels_first=first)
    expect(all(map(torch.equal, found, wanted)), "other windows")


def deform_attn(rng: random.Random) -> None:
    """The last level lies behind two whose rows no point reaches."""
    longest = 2**24
    whole, tail = _unwritten(rng, 2 * longest + _TAIL, 64, axis=0)
    shape = 1, 5, 1, 3, 4
    places, weights = (
        _one(v.numbers, rng, *shape, dtype=torch.float32),
        _one(v.numbers, rng, *shape, dtype=torch.float16),
    )
    places = places * 0.75 + 0.5
    places[:, :, :, :2] = -5.0
    found = ops.deform_attn(whole[None, :, None], (longest, longest, _TAIL), places, weights)
    wanted = ops.deform_attn(
        tail[None, :, None], (_TAIL,), places[:, :, :, 2:].clone(), weights[:, :, :, 2:].clone()
    )
    expect(torch.equal(found, wanted), "other sums", found.tolist(), "for", wanted.tolist())


def _features(rng: random.Random) -> tuple[Tensor, Tensor, int]:
    rows = 2**27
    whole, tail = _unwritten(rng, 3, 8, rows, axis=2)
    return whole, tail[None], rows - _TAIL


def segment_roi_align(rng: random.Random) -> None:
    whole, tail, first = _features(rng)
    # Away from the beginning of the tail, before which the whole has zeros.
    ends = _one(v.segments, rng, 3, torch.float64, _TAIL / 4) + _TAIL / 2 + 4
    ends = (ends * 64).round() / 64  # exact with the first row added
    options = rng.choice((1, 5)), rng.choice((0, 2)), rng.random() < 0.5
    rois = torch.cat((torch.full((3, 1), 2.0), ends + first), 1)
    found = ops.segment_roi_align(whole, rois, *options)
    wanted = ops.segment_roi_align(tail, torch.cat((torch.zeros(3, 1), ends), 1), *options)
    near = (found.double() - wanted.double()).abs().max() <= v.BOUNDS[torch.float16] * 5.0
    expect(bool(near), "other means", found.tolist(), "for", wanted.tolist())


def boundary_max_pool(rng: random.Random) -> None:
    whole, tail, first = _features(rng)
    ends = _one(v.integers, rng, 3 * 4, _TAIL).view(1, 3, 4)
    near = torch.zeros(2, 3, 4, dtype=torch.int64)
    found = ops.boundary_max_pool(whole, torch.cat((near, ends + first)))
    wanted = ops.boundary_max_pool(tail, ends)
    expect(torch.equal(found[2:], wanted), "other maxima", found, "for", wanted)
    expect(not found[:2].any(), "numbers where there are none")


_READERS: tuple[Callable[[random.Random], None], ...] = (
    gather_windows,
    deform_attn,
    segment_roi_align,
    boundary_max_pool,
)


def beyond_int32(_: object, rng: random.Random) -> dict[str, float]:
    """Runs an op on a tensor of more than 2^31 elements; returns the memory that it wrote."""
    before = begin_peak()
    rng.choice(_READERS)(rng)
    written = memory_of("VmHWM") - before
    expect(written <= _MAY_WRITE, f"{written:,} bytes of memory: it copied what it only reads")
    return {"MiB written": written / 2**20}


def large_results(_: object, rng: random.Random) -> None:
    """A matrix of IoUs of more than 2^31 numbers, whose last rows are those of a small one."""
    room = psutil.virtual_memory().available
    expect(room >= _NEEDS, f"needs {_NEEDS:,} bytes of memory, there are {room:,}")
    a = _one(v.segments, rng, 2**16 + 1, torch.float16)
    b = _one(v.segments, rng, 2**15, torch.float16)
    kind = rng.choice(("iou", "giou", "diou", "ioa"))
    found = ops.segment_iou(a, b, kind)
    expect(found.numel() > 2**31, "only", found.numel(), "numbers")
    for rows in (slice(0, 3), slice(-3, None)):
        wanted = ops.segment_iou(a[rows].clone(), b, kind)
        expect(bool((found[rows] == wanted).logical_or(wanted.isnan()).all()), "other numbers")
