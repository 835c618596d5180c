# SPDX-License-Identifier: Apache-2.0
"""Types of the native library, written by hand: one section per section of csrc/bindings.cpp."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

# ---- build_info -----------------------------------------------------------------------------

class BuildInfo(TypedDict):
    compiler: str
    build_type: str
    torch_headers: str
    torch_target: str
    isas_built: list[str]
    isas_available: list[str]
    isa: str
    cuda: bool
    cuda_reason: str

def build_info() -> BuildInfo: ...

# ---- evaluation -----------------------------------------------------------------------------

def average_precision(
    gt_video: NDArray[np.int64],
    gt_label: NDArray[np.int64],
    gt_start: NDArray[np.float64],
    gt_end: NDArray[np.float64],
    video: NDArray[np.int64],
    label: NDArray[np.int64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    score: NDArray[np.float64],
    num_videos: int,
    num_classes: int,
    thresholds: NDArray[np.float64],
    guard_union: bool,
    num_threads: int,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.uint64],
]: ...

# ---- reader ---------------------------------------------------------------------------------

class Reader:
    def __init__(
        self,
        extents: list[tuple[str, int, int, int, int, int]],
        threads: int,
        max_open_files: int,
        check_finite: bool,
    ) -> None: ...
    def submit(
        self,
        features: NDArray[np.float32],
        mask: NDArray[np.bool_],
        windows: NDArray[np.int64],
    ) -> int: ...
    def wait(self, ticket: int) -> tuple[int, int, int, int, int, int, int, str] | None: ...
    def cancel(self, ticket: int) -> None: ...
    def close(self) -> None: ...
    @property
    def open_files(self) -> int: ...
