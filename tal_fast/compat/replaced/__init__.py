# SPDX-License-Identifier: Apache-2.0
"""Functions of other codebases that are recognised by name and parameters, and proved.

A file here knows one function. ``prove(original, options)`` runs it and ours on made inputs and
returns a :class:`tal_fast.compat.proof.Proof`, or raises
:class:`tal_fast.compat.proof.UnprovedError`. It is imported when a function of that name turns up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tal_fast.compat.options import FUNCTIONS, Options
from tal_fast.compat.proof import Proof

__all__ = ["RECOGNISED", "Recognised"]


@dataclass(frozen=True)
class Recognised:
    """How a function is known.

    Attributes:
        home: the file here.
        parameters: what it is called with, in order; a name may have several spellings.
        more: it may have further parameters behind these.
    """

    home: str
    parameters: tuple[tuple[str, ...], ...]
    more: bool = False

    def fits(self, parameters: list[str]) -> bool:
        """Whether a function of these parameters is the one."""
        known = self.parameters
        if len(parameters) < len(known) or (len(parameters) > len(known) and not self.more):
            return False
        return all(name in words for name, words in zip(parameters, known, strict=False))

    def prove(self, original: Callable[..., Any], options: Options) -> Proof:
        """Runs the original and ours on made inputs.

        Raises:
            UnprovedError: they differ.
        """
        home = importlib.import_module(f"tal_fast.compat.replaced.{self.home}")
        found: Proof = home.prove(original, options)
        return found

    def __str__(self) -> str:
        words = ", ".join(words[0] for words in self.parameters)
        return f"({words}{', …' if self.more else ''})"


def _names(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word.split("|")) for word in text.split())


_CORE = Recognised(
    "attention_core",
    _names(
        "value value_spatial_shapes|spatial_shapes|value_temporal_lens|temporal_lens "
        "sampling_locations attention_weights"
    ),
)

#: By name.
RECOGNISED: dict[str, Recognised] = {
    "Soft_NMS": Recognised("table_soft_nms", _names("df nms_threshold num_prop")),
    "average_recall_vs_avg_nr_proposals": Recognised(
        "average_recall",
        _names("ground_truth proposals max_avg_nr_proposals tiou_thresholds"),
    ),
    "batched_nms": Recognised(
        "batched_nms",
        _names(
            "segs scores cls_idxs iou_threshold min_score max_seg_num use_soft_nms multiclass "
            "sigma voting_thresh"
        ),
        more=True,
    ),
    "compute_average_precision_detection": Recognised(
        "average_precision", _names("ground_truth prediction tiou_thresholds")
    ),
    "compute_topkx_recall_detection": Recognised(
        "topkx_recall", _names("ground_truth prediction tiou_thresholds top_k")
    ),
    "deform_attn_core_pytorch": _CORE,
    "ms_deform_attn_core_pytorch": _CORE,
    "multi_scale_deformable_attn_pytorch": _CORE,
    "soft_nms": Recognised(
        "proposal_soft_nms",
        _names("proposals alpha low_threshold high_threshold top_k"),
    ),
    "temporal_nms": Recognised("temporal_nms", _names("segments thresh")),
}
assert set(RECOGNISED) == set(FUNCTIONS)
