# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tal_fast.data.dataset import open_dataset
from tal_fast.data.unheld import require_learnable
from tal_fast.data.windows import Window, WindowSet, sliding_windows
from tal_fast.errors import ConfigError, DataError


def test_known_windows():
    assert sliding_windows(100, 128, 0.75) == [(0, 100)]
    assert sliding_windows(128, 128, 0.75) == [(0, 128)]
    assert sliding_windows(129, 128, 0.75) == [(0, 128), (1, 129)]
    assert sliding_windows(192, 128, 0.75) == [(0, 128), (32, 160), (64, 192)]
    assert sliding_windows(200, 128, 0.25) == [(0, 128), (72, 200)]
    assert sliding_windows(224, 128, 0.25) == [(0, 128), (96, 224)]
    assert sliding_windows(7, 3, 0.0) == [(0, 3), (3, 6), (4, 7)]


def tadtr_windows(rows, length, overlap, last):
    """TadTR's rule as dialects.md states it; ``last(count, stride)`` begins the last window."""
    stride = length * (1 - overlap)
    if rows <= length:
        return [(0, rows)]
    count = int((rows / length - 1) / (1 - overlap) + 1)
    found = [(int(i * stride), int(i * stride) + length) for i in range(count)]
    if (count - 1) * stride + length < rows:
        found.append((last(count, stride), rows))
    return found


def tadtr_training_windows(rows, length, overlap):
    return tadtr_windows(rows, length, overlap, lambda count, stride: max(0, rows - length))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_is_tadtr_training_rule(overlap):
    for rows in range(1, 900):
        assert sliding_windows(rows, 128, overlap) == tadtr_training_windows(rows, 128, overlap)


@given(st.integers(1, 3000), st.integers(1, 300), st.floats(0, 0.99))
def test_every_row_is_covered(rows, length, overlap):
    if length * (1 - overlap) < 1:
        return
    windows = sliding_windows(rows, length, overlap)
    assert windows[0][0] == 0
    assert windows[-1][1] == rows
    for start, stop in windows:
        assert 0 <= start < stop <= rows
        assert stop - start == min(length, rows)
    for before, after in itertools.pairwise(windows):
        assert before[0] < after[0] <= before[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 0.5), "expected rows >= 1, got 0"),
        ((5, 0, 0.5), "expected length >= 1, got 0"),
        ((5, 3, 1.0), r"overlap in \[0, 1\).*got 1.0"),
        ((5, 3, -0.1), r"overlap in \[0, 1\).*got -0.1"),
        ((5, 3, 0.9), r"a step of at least one row of 3, got 0.9"),
        ((5, 3, 0.5, "tails"), "expected cover among .*got 'tails'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        sliding_windows(*arguments)


# ---- targets. In `tiny` a row is a tenth of a second, row i covers [i, i + 1) / 10 s. ------------


def annotate(tiny, video, *segments):
    tiny.database[video]["annotations"] = [
        {"label": "run", "label_id": 1, "segment": list(s)} for s in segments
    ] + [{"label": "jump", "label_id": 0, "segment": [0.0, 0.1]}]


def test_targets_are_in_rows_of_the_window(tiny):
    annotate(tiny, "a", (1.0, 2.0))
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["a"], length=80)
    assert windows.windows == [Window("a", 0, 40)]
    clip = windows.clip(0, 0, 0)
    assert clip.labels.tolist() == [1, 0]
    assert clip.edges.dtype == np.float64
    np.testing.assert_allclose(clip.edges[0], [10, 20], atol=1e-7)


def test_three_quarters_inside_is_inside_and_clipped(tiny):
    # Window rows [0, 40) and [20, 60): 4.0 s is row 40.
    annotate(tiny, "b", (3.0, 3.0 + 1.0 / 0.75), (3.2, 5.0))
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["b"], length=40, overlap=0.5, drop_empty=False)
    clip = windows.clip(0, 0, 0)
    assert clip.labels.tolist() == [1, 0]
    np.testing.assert_allclose(clip.edges[0], [30, 40], atol=1e-7)
    assert windows.windows[1] == Window("b", 20, 60)
    clip = windows.clip(1, 0, 0)
    assert clip.labels.tolist() == [1, 1]
    np.testing.assert_allclose(clip.edges[1], [12, 30], atol=1e-6)


def test_windows_without_an_instance_are_dropped_or_kept(tiny):
    annotate(tiny, "b", (1.0, 2.0))
    data = open_dataset(tiny.write())
    kept = WindowSet(data, ["b"], length=20, overlap=0.0, drop_empty=False)
    assert len(kept) == 5
    assert [len(kept.clip(i, 0, 0).labels) for i in range(5)] == [2, 0, 0, 0, 0]
    dropped = WindowSet(data, ["b"], length=20, overlap=0.0)
    assert dropped.windows == [Window("b", 0, 20)]
    assert dropped.dropped == 4


