# SPDX-License-Identifier: Apache-2.0
"""Annotations, features, windows and batches.

Importing this package does not import torch; the loaders do when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tal_fast.data.annotations import (
    AnnotationReport,
    Annotations,
    Video,
    load_annotations,
    save_annotations,
)
from tal_fast.data.class_ids import ClassIds
from tal_fast.data.clips import Clip, CropSet, VideoSet
from tal_fast.data.dataset import (
    DatasetSpec,
    FeatureSpec,
    TALDataset,
    dataset_annotations,
    open_dataset,
    save_spec,
)
from tal_fast.data.extents import Extent, read_array
from tal_fast.data.feature_index import index_features, read_extent
from tal_fast.data.grid import Grid
from tal_fast.data.streams import streams_of
from tal_fast.data.unheld import require_learnable
from tal_fast.data.windows import Window, WindowRule, WindowSet, sliding_windows

if TYPE_CHECKING:
    from tal_fast.data import packing as packing
    from tal_fast.data import prepare as prepare
    from tal_fast.data import validation as validation
    from tal_fast.data.batches import Batch
    from tal_fast.data.clip_dataset import ClipDataset
    from tal_fast.data.loader import FeatureLoader

__all__ = [
    "AnnotationReport",
    "Annotations",
    "Batch",
    "ClassIds",
    "Clip",
    "ClipDataset",
    "CropSet",
    "DatasetSpec",
    "Extent",
    "FeatureLoader",
    "FeatureSpec",
    "Grid",
    "TALDataset",
    "Video",
    "VideoSet",
    "Window",
    "WindowRule",
    "WindowSet",
    "dataset_annotations",
    "index_features",
    "load_annotations",
    "open_dataset",
    "read_array",
    "read_extent",
    "require_learnable",
    "save_annotations",
    "save_spec",
    "sliding_windows",
    "streams_of",
]


# Packages that few need.
_PACKAGES = frozenset({"packing", "prepare", "validation"})
# What needs torch, and where it is.
_LAZY = {
    "Batch": "batches",
    "ClipDataset": "clip_dataset",
    "FeatureLoader": "loader",
}


def __getattr__(name: str) -> Any:
    """Imports what needs torch, or few need, on first use."""
    if name in _PACKAGES:
        return importlib.import_module(f"tal_fast.data.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"tal_fast.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
