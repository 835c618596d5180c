# SPDX-License-Identifier: Apache-2.0
"""Names of types that several parts of the library share."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["FilePath", "Floats", "Ints", "Mask", "VideoProgress"]

FilePath = str | os.PathLike[str]
"""Where a file or a directory is, or is to be."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

VideoProgress = Callable[[int, int, str], None]
"""Receives (videos done, videos in all, the name of the latest)."""