def test_order_is_that_of_the_videos(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["c", "a"], length=128, drop_empty=False)
    assert [w.video for w in windows.windows] == ["c"] * (len(windows) - 1) + ["a"]


def test_faulty_window_sets(tiny):
    data = open_dataset(tiny.write())
    with pytest.raises(DataError, match="no video 'aa' in data set 'tiny'; did you mean 'a'"):
        WindowSet(data, ["aa"])
    with pytest.raises(DataError, match="expected at least one video, got none"):
        WindowSet(data, [])
    with pytest.raises(ConfigError, match=r"expected min_inside in \(0, 1\], got 0"):
        WindowSet(data, ["a"], min_inside=0)


def test_no_window_left(tiny):
    tiny.database["b"]["annotations"] = []
    data = open_dataset(tiny.write())
    with pytest.raises(DataError, match="none of the 1 window of 1 video holds 75% of an inst"):
        WindowSet(data, ["b"])


# ---- other rules ---------------------------------------------------------------------------------


def tadtr_test_windows(rows, length, overlap):
    return tadtr_windows(rows, length, overlap, lambda count, stride: int(stride * count))


def opentad_windows(rows, length, overlap):
    """OpenTAD's rule as dialects.md states it."""
    stride = int(length * (1 - overlap))
    found = []
    for i in range(max(1, rows // stride)):
        start, end = i * stride, i * stride + length
        if end > rows:
            found.append((max(0, rows - length), rows))
            break
        found.append((start, end))
    return found


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_rules_of_tadtr_and_opentad(overlap):
    for rows in range(1, 900):
        expected = tadtr_test_windows(rows, 128, overlap)
        assert sliding_windows(rows, 128, overlap, "tadtr-test") == expected
        expected = tadtr_training_windows(rows, 128, overlap)
        assert sliding_windows(rows, 128, overlap, "tadtr-train") == expected
        expected = opentad_windows(rows, 128, overlap)
        assert sliding_windows(rows, 128, overlap, "opentad") == expected


def test_opentad_loses_the_end_of_most_videos_without_overlap():
    """The counts of dialects.md: lengths 1 to 3999, windows of 256."""
    lost = {
        overlap: [
            rows - max(stop for _, stop in sliding_windows(rows, 256, overlap, "opentad"))
            for rows in range(1, 4000)
        ]
        for overlap in (0.0, 0.25, 0.5, 0.75)
    }
    assert [sum(n > 0 for n in rows) for rows in lost.values()] == [3729, 2508, 0, 0]
    assert [max(rows) for rows in lost.values()] == [255, 127, 0, 0]


def test_windows_of_another_rule(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["b"], length=48, overlap=0.25, drop_empty=False, cover="tadtr-test")
    assert [(w.start, w.stop) for w in windows.windows] == [(0, 48), (36, 84), (72, 100)]
    assert windows.lengths.tolist() == [48, 48, 28]
    assert windows.videos == ["b"]
    assert windows.grid_rows.tolist() == [100]


# ---- jitter --------------------------------------------------------------------------------------


def test_jitter_moves_windows_and_their_targets(tiny):
    annotate(tiny, "c", (4.0, 8.0), (20.0, 21.0))
    data = open_dataset(tiny.write())
    still = WindowSet(data, ["c"], length=64, overlap=0.5, drop_empty=False)
    moving = WindowSet(data, ["c"], length=64, overlap=0.5, drop_empty=False, jitter=5)
    grid = data.grid("c").to_grid(data.annotations.videos["c"].segments)
    moves = set()
    for epoch in range(20):
        for index, window in enumerate(still.windows):
            clip = moving.clip(index, 7, epoch)
            assert clip.stop - clip.start == 64
            assert 0 <= clip.start <= 333 - 64
            moves.add(clip.start - window.start)
            low = np.maximum(grid[:, 0], clip.start)
            high = np.minimum(grid[:, 1], clip.stop)
            inside = (high - low) / (grid[:, 1] - grid[:, 0]) >= 0.75 - 1e-9
            np.testing.assert_allclose(
                clip.edges, np.stack([low, high], axis=1)[inside] - clip.start, atol=1e-9
            )
            assert len(clip.labels) == inside.sum()
    assert moves == set(range(-5, 6))


def test_jitter_keeps_a_window_that_would_lose_its_instance(tiny):
    annotate(tiny, "b", (4.0, 4.4))
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["b"], length=4, overlap=0.0, min_inside=1.0, jitter=3)
    index = next(i for i, w in enumerate(windows.windows) if w.start == 40)
    starts = {windows.clip(index, 0, epoch).start for epoch in range(50)}
    assert starts == {40}
    assert all(len(windows.clip(index, 0, epoch).labels) == 1 for epoch in range(10))


def test_negative_jitter(tiny):
    with pytest.raises(ConfigError, match="WindowSet: expected jitter >= 0, got -1"):
        WindowSet(open_dataset(tiny.write()), ["a"], jitter=-1)


# ---- parts of a set ------------------------------------------------------------------------------


def test_instances_are_the_rows_of_the_targets(tiny):
    annotate(tiny, "b", (3.0, 3.0 + 1.0 / 0.75), (3.2, 5.0), (8.0, 9.0))
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["a", "b"], length=40, overlap=0.5)
    video = data.annotations.videos
    for index, window in enumerate(windows.windows):
        rows = windows.instances(index)
        assert rows.dtype == np.int64
        assert (
            windows.clip(index, 0, 0).labels.tolist() == video[window.video].labels[rows].tolist()
        )
    found = {
        (w.video, w.start): windows.instances(i).tolist() for i, w in enumerate(windows.windows)
    }
    assert found == {
        ("a", 0): [0, 1],
        ("b", 0): [0, 3],
        ("b", 20): [0, 1],
        ("b", 60): [2],
    }


