# SPDX-License-Identifier: Apache-2.0
import gc
import linecache
import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch
from processes import thread_ids, wait_for, wait_for_threads

from tal_fast.data.dataset import open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.order import epoch_order
from tal_fast.data.windows import WindowSet
from tal_fast.errors import ConfigError, DataError


@pytest.fixture
def windows(tiny):
    return WindowSet(open_dataset(tiny.write()), ["a", "b", "c"], length=64, drop_empty=False)


def content(batch):
    return batch.moved(torch.clone)


def same(a, b):
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def open_files():
    return len(os.listdir("/proc/self/fd"))


def expect_rows(batch, tiny, length=64):
    for slot, video in enumerate(batch.videos):
        start, rows = batch.starts[slot], batch.lengths[slot]
        values = tiny.features[video].astype(np.float32)
        got = batch.features[slot].numpy()
        np.testing.assert_array_equal(got[:rows], values[start : start + rows])
        assert (got[rows:] == 0).all()
        assert batch.mask[slot].tolist() == [False] * rows + [True] * (length - rows)


# ---- bytes and order ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["TC", "CT"])
def test_batches_hold_the_rows_of_their_windows(tiny, dtype, layout):
    tiny.features = {k: v.astype(dtype) for k, v in tiny.features.items()}
    stored = dict(tiny.features)
    if layout == "CT":
        tiny.features = {k: np.ascontiguousarray(v.T) for k, v in stored.items()}
        tiny.spec["feature"]["layout"] = "CT"
    data = open_dataset(tiny.write())
    tiny.features = stored
    windows = WindowSet(data, ["a", "b", "c"], length=64, drop_empty=False)
    seen = []
    with FeatureLoader(windows, 3, threads=2) as loader:
        assert len(loader) == -(-len(windows) // 3)
        for batch in loader:
            assert batch.features.shape == (len(batch.indices), 64, 4)
            assert batch.features.dtype == torch.float32
            assert batch.mask.dtype == torch.bool
            expect_rows(batch, tiny)
            assert (batch.labels.dtype, batch.edges.dtype) == (torch.int64, torch.float64)
            labels, edges = batch.labels.split(batch.counts), batch.edges.split(batch.counts)
            for i, index in enumerate(batch.indices):
                clip = windows.clip(index, 0, 0)
                assert (batch.videos[i], batch.starts[i]) == (clip.video, clip.start)
                assert labels[i].tolist() == clip.labels.tolist()
                np.testing.assert_array_equal(edges[i].numpy(), clip.edges)
                assert edges[i].shape == (len(clip.labels), 2)
            seen += batch.indices
    assert seen == list(range(len(windows)))


def test_drop_last(windows):
    with FeatureLoader(windows, 4, drop_last=True) as loader:
        batches = list(loader)
    assert len(loader) == len(windows) // 4 == len(batches)
    assert all(len(b.indices) == 4 for b in batches)


def test_order_is_a_permutation_by_seed_and_epoch():
    orders = {(s, e): epoch_order(50, s, e).tolist() for s in (0, 1, 2**63) for e in (0, 1, 7)}
    for order in orders.values():
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    # A fixed point: the order must not change with a version of NumPy or of ours.
    assert epoch_order(8, 3, 5).tolist() == [0, 6, 2, 1, 3, 4, 7, 5]


def test_same_bytes_for_any_number_of_threads_and_depth(windows):
    found = []
    for threads, prefetch in ((1, 1), (1, 4), (2, 2), (4, 3)):
        epochs = []
        with FeatureLoader(
            windows, 3, shuffle=True, seed=5, threads=threads, prefetch=prefetch
        ) as loader:
            for epoch in (0, 1):
                loader.set_epoch(epoch)
                epochs += [content(batch) for batch in loader]
        found.append(epochs)
    for other in found[1:]:
        assert len(other) == len(found[0])
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))
    half = len(found[0]) // 2
    assert found[0][0].indices != found[0][half].indices


def test_epoch_does_not_change_by_itself(windows):
    with FeatureLoader(windows, 3, shuffle=True) as loader:
        assert [b.indices for b in loader] == [b.indices for b in loader]


