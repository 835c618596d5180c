# SPDX-License-Identifier: Apache-2.0
"""Batches of 16 windows of 128 rows x 2048 channels from .npy files in the page cache.

Peers: what a Dataset does that slices a memory map per window, and one that loads the whole file
per window as TadTR's does. Every case delivers float32 [16, 128, 2048]; all bytes are compared
before anything is timed. ``python benchmarks/bench_reader.py`` prints the table, the cases in turn;
``pytest benchmarks/bench_reader.py --benchmark-only`` times the native reader alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import numpy as np
import pytest
import torch

from tal_fast.data.annotations import Annotations, Video, save_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, TALDataset, open_dataset, save_spec
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.windows import WindowSet

CHANNELS, LENGTH, BATCH, VIDEOS = 2048, 128, 16, 12


def make(path: Path, dtype: str, layout: str) -> TALDataset:
    """Writes VIDEOS videos of 700 to 1900 rows."""
    rng = np.random.default_rng(0)
    (path / "features").mkdir(parents=True)
    videos = {}
    for i in range(VIDEOS):
        rows = int(rng.integers(700, 1900))
        values = rng.standard_normal((rows, CHANNELS), dtype=np.float32).astype(dtype)
        stored = values if layout == "TC" else np.ascontiguousarray(values.T)
        np.save(path / "features" / f"v{i}.npy", stored)
        name, subset = f"v{i}", "training" if i else "validation"
        segments = np.array([[0.0, 5.0]])
        videos[name] = Video(name, subset, float(rows), 1.0, segments, np.array([0]))
    save_annotations(Annotations(videos, ("x",)), path / "annotations.json")
    save_spec(DatasetSpec("bench", feature=FeatureSpec(layout=layout, channels=CHANNELS)), path)
    return open_dataset(path)


def native(windows: WindowSet, threads: int, check: bool) -> Iterator[torch.Tensor]:
    with FeatureLoader(
        windows, BATCH, shuffle=True, threads=threads, check_finite=check, prefetch=2
    ) as loader:
        for batch in loader:
            yield batch.features


def numpy_windows(windows: WindowSet, mapped: bool) -> Iterator[torch.Tensor]:
    order = [i for b in FeatureLoader(windows, BATCH, shuffle=True) for i in b.indices]
    channels_first = windows.dataset.spec.feature.layout == "CT"
    for first in range(0, len(order), BATCH):
        items = []
        for index in order[first : first + BATCH]:
            window = windows.windows[index]
            path = windows.dataset.features[window.video].path
            values = np.load(path, mmap_mode="r" if mapped else None)
            values = values.T if channels_first else values
            items.append(np.array(values[window.start : window.stop], dtype=np.float32, order="C"))
        yield torch.from_numpy(np.stack(items))


CASES = {
    "native-1": lambda w: native(w, 1, True),
    "native-2": lambda w: native(w, 2, True),
    "native-1-unchecked": lambda w: native(w, 1, False),
    "memory-map": lambda w: numpy_windows(w, True),
    "whole-file": lambda w: numpy_windows(w, False),
}


INPUTS = (("float32", "TC"), ("float16", "TC"), ("float32", "CT"))


def open_windows(path: Path, dtype: str, layout: str) -> WindowSet:
    data = make(path / f"{dtype}{layout}", dtype, layout)
    return WindowSet(data, list(data.features), drop_empty=False)


def verify(windows: WindowSet, case: str) -> None:
    for got, expected in zip(CASES[case](windows), numpy_windows(windows, True), strict=True):
        if not torch.equal(got, expected):
            raise AssertionError(f"{case}: a batch differs from the memory map's")


def epoch(windows: WindowSet, case: str) -> None:
    for features in CASES[case](windows):
        features[0, 0, 0].item()


@pytest.mark.parametrize(("dtype", "layout"), INPUTS)
def test_native_reader(benchmark, tmp_path, dtype, layout):
    windows = open_windows(tmp_path, dtype, layout)
    verify(windows, "native-1")
    benchmark.pedantic(epoch, args=(windows, "native-1"), rounds=7, warmup_rounds=1)
    benchmark.extra_info["windows"] = len(windows)


def main(rounds: int = 11) -> None:
    print(machine.header())
    print(f"{'input':>12} {'case':>20} {'windows/s':>10} {'IQR':>13} {'GB/s out':>9}")
    for dtype, layout in INPUTS:
        with tempfile.TemporaryDirectory() as folder:
            windows = open_windows(Path(folder), dtype, layout)
            seconds: dict[str, list[float]] = {case: [] for case in CASES}
            for case in CASES:
                verify(windows, case)
            for _ in range(rounds):
                for case in CASES:
                    if case == "whole-file" and len(seconds[case]) >= 3:
                        continue
                    start = time.perf_counter()
                    epoch(windows, case)
                    seconds[case].append(time.perf_counter() - start)
            for case, times in seconds.items():
                low, middle, high = len(windows) / np.quantile(times, [0.75, 0.5, 0.25])
                size = middle * LENGTH * CHANNELS * 4 / 1e9
                name, spread = f"{dtype} {layout}", f"{low:.0f}-{high:.0f}"
                print(f"{name:>12} {case:>20} {middle:>10.0f} {spread:>13} {size:>9.2f}")


if __name__ == "__main__":
    main()
