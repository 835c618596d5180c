# SPDX-License-Identifier: Apache-2.0
"""The feature loader against the loaders of other projects and against plain reads.

Two tables. ``pytest benchmarks/bench_loader.py -o filterwarnings=default --benchmark-only`` prints
ratios: one epoch of windows of 128 x 2048 floats in batches of 16, and items of ActionFormer's
kind, with warm files. Every byte of an epoch is compared before it is timed. Peers run where
TAL_FAST_PEERS holds their checkouts (``peers/loaders.py``), by torch's DataLoader with 0 and 2
workers that live on from epoch to epoch.

``python benchmarks/bench_loader.py`` prints what is no ratio (memory over the slots, cold files,
start-up with 20,000 videos, CPU seconds per GB) and stores it beside the rows. Run both:
``make bench-loader``.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np
import pytest
import torch
from harness import Peer
from peers import PeerMissingError, loaders

from tal_fast.data import CropSet, FeatureLoader, VideoSet, WindowSet, open_dataset, save_spec
from tal_fast.data.annotations import Annotations, Video, save_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, TALDataset
from tal_fast.data.order import below, item_numbers

CHANNELS, LENGTH, BATCH, VIDEOS = 2048, 128, 16, 24
WINDOWS = 160  # of an epoch: the slowest peer needs a second for them
VERIFIED = "every byte of an epoch"


def make(path: Path, rows: list[int], channels: int = CHANNELS) -> TALDataset:
    """Writes one float32 [T, C] .npy file per number of rows, with an instance per 40 rows."""
    rng = np.random.default_rng(0)
    (path / "features").mkdir(parents=True)
    videos = {}
    for i, count in enumerate(rows):
        name = f"v{i}"
        values = rng.standard_normal((count, channels), dtype=np.float32)
        np.save(path / "features" / f"{name}.npy", values)
        starts = np.arange(2.0, max(3.0, count - 20.0), 40.0)
        segments = np.stack([starts, starts + 9], axis=1)
        labels = np.zeros(len(segments), dtype=np.int64)
        videos[name] = Video(name, "training", float(count) + 12, 1.0, segments, labels)
    save_annotations(Annotations(videos, ("x",)), path / "annotations.json")
    spec = DatasetSpec("bench", feature=FeatureSpec(channels=channels, fps=1.0),
                       splits={"train": "training"})  # fmt: skip
    save_spec(spec, path)
    return open_dataset(path)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowSet:
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("windows") / "data"
    data = make(path, rng.integers(700, 1900, VIDEOS).tolist())
    chosen = WindowSet(data, list(data.features), length=LENGTH, drop_empty=False)
    keep = rng.permutation(len(chosen))[:WINDOWS]
    for name in ("windows", "_labels", "_edges"):
        setattr(chosen, name, [getattr(chosen, name)[i] for i in keep])
    chosen.lengths = chosen.lengths[keep]
    yield chosen
    shutil.rmtree(path)


def used(batches: Iterator[torch.Tensor]) -> int:
    """Touches every batch, as a model would; returns how many there were."""
    count = 0
    for features in batches:
        features[0, 0, 0].item()
        count += 1
    return count


def ours(loader: FeatureLoader) -> Iterator[torch.Tensor]:
    for batch in loader:
        yield batch.features


def memory_map(windows: WindowSet) -> Iterator[torch.Tensor]:
    extents = windows.dataset.features
    for first in range(0, len(windows), BATCH):
        rows = [
            np.load(extents[w.video].path, mmap_mode="r")[w.start : w.stop]
            for w in windows.windows[first : first + BATCH]
        ]
        yield torch.from_numpy(np.stack(rows))


class RawReads:
    """The windows by one ``pread`` each, into the batches of a ring: nothing is checked or cut.

    The call releases the GIL and moves a megabyte; what Python adds is in the noise.
    """

    def __init__(self, windows: WindowSet, threads: int) -> None:
        extents = windows.dataset.features
        files = {v: os.open(extents[v].path, os.O_RDONLY) for v in windows.videos}
        row = CHANNELS * 4
        self.files = files
        self.reads = [
            (files[w.video], extents[w.video].offset + w.start * row) for w in windows.windows
        ]
        self.ring = [torch.zeros(BATCH, LENGTH, CHANNELS).numpy() for _ in range(4)]
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields the batches."""
        for number, first in enumerate(range(0, len(self.reads), BATCH)):
            slot = self.ring[number % len(self.ring)]
            part = self.reads[first : first + BATCH]
            for _ in self.pool.map(self._read, part, slot):
                pass
            yield torch.from_numpy(slot[: len(part)])

    @staticmethod
    def _read(place: tuple[int, int], out: np.ndarray[Any, Any]) -> None:
        got = os.preadv(place[0], [out], place[1])
        assert got == out.nbytes

    def close(self) -> None:
        """Closes the files."""
        self.pool.shutdown()
        for file in self.files.values():
            os.close(file)


