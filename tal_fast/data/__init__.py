# SPDX-License-Identifier: Apache-2.0
"""Annotations, features, windows and batches.

Importing this package does not import torch; :class:`BatchLoader` does when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tal_fast.data.annotations import (
    AnnotationReport,
    Annotations,
    Video,
    load_annotations,
    save_annotations,
)
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, TALDataset, open_dataset, save_spec
from tal_fast.data.extents import Extent, read_array
from tal_fast.data.feature_index import index_features, read_extent
from tal_fast.data.grid import Grid
from tal_fast.data.windows import Window, WindowSet, sliding_windows

if TYPE_CHECKING:
    from tal_fast.data.batches import Batch, BatchLoader

__all__ = [
    "AnnotationReport",
    "Annotations",
    "Batch",
    "BatchLoader",
    "DatasetSpec",
    "Extent",
    "FeatureSpec",
    "Grid",
    "TALDataset",
    "Video",
    "Window",
    "WindowSet",
    "index_features",
    "load_annotations",
    "open_dataset",
    "read_array",
    "read_extent",
    "save_annotations",
    "save_spec",
    "sliding_windows",
]


def __getattr__(name: str) -> Any:
    """Imports what needs torch on first use."""
    if name in ("Batch", "BatchLoader"):
        from tal_fast.data import batches

        return getattr(batches, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
