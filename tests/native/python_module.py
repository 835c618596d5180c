# SPDX-License-Identifier: Apache-2.0
"""Loads the ``_C`` of another build, given as its path, and runs tests of each of its parts on it.

Part of the native tests (``ctest --preset debug``), where ``_C`` is built for AddressSanitizer.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch  # before _C, which finds its libraries loaded

import tal_fast

ROOT = Path(tal_fast.__file__).parent.parent

# Reader, evaluator, and ops with scratch memory; few, for all is unoptimised here. None of them
# starts another process: that one would load the library of the package.
TESTS = (
    "tests/data/test_loader.py::test_streams_side_by_side",
    "tests/data/test_loader.py::test_float16_overflow_is_an_error",
    "tests/evaluation/test_average_precision.py::TestByHand",
    "tests/ops/test_nms.py::test_strided_inputs",
    "tests/ops/test_nms.py::test_iou_exactly_on_the_threshold",
    "tests/ops/test_segment_voting.py::test_strided_inputs",
    "tests/ops/test_deform_attn.py::test_any_strides",
)


def load(path: Path) -> None:
    """Makes the library at ``path`` the one that ``from tal_fast import _C`` finds."""
    spec = importlib.util.spec_from_file_location("tal_fast._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tal_fast._C"] = module
    spec.loader.exec_module(module)
    tal_fast._C = module


def main(path: Path) -> int:
    """Runs the tests; 0 when they pass, and passed on that library."""
    load(path)
    torch.set_num_threads(2)
    os.chdir(ROOT)
    status = int(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not emulated", *TESTS]))
    from tal_fast import _C

    if _C.__file__ != str(path):
        print(f"expected the library {path}, got {_C.__file__}")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