# ---- memory ---------------------------------------------------------------------------------


def test_a_batch_is_never_overwritten(windows, tiny):
    with FeatureLoader(windows, 2, prefetch=1) as loader:
        for _ in range(3):
            kept = list(loader)
            for batch in kept:
                expect_rows(batch, tiny)


def test_a_part_of_a_batch_keeps_its_memory(windows):
    with FeatureLoader(windows, 2, prefetch=1) as loader:
        part = next(iter(loader)).features[1, 10:20]
        before = part.clone()
        for _ in range(5):
            for batch in loader:
                del batch
        assert torch.equal(part, before)


def test_memory_is_used_again_when_free(windows):
    with FeatureLoader(windows, 2, prefetch=1) as loader:
        places = set()
        for _ in range(5):
            for batch in loader:
                places.add(batch.features.data_ptr())
                del batch
        # In flight are prefetch + 1 batches and one with the consumer.
        assert len(places) <= 4


def test_targets_may_be_changed_in_place(windows):
    with FeatureLoader(windows, 4) as loader:
        first = next(iter(loader))
        before = content(first)
        for tensor in (first.labels, first.edges, first.mask, first.features):
            tensor.zero_()
        assert same(content(next(iter(loader))), before)


# ---- ending ---------------------------------------------------------------------------------


def test_leaving_early_and_starting_again(windows):
    with FeatureLoader(windows, 2, threads=2, prefetch=3) as loader:
        for _ in range(30):
            for batch in loader:
                assert batch.indices == [0, 1]
                break
        assert [i for b in loader for i in b.indices] == list(range(len(windows)))


def test_two_iterations_at_once(windows):
    with FeatureLoader(windows, 2, threads=2) as loader:
        for one, two in zip(loader, loader, strict=True):
            assert same(content(one), content(two))


def test_close_joins_threads_and_closes_files(windows):
    gc.collect()
    before, files = thread_ids(), open_files()
    for _ in range(30):
        loader = FeatureLoader(windows, 2, threads=3)
        next(iter(loader))
        loader.close()
        loader.close()
    wait_for_threads(before)
    assert open_files() == files
    assert len(list(loader)) == len(loader)  # it starts again
    loader.close()


def test_a_forgotten_loader_ends_its_threads(windows):
    gc.collect()
    before = thread_ids()
    iterator = iter(FeatureLoader(windows, 2, threads=3))
    next(iterator)
    assert len(thread_ids() - before) == 3
    del iterator
    gc.collect()
    wait_for_threads(before)


def test_closing_while_iterating_ends_with_an_error(windows):
    loader = FeatureLoader(windows, 1)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    with pytest.raises(RuntimeError, match="reader: it is closed"):
        list(iterator)


def test_error_in_the_consumer_leaves_nothing_behind(windows):
    before = thread_ids()

    def consume():
        with FeatureLoader(windows, 1, threads=2) as loader:
            for _ in loader:
                raise KeyError

    with pytest.raises(KeyError):
        consume()
    wait_for_threads(before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_reading_in_a_forked_child(windows, tiny):
    with FeatureLoader(windows, 2) as loader:
        iterator = iter(loader)
        next(iterator)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for batch in loader:
                    expect_rows(batch, tiny)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(iterator)) == len(loader) - 1


def test_ctrl_c_while_waiting(tiny):
    """It ends the wait for a reader that hangs in open(), here of a FIFO without a writer."""
    data = open_dataset(tiny.write())
    tiny.file("a").unlink()
    os.mkfifo(tiny.file("a"))
    loader = FeatureLoader(WindowSet(data, ["a"], drop_empty=False), 1)
    main = threading.main_thread().ident

    def main_is_in(call):
        frame = sys._current_frames()[main]
        return call in linecache.getline(frame.f_code.co_filename, frame.f_lineno)

    def interrupt():
        try:
            wait_for(lambda: main_is_in("reader.wait("), "the reader")
            signal.pthread_kill(main, signal.SIGINT)
            # What is being read is then waited for: it writes into the batch.
            wait_for(lambda: main_is_in("reader.cancel("), "the interrupt")
        finally:
            os.close(os.open(tiny.file("a"), os.O_WRONLY))  # now open() returns

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    other.join()
    loader.close()


