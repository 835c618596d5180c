# SPDX-License-Identifier: Apache-2.0
"""Tensor ops of temporal action localization, native on CPU and CUDA.

Every op has a schema in the torch library ``tal_fast`` (``torch.ops.tal_fast``), a fake, an
autograd and an autocast rule, so it works under ``torch.compile``, ``torch.autograd`` and
``torch.autocast``. The slow and obvious twin of each is in ``tal_fast.reference``.
"""

import warnings
from pathlib import Path

from tal_fast.ops.loading import no_torch, not_loaded

# torch comes first: the native library finds torch's libraries only when they are loaded already.
try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise no_torch() from error

try:
    from tal_fast import _C as _C
except ImportError as error:
    raise not_loaded(error, Path(__file__).parents[1], torch.__version__) from error

# The CUDA kernels are a library of their own: without it, or with one that does not fit this torch,
# everything works on the CPU. `tal-fast info` says why CUDA is off.
if torch.version.cuda is not None:
    try:
        import tal_fast._C_cuda  # noqa: F401  (registers them)
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        warnings.warn(
            f"tal_fast: the CUDA kernels could not be loaded, ops run on the CPU only: {error}; "
            "build tal_fast again with this torch",
            stacklevel=2,
        )

from tal_fast.ops import nn as nn
from tal_fast.ops.boundary_max_pool import boundary_max_pool
from tal_fast.ops.deform_attn import deform_attn
from tal_fast.ops.deform_attn_fused import deform_attn_fused
from tal_fast.ops.dropout import dropout
from tal_fast.ops.gather_windows import gather_windows
from tal_fast.ops.linear_assignment import LinearAssignment, linear_assignment
from tal_fast.ops.local_attn import local_attn
from tal_fast.ops.matching_cost import matching_cost
from tal_fast.ops.nms import BatchedNMSResult, batched_nms, nms, soft_nms
from tal_fast.ops.nms_padded import (
    PaddedNMSResult,
    batched_nms_padded,
    nms_padded,
    soft_nms_padded,
)
from tal_fast.ops.ragged_index import RaggedIndex, ragged_index
from tal_fast.ops.segment_iou import segment_iou
from tal_fast.ops.segment_losses import diou_loss, giou_loss, iou_loss
from tal_fast.ops.segment_roi_align import segment_roi_align
from tal_fast.ops.segment_voting import segment_voting
from tal_fast.ops.soft_nms_literal import soft_nms_literal
from tal_fast.ops.window_fusion import fuse_windows

__all__ = [
    "BatchedNMSResult",
    "LinearAssignment",
    "PaddedNMSResult",
    "RaggedIndex",
    "batched_nms",
    "batched_nms_padded",
    "boundary_max_pool",
    "deform_attn",
    "deform_attn_fused",
    "diou_loss",
    "dropout",
    "fuse_windows",
    "gather_windows",
    "giou_loss",
    "iou_loss",
    "linear_assignment",
    "local_attn",
    "matching_cost",
    "nms",
    "nms_padded",
    "ragged_index",
    "segment_iou",
    "segment_roi_align",
    "segment_voting",
    "soft_nms",
    "soft_nms_literal",
    "soft_nms_padded",
]
