# SPDX-License-Identifier: Apache-2.0
"""Types of the native library, written by hand: one section per section of csrc/bindings.cpp."""

from collections.abc import Callable
from enum import Enum
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

def draw_videos(num_videos: int, seed: int, replicate: int) -> NDArray[np.int64]: ...

class Union(Enum):
    GUARDED = ...
    UNGUARDED = ...
    CLAMPED = ...

class Rules:
    def __init__(
        self,
        *,
        union_rule: Union,
        single_tiou: bool,
        single_segments: bool,
        instances_choose: bool,
        strictly_above: bool,
        interpolate: bool,
    ) -> None: ...

class Segments:
    def __init__(
        self,
        *,
        video: NDArray[np.int64],
        label: NDArray[np.int64],
        start: NDArray[np.float64],
        end: NDArray[np.float64],
    ) -> None: ...

class Problem:
    def __init__(
        self,
        *,
        truth: Segments,
        found: Segments,
        score: NDArray[np.float64],
        regions: Segments,
        num_videos: int,
        num_classes: int,
        order: NDArray[np.int64] | None,
        tie_order: Callable[[NDArray[np.float64]], NDArray[np.int64]] | None,
    ) -> None: ...

class Evaluation:
    def __init__(
        self, problem: Problem, rules: Rules, thresholds: NDArray[np.float64], num_threads: int
    ) -> None: ...
    def match(
        self,
    ) -> tuple[
        NDArray[np.float64],  # ap
        NDArray[np.int64],  # true_positives
        NDArray[np.int64],  # num_ground_truth
        NDArray[np.int64],  # num_detections
    ]: ...
    def first_hits(self, by_class: bool) -> NDArray[np.int64]: ...
    def resample(self, replicates: int, seed: int) -> NDArray[np.float64]: ...
    def errors(
        self, floor: float
    ) -> tuple[
        NDArray[np.uint8],  # kind
        NDArray[np.float64],  # best_overlap
        NDArray[np.int64],  # best_instance
        NDArray[np.int64],  # matched
        NDArray[np.float64],  # ap_without
    ]: ...
    def ap_of_bins(
        self, bin: NDArray[np.int64], num_bins: int, normalizer: float
    ) -> NDArray[np.float64]: ...
    @property
    def hits(self) -> NDArray[np.uint64]: ...
    @property
    def found(self) -> NDArray[np.uint64]: ...
    @property
    def ranked(self) -> NDArray[np.int64]: ...

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
        features: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.int16],
        mask: NDArray[np.bool_],
        jobs: NDArray[np.int64],
        dtype: int,
        layout: int,
    ) -> int: ...
    def wait(self, ticket: int) -> tuple[int, int, int, int, int, int, int, float, str] | None: ...
    def cancel(self, ticket: int) -> None: ...
    def close(self) -> None: ...
    @property
    def open_files(self) -> int: ...
