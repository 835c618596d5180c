# SPDX-License-Identifier: Apache-2.0
"""Tests of the pages import what makes their site and their tables."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "docs/site"), str(ROOT / "benchmarks")]
