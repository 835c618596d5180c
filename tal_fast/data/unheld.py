# SPDX-License-Identifier: Apache-2.0
"""Instances that no clip of a set can hold, so that a training on it never learns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tal_fast.data.dataset import TALDataset
from tal_fast.errors import DataError, counted
from tal_fast.typing import Mask

if TYPE_CHECKING:
    from tal_fast.data.clips import ClipSet

__all__ = ["count_unheld", "require_learnable"]


def count_unheld(dataset: TALDataset, held: Mapping[str, Mask]) -> dict[str, tuple[int, int]]:
    """Counts by class the instances that no clip holds.

    Args:
        dataset: where the annotations come from.
        held: video -> bool [N], whether a clip holds each of its instances.

    Returns:
        Class -> (instances that none holds, all of its instances), without classes that have none
        of the former.
    """
    labels = [dataset.annotations.videos[name].labels for name in held]
    everything = np.concatenate([np.empty(0, dtype=np.int64), *labels])
    lost = ~np.concatenate([np.empty(0, dtype=np.bool_), *held.values()])
    size = dataset.num_classes
    of = np.bincount(everything, minlength=size)
    unheld = np.bincount(everything[lost], minlength=size)
    return {
        name: (int(unheld[i]), int(of[i])) for i, name in enumerate(dataset.classes) if unheld[i]
    }


def require_learnable(clips: ClipSet) -> list[str]:
    """Says which instances are never learned, since no clip holds them.

    Args:
        clips: what a training learns from.

    Returns:
        A line, or nothing where all are held.

    Raises:
        DataError: if a class has instances, and no clip holds any.
    """
    unheld, what = clips.unheld, clips.unit
    gone = [name for name, (lost, total) in unheld.items() if lost == total]
    if gone:
        raise DataError(
            f"{clips.dataset.path}: no {what} holds any instance of {', '.join(gone)} "
            f"({len(gone)} of {counted(clips.dataset.num_classes, 'class')}): too long for it, "
            "or beyond the "
            "features; longer clips would hold them, or list the labels under `ignore_labels` in "
            "dataset.yaml"
        )
    if not unheld:
        return []
    lost = sum(count for count, _ in unheld.values())
    total = sum(len(clips.dataset.annotations.videos[v].labels) for v in set(clips.videos))
    each = ", ".join(f"{name} {count} of {of}" for name, (count, of) in unheld.items())
    return [
        f"{lost} of {counted(total, 'instance', 'are')} never learned, no {what} holds them: {each}"
    ]