# ---- faults ---------------------------------------------------------------------------------


def test_nan_names_video_and_row(tiny):
    tiny.features["b"][77, 2] = np.nan
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["a", "b"], length=64, drop_empty=False)
    message = (
        r"video 'b': .*b\.npy: expected finite features, got NaN or infinity in row 77, chan.* 2"
    )
    for threads in (1, 4):
        delivered = []
        with FeatureLoader(windows, 1, threads=threads) as loader:
            batches = iter(loader)
            with pytest.raises(DataError, match=message):
                delivered.extend(batch.indices for batch in batches)
        # Windows [0, 40) of a and [0, 64) of b come before it.
        assert delivered == [[0], [1]]
    with FeatureLoader(windows, 1, check_finite=False) as loader:
        assert len(list(loader)) == len(windows)


def test_float64_too_large_for_float32(tiny):
    tiny.features["a"] = tiny.features["a"].astype(np.float64)
    tiny.features["a"][3, 1] = 1e300
    windows = WindowSet(open_dataset(tiny.write()), ["a"], drop_empty=False)
    with (
        FeatureLoader(windows, 1) as loader,
        pytest.raises(DataError, match=r"range of float32, got 1e\+300 in row 3, channel 1 "),
    ):
        list(loader)


def test_file_that_vanishes_after_indexing(windows, tiny):
    tiny.file("a").unlink()
    with (
        FeatureLoader(windows, 2) as loader,
        pytest.raises(DataError, match=r"video 'a': .*a\.npy: cannot be opened: No such file"),
    ):
        list(loader)


def test_file_that_shrinks_after_indexing(windows, tiny):
    os.truncate(tiny.file("a"), 300)
    message = r"video 'a': .*a\.npy: expected 768 bytes, got 300: the file is shorter than when"
    with FeatureLoader(windows, 2) as loader, pytest.raises(DataError, match=message):
        list(loader)


def test_file_that_shrinks_while_it_is_read(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["c"], length=64, overlap=0.0, drop_empty=False)
    with FeatureLoader(windows, 1, prefetch=1) as loader:
        iterator = iter(loader)
        next(iterator)
        os.truncate(tiny.file("c"), 128 + 16 * 300)
        with pytest.raises(DataError, match=r"'c': .*expected 5456 bytes, got 4928: the file ends"):
            list(iterator)
        os.truncate(tiny.file("c"), 128 + 16 * 333)
        assert len(list(loader)) == len(windows)  # the loader can still be used


def test_folder_in_place_of_a_file(windows, tiny):
    tiny.file("a").unlink()
    tiny.file("a").mkdir()
    with (
        FeatureLoader(windows, 1) as loader,
        pytest.raises(DataError, match=r"'a': .*(shorter than when|Is a directory)"),
    ):
        list(loader)


@pytest.mark.parametrize("name", ["batch_size", "threads", "prefetch"])
def test_numbers_below_one(windows, name):
    arguments = {"batch_size": 2, name: 0}
    with pytest.raises(ConfigError, match=f"expected {name} >= 1, got 0"):
        FeatureLoader(windows, **arguments)


def test_negative_seed_and_epoch(windows):
    with pytest.raises(ConfigError, match=r"expected 0 <= seed < 2\*\*64, got -1"):
        FeatureLoader(windows, 2, seed=-1)
    loader = FeatureLoader(windows, 2)
    with pytest.raises(ConfigError, match="expected 0 <= epoch"):
        loader.set_epoch(-1)


@pytest.mark.slow
def test_thousand_loaders_leak_nothing(windows):
    gc.collect()
    before, files = thread_ids(), open_files()
    for i in range(1000):
        loader = FeatureLoader(windows, 2, threads=1 + i % 3)
        for _ in loader:
            if i % 2:
                break
        if i % 5:
            loader.close()
    del loader
    gc.collect()
    wait_for_threads(before)
    assert open_files() == files
    assert sys.getrefcount(windows) < 20
