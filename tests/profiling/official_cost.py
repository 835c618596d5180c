# SPDX-License-Identifier: Apache-2.0
"""Counts the products of an official model's forward pass, in a process of its own.

Called with the folder of the checkout under TAL_FAST_PEERS and the rows of a clip; prints JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = {
    "actionformer_release": "thumos_i3d",
    "TriDet": "thumos_i3d",
    "TemporalMaxer": "temporalmaxer_thumos_i3d",
}


def tadtr(rows):
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    sys.path.append(str(Path(os.environ["TAL_FAST_PEERS"]) / "site"))
    from peers.tadtr_training import OfficialTadTR

    model = OfficialTadTR(2048, 256, 4, 4, 1024).model
    features, mask = torch.zeros(1, 2048, rows), torch.zeros(1, rows, dtype=torch.bool)
    return model, lambda: model((features, mask))


def pyramid(project, rows):
    root = Path(os.environ["TAL_FAST_PEERS"]) / project
    sys.modules["nms_1d_cpu"] = types.ModuleType("nms_1d_cpu")
    sys.path.insert(0, str(root))
    sys.path.append(str(root.parent / "site"))
    modeling = importlib.import_module("libs.modeling")
    file = root / f"configs/{CONFIGS[project]}.yaml"
    config = importlib.import_module("libs.core").load_config(str(file))
    model = modeling.make_meta_arch(config["model_name"], **config["model"]).eval()
    features, mask = model.preprocessing([{"feats": torch.zeros(2048, rows)}])

    def forward():
        levels, masks = model.neck(*model.backbone(features, mask))
        for head in ("cls_head", "reg_head", "start_head", "end_head"):
            if hasattr(model, head):
                getattr(model, head)(levels, masks)

    return model, forward


def main(project, rows):
    model, forward = tadtr(rows) if project == "TadTR" else pyramid(project, rows)
    # torch counts its fused attention on a CPU as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    counts = {str(op): n // 2 for op, n in counter.get_flop_counts()["Global"].items()}
    parameters = {id(p): p.numel() for p in model.parameters()}
    print(
        json.dumps(
            {
                "macs": counter.get_total_flops() / 2,
                "parameters": sum(parameters.values()),
                "attention": counts.get("aten.bmm", 0),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
