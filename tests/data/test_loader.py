# SPDX-License-Identifier: Apache-2.0
"""Batches of FeatureLoader: bytes, order, resumption, sharding; faults are in the file beside."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import short_directory

from tal_fast.data import device_copies
from tal_fast.data.clip_dataset import ClipDataset
from tal_fast.data.clips import CropSet, VideoSet
from tal_fast.data.dataset import open_dataset
from tal_fast.data.extents import Extent, beside
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.order import batches_of_like_length, shard
from tal_fast.data.windows import WindowSet
from tal_fast.errors import ConfigError, DataError

SETS = {
    "windows": lambda data: WindowSet(data, ["a", "b", "c"], length=64, drop_empty=False, jitter=3),
    "crops": lambda data: CropSet(data, ["a", "b", "c", "d"], max_length=60),
    "videos": lambda data: VideoSet(data, ["a", "b", "c", "d"], multiple=32),
    "resized": lambda data: VideoSet(data, ["a", "b", "c", "d"], resize=50),
    "resized crops": lambda data: CropSet(data, ["a", "b", "c"], resize=90, max_length=100),
}
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def data(tiny):
    return open_dataset(tiny.write())


def content(batch):
    return batch.moved(torch.clone)


def equal(a, b):
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def same_batches(a, b):
    assert len(a) == len(b)
    return all(equal(x, y) for x, y in zip(a, b, strict=True))


def expected_rows(values, clip):
    """Rows of a clip, by NumPy and torch."""
    x = torch.from_numpy(values.astype(np.float64))
    if clip.rows != len(values):
        x = torch.nn.functional.interpolate(
            x.T[None], size=clip.rows, mode="linear", align_corners=False
        )[0].T
    return x[clip.start : clip.stop]


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("layout", ["TC", "CT"])
@pytest.mark.parametrize("stored", ["TC", "CT"])
def test_batches_hold_the_rows_of_their_clips(tiny, name, layout, stored):
    values = dict(tiny.features)
    if stored == "CT":
        tiny.features = {k: np.ascontiguousarray(v.T) for k, v in values.items()}
        tiny.spec["feature"]["layout"] = "CT"
    clips = SETS[name](open_dataset(tiny.write()))
    for dtype in TORCH:
        seen = []
        with FeatureLoader(clips, 3, layout=layout, dtype=dtype, seed=2, threads=2) as loader:
            loader.set_epoch(4)
            for batch in loader:
                features = batch.features
                assert features.dtype == TORCH[dtype]
                assert features.is_contiguous()
                features = features.transpose(1, 2) if layout == "CT" else features
                length = clips.slot_length(max(batch.lengths))
                assert features.shape == (len(batch.indices), length, 4)
                labels = batch.labels.split(batch.counts)
                edges = batch.edges.split(batch.counts)
                for slot, index in enumerate(batch.indices):
                    clip = clips.clip(index, 2, 4)
                    rows = clip.stop - clip.start
                    expected = expected_rows(values[clip.video], clip)
                    # A step of the type: float32 arithmetic on numbers up to 30,000, then rounding.
                    tolerance = {"float32": 2e-7, "float16": 5e-4, "bfloat16": 4e-3}[dtype]
                    torch.testing.assert_close(
                        features[slot, :rows].double(), expected, rtol=tolerance, atol=0
                    )
                    assert (features[slot, rows:] == 0).all()
                    padding = [False] * rows + [True] * (length - rows)
                    assert batch.mask[slot].tolist() == padding
                    assert batch.lengths[slot] == rows
                    assert labels[slot].tolist() == clip.labels.tolist()
                    np.testing.assert_array_equal(edges[slot].numpy(), clip.edges)
                    assert batch.videos[slot] == clip.video
                    assert batch.starts[slot] == clip.start
                    assert batch.rows[slot] == clip.rows
                seen += batch.indices
        assert seen == list(range(len(clips)))


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 100, 1000])
@pytest.mark.parametrize("size", [1, 2, 16, 100, 192])
@pytest.mark.parametrize("layout", ["TC", "CT"])
def test_resizing_is_torchs_interpolation(tiny, rows, size, layout):
    """Exact positions: equal to torch in float64; torch's float32 positions are a little off."""
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((rows, 4)).astype(np.float32)
    tiny.features["a"] = values if layout == "TC" else np.ascontiguousarray(values.T)
    for name in "bcd":
        tiny.features[name] = (
            tiny.features[name] if layout == "TC" else tiny.features[name].T.copy()
        )
    tiny.spec["feature"]["layout"] = layout
    clips = VideoSet(open_dataset(tiny.write()), ["a"], resize=size)
    with FeatureLoader(clips, 1, layout="CT") as loader:
        got = next(iter(loader)).features.clone()
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 3e-4)):
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(values.T.copy())[None].to(dtype),
            size=size,
            mode="linear",
            align_corners=False,
        )
        torch.testing.assert_close(got.to(dtype), expected, rtol=0, atol=tolerance)


