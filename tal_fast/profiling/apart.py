# SPDX-License-Identifier: Apache-2.0
"""A few steps of a training in a process of its own: what is decided when a program starts.

Reads JSON with ``config``, ``data``, ``videos`` and ``threads``; prints the seconds of each step.
"""

from __future__ import annotations

import json
import sys

import torch

from tal_fast.data import open_dataset
from tal_fast.profiling.rig import Rig, Variant, in_turn
from tal_fast.training.config import config_from_dict


def main() -> None:
    """Runs the steps."""
    given = json.loads(sys.stdin.read())
    torch.set_num_threads(given["threads"])
    rig = Rig(config_from_dict(given["config"]), open_dataset(given["data"]), given["videos"])
    try:
        took, failed = in_turn({"own": Variant(rig.from_memory, warm_up=3, timed=6)}, 1)
    finally:
        rig.close()
    if failed:
        sys.exit(failed["own"])
    print(json.dumps({"wall": took["own"].wall, "cpu": took["own"].cpu}))


if __name__ == "__main__":
    main()
