# SPDX-License-Identifier: Apache-2.0
"""Checks an installation of tal_fast beside a CUDA build of torch; no GPU needed.

``make cuda-link`` installs both into an environment to throw away and runs this there: the library
of the CUDA kernels loads, and every op of ``tal_fast`` that is not for CPUs alone has a kernel for
CUDA.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import tal_fast.info
import tal_fast.ops

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_emulator"))

from emulated import CPU_ONLY

_OPS = "tal_fast::"


def main() -> int:
    """Prints what is there; returns 1 if something is missing."""
    facts = tal_fast.info.collect()
    print(f"tal_fast in {Path(tal_fast.ops.__file__).parents[1]}")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    from tal_fast import _C_cuda

    print(f"_C_cuda: nvcc {_C_cuda.compiler}, architectures {_C_cuda.architectures}")
    print(f"CUDA off because: {facts['cuda']['why_off']}")
    names = {n.split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith(_OPS)}
    names -= {_OPS + name for name in CPU_ONLY}
    missing = [
        name
        for name in sorted(names)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    ]
    for name in missing:
        print(f"{name} has no CUDA kernel")
    print(f"{len(names) - len(missing)} of {len(names)} ops have a CUDA kernel")
    return 1 if missing or not names else 0


if __name__ == "__main__":
    sys.exit(main())