def test_streams_side_by_side(tiny, tmp_path):
    """A video whose channels lie in several files, of other types and layouts."""
    data = open_dataset(tiny.write())
    values = {}
    extents = {}
    for name, extent in data.features.items():
        right = np.random.default_rng(1).integers(0, 99, (3, extent.rows)).astype(np.float16)
        path = tmp_path / f"{name}.bin"
        path.write_bytes(b"x" * 6 + right.tobytes())
        extents[name] = beside([extent, Extent(str(path), 6, extent.rows, 3, "float16", "CT")])
        values[name] = np.concatenate([tiny.features[name], right.T.astype(np.float32)], axis=1)
    data.features.update(extents)
    for name in SETS:
        clips = SETS[name](data)
        for layout in ("TC", "CT"):
            with FeatureLoader(clips, 2, layout=layout, threads=2) as loader:
                for batch in loader:
                    x = batch.features
                    x = x.transpose(1, 2) if layout == "CT" else x
                    assert x.shape[2] == 7
                    for slot, index in enumerate(batch.indices):
                        clip = clips.clip(index, 0, 0)
                        rows = clip.stop - clip.start
                        expected = expected_rows(values[clip.video], clip).float()
                        torch.testing.assert_close(x[slot, :rows], expected, rtol=2e-7, atol=1e-5)
                        assert (x[slot, rows:] == 0).all()
                        assert (~batch.mask[slot]).sum() == rows
    (tmp_path / "b.bin").unlink()
    with (
        FeatureLoader(VideoSet(data, ["a", "b"]), 1) as loader,
        pytest.raises(DataError, match=r"video 'b': .*b\.bin: cannot be opened"),
    ):
        list(loader)


def test_float16_overflow_is_an_error(tiny):
    tiny.features["b"][7, 2] = 1e5
    clips = VideoSet(open_dataset(tiny.write()), ["a", "b"])
    with (
        FeatureLoader(clips, 1, dtype="float16") as loader,
        pytest.raises(DataError, match=r"'b': .*range of float16, got 100000 in row 7, channel 2"),
    ):
        list(loader)
    with FeatureLoader(clips, 1, dtype="bfloat16") as loader:
        assert len(list(loader)) == 2