def stock(dataset: Any, workers: int, batch: int | None = BATCH) -> Any:
    return torch.utils.data.DataLoader(
        dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip


def same_epoch(a: Iterator[torch.Tensor], b: Iterator[torch.Tensor]) -> None:
    for number, (x, y) in enumerate(itertools.zip_longest(a, b)):
        y = y.transpose(1, 2) if y.shape != x.shape else y
        assert torch.equal(x, y), f"batch {number} differs"


def test_windows(compare: Callable[..., None], windows: WindowSet, threads: int) -> None:
    """Windows of 128 x 2048 in batches of 16, [T, C] in memory."""
    spans = [(w.video, w.start, w.stop) for w in windows.windows]
    folder = windows.dataset.path / "features"
    with FeatureLoader(windows, BATCH, threads=threads) as loader:
        peers = []
        for name, make_dataset in (("TadTR", loaders.tadtr_windows),
                                   ("OpenTAD", loaders.opentad_windows)):  # fmt: skip
            try:
                dataset = make_dataset(spans, folder, LENGTH)
            except PeerMissingError as missing:
                print(missing)
                continue
            for workers in (0, 2):
                other = stock(dataset, workers)
                same_epoch(ours(loader), iter(other))
                title = f"{name} DataLoader, {workers} workers"
                peers.append(Peer(title, lambda o=other: used(iter(o)), must=30, aim=55))
        same_epoch(ours(loader), memory_map(windows))
        peers.append(Peer("np.load(mmap)", lambda: used(memory_map(windows)), must=3.5, aim=5))
        compare("FeatureLoader", "windows 128 x 2048, batch 16", lambda: used(ours(loader)), peers,
                check=same_count, verified=VERIFIED, repetitions=5)  # fmt: skip


def test_share_of_pread(compare: Callable[..., None], windows: WindowSet, threads: int) -> None:
    """The same bytes by as many plain threads that do nothing but ``pread``."""
    raw = RawReads(windows, threads)
    with FeatureLoader(windows, BATCH, threads=threads) as loader:
        same_epoch(ours(loader), iter(raw))
        compare(
            "FeatureLoader",
            "windows 128 x 2048, share of pread",
            lambda: used(ours(loader)),
            [Peer("pread of the same windows", lambda: used(iter(raw)), must=0.75, aim=0.9)],
            check=same_count, verified=VERIFIED, repetitions=41,
        )  # fmt: skip
    raw.close()


def same_count(a: int, b: int) -> None:
    assert a == b, f"{a} batches against {b}"


@pytest.mark.parametrize("rows", [2300, 6500])
def test_actionformer_item(
    compare: Callable[..., None], tmp_path: Path, threads: int, rows: int
) -> None:
    """Crops of at most 2304 rows, channels first, padded; batch 1 as ActionFormer collates."""
    data = make(tmp_path / "data", [rows, rows + 3, rows + 5])
    clips = CropSet(data, data.splits["train"], max_length=2304)
    cases = {"must": 10, "aim": 30} if rows > 2304 else {}
    with FeatureLoader(clips, 1, layout="CT", threads=threads) as loader:
        peers = []
        try:
            theirs = loaders.ActionFormerItems(
                tmp_path / "data/annotations.json", tmp_path / "data/features", CHANNELS, 2304
            )
            verify_crops(loader, clips, theirs)
            for workers in (0, 2):
                other = stock(theirs_as_dataset(theirs), workers, None)
                title = f"ActionFormer DataLoader, {workers} workers"
                peers.append(Peer(title, lambda o=other: used(x[None] for x in o), **cases))
        except PeerMissingError as missing:
            print(missing)
        peers.append(Peer("np.load(mmap), crop, transpose", lambda: used(mapped_crops(clips))))
        same_epoch(ours(loader), mapped_crops(clips))
        compare("FeatureLoader", f"ActionFormer item, T = {rows}", lambda: used(ours(loader)),
                peers, check=same_count, verified=VERIFIED, repetitions=7)  # fmt: skip
    shutil.rmtree(tmp_path / "data")


def theirs_as_dataset(theirs: loaders.ActionFormerItems) -> Any:
    return loaders._Windows(lambda i: torch.from_numpy(theirs.item(i)), len(theirs.names))


def verify_crops(loader: FeatureLoader, clips: CropSet, theirs: loaders.ActionFormerItems) -> None:
    """Its code draws our numbers, and must return our bytes."""
    assert theirs.names == clips.videos
    draw = theirs.random.randint
    try:
        for index, batch in enumerate(loader):
            numbers = iter(item_numbers(loader.seed, loader.epoch, index, 0, 201).tolist())
            if clips.dataset.features[clips.videos[index]].rows > clips.max_length:
                next(numbers)
            theirs.random.randint = lambda low, high, n=numbers: (
                low + below(next(n), high - low + 1)
            )
            got = torch.from_numpy(theirs.item(index))
            rows = batch.lengths[0]
            assert torch.equal(batch.features[0, :, :rows], got)
            assert not batch.features[0, :, rows:].any()
    finally:
        theirs.random.randint = draw


def mapped_crops(clips: CropSet) -> Iterator[torch.Tensor]:
    for index in range(len(clips)):
        clip = clips.clip(index, 0, 0)
        values = np.load(clips.dataset.features[clip.video].path, mmap_mode="r")
        out = np.zeros((CHANNELS, 2304), dtype=np.float32)
        out[:, : clip.stop - clip.start] = values[clip.start : clip.stop].T
        yield torch.from_numpy(out)[None]


# ---- what is no ratio ----------------------------------------------------------------------------

_PEAK = """
import gc, resource, sys
sys.path[:0] = sys.argv[3:]
from tal_fast.data import FeatureLoader, WindowSet, open_dataset
data = open_dataset(sys.argv[1])
windows = WindowSet(data, data.splits["train"], length=128, drop_empty=False)
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
import torch; torch.zeros(4).sum(); before = peak()
with FeatureLoader(windows, 16, shuffle=True, threads=2, prefetch=2, layout=sys.argv[2]) as loader:
    for batch in loader:
        batch.features[0, 0, 0].item()
print(peak() - before)
"""


def peak_memory(data: TALDataset, layout: str) -> float:
    """Returns MiB beyond the slots of an epoch: three in flight and one with the consumer."""
    root = Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", _PEAK, str(data.path), layout, str(root)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(out.stdout) - 4 * BATCH * LENGTH * CHANNELS * 4 / 2**20


def drop_from_cache(data: TALDataset) -> None:
    """Drops the feature files from the page cache and makes sure that they are gone."""
    for extent in data.features.values():
        file = os.open(extent.path, os.O_RDONLY)
        try:
            os.fsync(file)
            for _ in range(50):  # pages on their way from storage cannot be dropped yet
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    os.preadv(file, [bytearray(4096)], extent.num_bytes // 2, os.RWF_NOWAIT)
                except BlockingIOError:
                    break
                time.sleep(0.02)
            else:
                raise RuntimeError(f"{extent.path} stays in the page cache")
        finally:
            os.close(file)


def cold(windows: WindowSet, threads: int, rounds: int = 5) -> dict[str, list[float]]:
    """Returns GB/s from storage, in turn: ours, and the same reads by plain threads."""
    size = len(windows) * LENGTH * CHANNELS * 4 / 1e9
    found: dict[str, list[float]] = {"ours": [], "pread": []}
    for _ in range(rounds):
        drop_from_cache(windows.dataset)
        raw = RawReads(windows, threads)
        began = time.perf_counter()
        used(iter(raw))
        found["pread"].append(size / (time.perf_counter() - began))
        raw.close()
        drop_from_cache(windows.dataset)
        with FeatureLoader(windows, BATCH, threads=threads) as loader:
            began = time.perf_counter()
            used(ours(loader))
            found["ours"].append(size / (time.perf_counter() - began))
    return found


def start_up(path: Path, count: int = 20_000) -> tuple[float, float]:
    """Returns seconds until a loader of many videos is made, and from there to its first batch."""
    (path / "features").mkdir(parents=True)
    rng = np.random.default_rng(0)
    videos = {}
    for i in range(count):
        rows = int(rng.integers(20, 60))
        np.save(path / "features" / f"v{i}.npy", np.ones((rows, 8), dtype=np.float32))
        videos[f"v{i}"] = Video(f"v{i}", "training", float(rows), 1.0, np.array([[1.0, 9.0]]),
                                np.array([0]))  # fmt: skip
    save_annotations(Annotations(videos, ("x",)), path / "annotations.json")
    spec = DatasetSpec("many", feature=FeatureSpec(channels=8, fps=1.0),
                       splits={"train": "training"})  # fmt: skip
    save_spec(spec, path)
    began = time.perf_counter()
    data = open_dataset(path)
    opened = time.perf_counter()
    clips = VideoSet(data, data.splits["train"], resize=32)
    loader = FeatureLoader(clips, BATCH, shuffle=True)
    made = time.perf_counter()
    print(f"  open_dataset {opened - began:.3f} s, set and loader {made - opened:.3f} s")
    next(iter(loader))
    first = time.perf_counter()
    loader.close()
    return made - began, first - made


def main() -> None:
    print(machine.header())
    facts: dict[str, Any] = {}
    path = harness.RESULTS / f"{machine.slug()}-loader.json"
    content = {"machine": machine.describe(), "facts": facts}

    def tell(name: str, value: float, unit: str, bound: str) -> None:
        facts[name] = {"value": round(value, 4), "unit": unit, "bound": bound}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{name:<58} {value:>9.3f} {unit:<8} {bound}", flush=True)

    with tempfile.TemporaryDirectory(dir=os.environ.get("TAL_FAST_BENCH_DIR")) as folder:
        rng = np.random.default_rng(1)
        data = make(Path(folder) / "windows", rng.integers(700, 1900, VIDEOS).tolist())
        windows = WindowSet(data, data.splits["train"], length=LENGTH, overlap=0.0,
                            drop_empty=False)  # fmt: skip
        for layout in ("TC", "CT"):
            tell(f"peak memory over the slots, {layout}", peak_memory(data, layout), "MiB",
                 "must 64, aim 32")  # fmt: skip
        size = len(windows) * LENGTH * CHANNELS * 4 / 1e9
        for threads in (1, 2):
            with FeatureLoader(windows, BATCH, threads=threads) as loader:
                used(ours(loader))
                began, cpu = time.perf_counter(), time.process_time()
                for _ in range(10):
                    used(ours(loader))
                cpu, wall = time.process_time() - cpu, time.perf_counter() - began
            tell(f"warm, {threads} threads", 10 * size / wall, "GB/s", "")
            tell(f"CPU seconds per GB, warm, {threads} threads", cpu / size / 10, "s/GB", "")
        for threads in (1, 2, 4):
            rates = cold(windows, threads)
            mine, raw = np.median(rates["ours"]), np.median(rates["pread"])
            tell(f"cold files, {threads} threads", mine, "GB/s", "")
            tell(f"cold files, {threads} threads, plain threads that pread", raw, "GB/s", "")
            tell(f"cold files, {threads} threads, share", mine / raw, "", "must 0.85, aim 0.95")
        begin, first = start_up(Path(folder) / "many")
        tell("20,000 videos: start-up", begin, "s", "must 2, aim 0.5")
        tell("20,000 videos: first batch after it", first * 1e3, "ms", "must 50")
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