def test_subset_is_the_set_with_some_windows(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["c", "a", "b"], length=64, drop_empty=False, jitter=3)
    chosen = [len(windows) - 1, 2, 5]
    part = windows.subset(chosen)
    assert part.windows == [windows.windows[i] for i in sorted(chosen)]
    assert part.videos == ["c", "b"]
    assert part.grid_rows.tolist() == [333, 100]
    assert part.lengths.tolist() == [64, 64, 64]
    assert (len(part), part.length, part.slot_length(1)) == (3, 64, 64)
    for index, position in enumerate(sorted(chosen)):
        np.testing.assert_array_equal(part.instances(index), windows.instances(position))
    starts = {part.clip(0, 0, epoch).start - part.windows[0].start for epoch in range(40)}
    assert starts == set(range(-3, 4))
    # The set itself stays whole.
    assert windows.videos == ["c", "a", "b"]
    assert len(windows.lengths) == len(windows.windows) == len(windows)


def test_subset_of_all_is_the_same_set(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["b", "c"], length=48, overlap=0.5, cover="tadtr-test", jitter=2)
    part = windows.subset(np.arange(len(windows)))
    assert (part.windows, part.videos, part.dropped) == (
        windows.windows,
        windows.videos,
        windows.dropped,
    )
    assert part.lengths.tolist() == windows.lengths.tolist()
    for index in range(len(windows)):
        one, other = part.clip(index, 7, 3), windows.clip(index, 7, 3)
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.edges, other.edges)


def test_subset_of_a_subset(tiny):
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["c"], length=64, drop_empty=False)
    part = windows.subset([1, 3, 5]).subset([0, 2])
    assert part.windows == [windows.windows[1], windows.windows[5]]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([], "at least one position, got none"),
        ([[0, 1]], r"a sequence of at least one position, got shape \(1, 2\)"),
        ([0.0, 1.0], "whole numbers, got float64"),
        ([True, False], "whole numbers, got bool"),
        ([0, 99], r"positions in \[0, 5\), got 99"),
        ([-1], r"positions in \[0, 5\), got -1"),
        ([3, 0, 3], "each position once, got 3 more than once"),
    ],
)
def test_faulty_subsets(tiny, positions, message):
    windows = WindowSet(open_dataset(tiny.write()), ["b"], length=20, overlap=0.0, drop_empty=False)
    with pytest.raises(ConfigError, match="WindowSet.subset: expected .*" + message):
        windows.subset(positions)


def test_instances_that_no_window_owns_are_counted_by_class(tiny):
    annotate(tiny, "c", (1.0, 18.1), (1.0, 18.05), (12.0, 13.6), (33.2, 33.4))
    data = open_dataset(tiny.write(), out_of_range="keep")
    assert WindowSet(data, ["c"]).unheld == {"run": (2, 4)}, "too long, and beyond the last row"
    # Without overlap, one that lies half in a window and half in the next has none.
    assert WindowSet(data, ["c"], overlap=0).unheld == {"run": (4, 4)}
    assert WindowSet(data, ["c"], length=512).unheld == {"run": (1, 4)}
    assert WindowSet(data, ["c"], length=512).subset([0]).unheld == {"run": (1, 4)}
    assert WindowSet(data, ["a", "b"]).unheld == {}


def test_a_class_without_an_instance_in_a_window(tiny):
    annotate(tiny, "c", (1, 30))
    data = open_dataset(tiny.write())
    windows = WindowSet(data, ["a", "b", "c"])
    assert require_learnable(windows) == [
        "1 of 6 instances are never learned, no window of 128 rows holds them: run 1 of 3"
    ]
    assert require_learnable(WindowSet(data, ["a"])) == []
    for name in "ab":
        del tiny.database[name]["annotations"][0]
    data = open_dataset(tiny.write())
    with pytest.raises(
        DataError, match=r"no window of 128 rows holds any instance of run \(1 of 2 classes\)"
    ):
        require_learnable(WindowSet(data, ["a", "b", "c"]))
