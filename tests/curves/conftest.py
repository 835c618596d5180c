# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def published() -> Path:
    """The table of published curves, where it is."""
    folder = Path(os.environ.get("TAL_FAST_TEST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "published_curves.csv"
    if not path.is_file():
        pytest.skip(f"no published curves at {path} (TAL_FAST_TEST_DATA)")
    return path
