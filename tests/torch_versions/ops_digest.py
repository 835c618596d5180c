# SPDX-License-Identifier: Apache-2.0
"""Runs every op once and more in whatever torch this Python finds, and prints what came, as JSON.

Two versions of torch under which the same library gives the same digests run it alike.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

from op_cases import CASES, Case


def digest(values: Any) -> str:
    """A short hash of the bits, shapes and dtypes of all tensors in ``values``."""
    found = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            kept = leaf.detach().contiguous().reshape(-1)
            found.update(f"{kept.dtype} {tuple(leaf.shape)}".encode())
            found.update(kept.view(torch.uint8).numpy().tobytes() if kept.numel() else b"")
    return found.hexdigest()[:16]


def outcome(case: Case, dtype: torch.dtype) -> list[Any]:
    """The results of a case and the gradients of their sum."""
    tensors = [t.to(dtype).requires_grad_() for t in case.tensors]
    results = case.call(*tensors)
    leaves = torch.utils._pytree.tree_leaves(results)
    sums = [x.sum() for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(sum(sums), tensors, allow_unused=True) if sums else ()
    return [tensors, results, [g for g in gradients if g is not None]]


def main() -> None:
    """Prints ``{"torch": version, "library": path, "digests": {case: digest}}``."""
    from tal_fast import _C, ops  # noqa: F401  (ops first loads torch)

    torch.set_num_threads(1)
    digests = {
        f"{name}[{i}] {str(dtype)[6:]}": digest(outcome(case, dtype))
        for name, cases in CASES.items()
        for i, case in enumerate(cases)
        # A case in float32 is of an op that takes nothing else.
        for dtype in dict.fromkeys((case.tensors[0].dtype, torch.float32))
    }
    print(json.dumps({"torch": torch.__version__, "library": _C.__file__, "digests": digests}))


if __name__ == "__main__":
    main()
