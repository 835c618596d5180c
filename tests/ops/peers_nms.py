# SPDX-License-Identifier: Apache-2.0
"""The NMS code of ActionFormer and OpenTAD, where the user has it.

TAL_FAST_PEERS names a folder with checkouts ``actionformer_release`` and ``OpenTAD`` in which the
extension ``nms_1d_cpu`` was built in place.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class Peer:
    name: str
    native: ModuleType  # nms, softnms
    python: ModuleType  # batched_nms, seg_voting

    def softnms(
        self,
        segments: Tensor,
        scores: Tensor,
        *,
        method: int = 2,
        iou_threshold: float = 0.1,
        sigma: float = 0.5,
        min_score: float = 0.001,
        t1: float = 0.0,
        t2: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Kept rows and their decayed scores."""
        found = torch.empty(len(scores), 3)
        more = (t1, t2) if self.name == "opentad" else ()
        rows = self.native.softnms(
            segments, scores, found, iou_threshold, sigma, min_score, method, *more
        )
        return rows, found[: len(rows), 2].clone()


def load(name: str) -> Peer | str:
    """The peer, or why there is none; by the adapter of the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from peers import PeerMissingError, nms_1d

        try:
            return Peer(name, *getattr(nms_1d, name)())
        except PeerMissingError as missing:
            return str(missing)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for module in [module for module in sys.modules if module.split(".")[0] == "peers"]:
            del sys.modules[module]
