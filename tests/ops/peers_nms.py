# SPDX-License-Identifier: Apache-2.0
"""The NMS code of ActionFormer and OpenTAD, where the user has it.

TAL_FAST_PEERS names a folder with checkouts ``actionformer_release`` and ``OpenTAD`` in which the
extension ``nms_1d_cpu`` was built in place.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

FOLDERS = {
    "actionformer": Path("actionformer_release/libs/utils"),
    "opentad": Path("OpenTAD/opentad/models/utils/post_processing/nms"),
}


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
    """The peer, or why there is none."""
    root = os.environ.get("TAL_FAST_PEERS")
    if not root:
        return "TAL_FAST_PEERS is not set"
    folder = Path(root) / FOLDERS[name]
    libraries = sorted(folder.glob("nms_1d_cpu*.so"))
    if not libraries or not (folder / "nms.py").is_file():
        return f"no built nms_1d_cpu and nms.py in {folder}"
    # The prefix keeps the two apart: both are called nms_1d_cpu.
    native = _execute(f"{name}.nms_1d_cpu", libraries[0])
    # Their Python imports it by this name; both peers use the same one.
    before = sys.modules.get("nms_1d_cpu")
    sys.modules["nms_1d_cpu"] = native
    try:
        python = _execute(f"{name}_nms", folder / "nms.py")
    finally:
        if before is None:
            del sys.modules["nms_1d_cpu"]
        else:
            sys.modules["nms_1d_cpu"] = before
    return Peer(name, native, python)


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