def test_feature_dropout(data):
    clips = SETS["windows"](data)
    plain, found = [], []
    for dropout, into in ((0.0, plain), (0.5, found)):
        for layout in ("TC", "CT"):
            with FeatureLoader(clips, 2, seed=1, feature_dropout=dropout, layout=layout) as loader:
                batches = [content(batch).features for batch in loader]
            into.append([b.transpose(1, 2) if layout == "CT" else b for b in batches])
    kept_shares = []
    for a, b, c in zip(plain[0], found[0], found[1], strict=True):
        assert torch.equal(b, c)
        for slot in range(len(a)):
            for channel in range(4):
                x, y = a[slot, :, channel], b[slot, :, channel]
                kept = bool((y != 0).any())
                kept_shares.append(kept)
                assert torch.equal(y, x * 2 if kept else torch.zeros_like(x))
    assert 0.25 < np.mean(kept_shares) < 0.75
    with FeatureLoader(clips, 2, seed=1, feature_dropout=0.5) as loader:
        loader.set_epoch(1)
        other = [content(batch).features for batch in loader]
    assert any(((x == 0) != (y == 0)).any() for x, y in zip(other, found[0], strict=True))


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_two_epochs_are_the_same_bytes_for_any_threads_and_after_a_resume(data, name):
    clips = SETS[name](data)

    def loader(threads, prefetch):
        return FeatureLoader(
            clips, 2, shuffle=True, seed=5, threads=threads, prefetch=prefetch, bucket=2,
            feature_dropout=0.3,
        )  # fmt: skip

    def epochs(source, first=0):
        found = []
        for epoch in range(first, 2):
            source.set_epoch(epoch)
            found += [content(batch) for batch in source]
        return found

    with loader(1, 1) as first:
        expected = epochs(first)
    assert len({b.indices[0] for b in expected}) > 1
    for threads, prefetch in ((1, 3), (2, 2), (4, 1)):
        with loader(threads, prefetch) as other:
            assert same_batches(epochs(other), expected)
    for stop in range(len(expected) // 2 + 1):
        with loader(2, 2) as interrupted:
            before = [content(b) for b in itertools.islice(interrupted, stop)]
            state = interrupted.state_dict()
        state = pickle.loads(pickle.dumps(state))
        with loader(1, 2) as resumed:
            resumed.load_state_dict(state)
            assert same_batches(before + epochs(resumed, resumed.epoch), expected)


def test_resuming_reads_only_the_rest(data, tiny):
    clips = WindowSet(data, ["a", "b"], length=64, drop_empty=False)
    with FeatureLoader(clips, 1) as loader:
        loader.load_state_dict({**loader.state_dict(), "batch": 1})
        tiny.file("a").unlink()  # the one window of `a` comes first
        assert [b.indices for b in loader] == [[i] for i in range(1, len(clips))]
        assert loader.state_dict()["batch"] == len(clips)
        loader.set_epoch(0)
        with pytest.raises(DataError, match="cannot be opened"):  # a whole epoch again
            list(loader)


def test_state_of_another_loader(data):
    clips = SETS["windows"](data)
    state = FeatureLoader(clips, 2, seed=1).state_dict()
    with pytest.raises(ConfigError, match="the state is of a loader with seed 1, this one has 2"):
        FeatureLoader(clips, 2, seed=2).load_state_dict(state)
    with pytest.raises(ConfigError, match="with batch_size 2, this one has 3"):
        FeatureLoader(clips, 3, seed=1).load_state_dict(state)


def test_resuming_where_there_is_no_batch(data):
    loader = FeatureLoader(SETS["videos"](data), 2)
    for batch in (-1, 3):
        with pytest.raises(ConfigError, match=rf"batch in \[0, 2\] to resume, got {batch}"):
            loader.resume(0, batch)
    loader.resume(5, 2)
    assert list(loader) == []
    assert loader.epoch == 5


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("bucket", [0, 2])
def test_processes_share_an_epoch(data, world, bucket):
    clips = SETS["windows"](data)
    everything = []
    for shuffle in (True, False):
        for epoch in (0, 1):
            parts = []
            for rank in range(world):
                with FeatureLoader(
                    clips, 2, shuffle=shuffle, seed=3, rank=rank, world_size=world, bucket=bucket
                ) as loader:
                    loader.set_epoch(epoch)
                    parts.append([i for b in loader for i in b.indices])
                    assert len(loader) == -(-len(parts[-1]) // 2)
            items = [i for part in parts for i in part]
            assert len(set(items)) == len(items)  # disjoint
            if shuffle:
                assert {len(part) for part in parts} == {len(clips) // world}
                everything.append(tuple(items))
            else:
                assert sorted(items) == list(range(len(clips)))
    assert everything[0] != everything[1]


def test_place_comes_from_torch_distributed(data, tmp_path):
    clips = SETS["videos"](data)
    assert FeatureLoader(clips, 2).world_size == 1
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        loader = FeatureLoader(clips, 2)
        assert (loader.rank, loader.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_shards():
    order = np.arange(10)
    assert shard(order, 1, 3, equal=True).tolist() == [1, 4, 7]
    assert shard(order, 0, 3, equal=False).tolist() == [0, 3, 6, 9]


def test_buckets_hold_like_lengths():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 1000, 103)
    order = rng.permutation(103)
    batches = batches_of_like_length(order, lengths, 4, 10, False, None)
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    for first in range(0, len(batches), 10):
        group = np.concatenate(batches[first : first + 10])
        assert sorted(group) == sorted(order[first * 4 : first * 4 + 40])
        assert (np.diff(lengths[group]) >= 0).all()
    numbers = rng.integers(0, 2**63, 200).astype(np.uint64)
    mixed = batches_of_like_length(order, lengths, 4, 10, True, numbers)
    assert {len(batch) for batch in mixed} == {4}
    assert sorted(map(tuple, mixed)) == sorted(tuple(b) for b in batches if len(b) == 4)
    assert [tuple(b) for b in mixed] != [tuple(b) for b in batches if len(b) == 4]


# ---- resident ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("layout", ["TC", "CT"])
def test_resident_batches_are_the_same(data, name, layout, tiny):
    clips = SETS[name](data)
    options = {"shuffle": True, "seed": 4, "layout": layout, "dtype": "bfloat16"}
    with FeatureLoader(clips, 3, **options) as loader:
        expected = [content(b) for b in loader]
        size = loader.resident_size
        assert not loader.resident
    assert size == int(clips.grid_rows.sum()) * 4 * 2
    with FeatureLoader(clips, 3, resident_bytes=size - 1, **options) as loader:
        assert not loader.resident
    with FeatureLoader(clips, 3, resident_bytes=size, **options) as loader:
        assert loader.resident
        assert same_batches([content(b) for b in loader], expected)
        for video in clips.videos:
            tiny.file(video).unlink(missing_ok=True)
        assert same_batches([content(b) for b in loader], expected)  # nothing is read again


# ---- copies to a device, with a stand-in ---------------------------------------------------------


class FakeCopies:
    def __init__(self):
        self.log = []

    def start(self, batch):
        self.log.append(("start", batch["n"]))
        return batch["n"]

    def finish(self, token):
        self.log.append(("finish", token))
        return {"n": token}


def test_one_copy_runs_ahead():
    copies = FakeCopies()
    found = []
    for batch in device_copies.copied_ahead(({"n": i} for i in range(3)), copies):
        copies.log.append(("use", batch["n"]))
        found.append(batch["n"])
    assert found == [0, 1, 2]
    assert copies.log == [
        ("start", 0), ("start", 1), ("finish", 0), ("use", 0), ("start", 2), ("finish", 1),
        ("use", 1), ("finish", 2), ("use", 2),
    ]  # fmt: skip
    assert list(device_copies.copied_ahead([], copies)) == []


# ---- torch.utils.data ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_for_torchs_loader(data, workers, monkeypatch):
    clips = SETS["crops"](data)
    dataset = ClipDataset(clips, seed=2, layout="CT", dtype="float16")
    dataset.set_epoch(1)
    dataset[0]  # threads exist before the workers fork
    with FeatureLoader(clips, 1, seed=2, layout="CT", dtype="float16") as loader:
        loader.set_epoch(1)
        expected = [content(b) for b in loader]
    with short_directory() as directory:
        # Workers send tensors by sockets in the temporary directory, and hang if its path is long.
        monkeypatch.setattr("tempfile.tempdir", str(directory))
        items = list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))
    assert [item["index"] for item in items] == list(range(len(clips)))
    for item, batch in zip(items, expected, strict=True):
        rows = batch.lengths[0]
        assert torch.equal(item["features"], batch.features[0, :, :rows])
        assert torch.equal(item["labels"], batch.labels)
        assert torch.equal(item["edges"], batch.edges)
        assert (item["video"], item["start"]) == (batch.videos[0], batch.starts[0])
    assert len(pickle.loads(pickle.dumps(dataset))[1]["features"]) == 4
    with pytest.raises(IndexError, match="no clip 99 among 4"):
        dataset[99]
    dataset.close()


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "FeatureLoader: expected batch_size >= 1, got 0"),
        ({"threads": 0}, "FeatureLoader: expected threads >= 1, got 0"),
        ({"prefetch": 0}, "FeatureLoader: expected prefetch >= 1, got 0"),
        ({"bucket": -1}, "bucket and resident_bytes >= 0, got -1 and 0"),
        ({"resident_bytes": -1}, "bucket and resident_bytes >= 0, got 0 and -1"),
        ({"feature_dropout": 1.0}, r"feature_dropout in \[0, 1\), got 1.0"),
        ({"seed": -1}, r"FeatureLoader: expected 0 <= seed < 2\*\*64, got -1"),
        ({"dtype": "float23"}, r"dtype among .*, got 'float23'; did you mean 'float32'"),
        ({"layout": "tc"}, "expected layout 'TC' or 'CT', got 'tc'"),
        ({"rank": 1}, "expected rank and world_size together, or neither"),
        ({"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size, got 2 of 2"),
    ],
)
def test_bad_arguments(data, arguments, message):
    with pytest.raises(ConfigError, match=message):
        FeatureLoader(SETS["videos"](data), **{"batch_size": 2, **arguments})


def test_bad_epoch(data):
    with pytest.raises(ConfigError, match="FeatureLoader: expected 0 <= epoch"):
        FeatureLoader(SETS["videos"](data), 2).set_epoch(-1)
    with pytest.raises(ConfigError, match="ClipDataset: expected 0 <= epoch"):
        ClipDataset(SETS["videos"](data)).set_epoch(-1)


def test_videos_of_unlike_channels(data):
    data.features["b"] = replace(data.features["b"], columns=3)
    with pytest.raises(DataError, match="expected 4 channels as in video 'a', got 3 in video 'b'"):
        FeatureLoader(SETS["videos"](data), 2)
