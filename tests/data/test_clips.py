# SPDX-License-Identifier: Apache-2.0
"""Crops and whole videos. In `tiny` a row is a tenth of a second: row i covers [i, i + 1) / 10."""

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tal_fast.data.clips import CropSet, VideoSet
from tal_fast.data.dataset import open_dataset
from tal_fast.data.order import below, item_numbers
from tal_fast.errors import ConfigError, DataError


def instances(tiny, video, *segments):
    tiny.database[video]["annotations"] = [
        {"label": "run", "label_id": 1, "segment": list(s)} for s in segments
    ]


def places(index, rows, length, trials, epoch=0, seed=3):
    """Length and starts in the order in which CropSet draws them."""
    numbers = item_numbers(seed, epoch, index, 0, trials + 1)
    return [below(n, rows - length + 1) for n in numbers[1:]]


def truncate_feats(segments, starts, length, offset, threshold):
    """ActionFormer's rule as dialects.md states it, in its own coordinate (row centres)."""
    for start in starts:
        left = np.maximum(start - offset, segments[:, 0])
        right = np.minimum(start + length + offset, segments[:, 1])
        ratio = np.clip(right - left, 0, None) / (segments[:, 1] - segments[:, 0])
        kept = ratio >= threshold
        if kept.any():
            break
    return start, np.stack([left, right], axis=1)[kept] - start, kept


@pytest.mark.parametrize("margin", ["actionformer", "opentad"])
def test_crops_follow_actionformers_rule(tiny, margin):
    tiny.spec["feature"] |= {"stride": 2, "frames": 7}
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 60, 9)
    instances(tiny, "c", *zip(starts, starts + rng.uniform(0.5, 6, 9), strict=True))
    tiny.database["c"]["duration"] = 70.0
    data = open_dataset(tiny.write())
    clips = CropSet(data, ["a", "c"], max_length=64, margin=margin)
    segments = data.annotations.videos["c"].segments * 10 / 2 - 0.5 * 7 / 2
    offset = 0.5 * 7 / 2 if margin == "actionformer" else 0.0
    tried = set()
    for epoch in range(60):
        clip = clips.clip(1, 3, epoch)
        drawn = places(1, 333, 64, 200, epoch)
        start, expected, kept = truncate_feats(segments, drawn, 64, offset, 0.5)
        tried.add(drawn.index(start))
        assert (clip.start, clip.stop, clip.rows) == (start, start + 64, 333)
        assert clip.labels.tolist() == data.annotations.videos["c"].labels[kept].tolist()
        np.testing.assert_allclose(clip.edges - 0.5, expected, atol=1e-9)
    assert max(tried) > 0  # the first place was not always good enough


@pytest.mark.skipif("TAL_FAST_PEERS" not in os.environ, reason="TAL_FAST_PEERS is not set")
def test_crops_are_those_of_actionformers_code(tiny, monkeypatch):
    path = Path(os.environ["TAL_FAST_PEERS"]) / "actionformer_release/libs/datasets/data_utils.py"
    if not path.is_file():
        pytest.skip("no actionformer_release under TAL_FAST_PEERS")
    spec = importlib.util.spec_from_file_location("actionformer_data_utils", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, 30, 6)
    instances(tiny, "c", *zip(starts, starts + rng.uniform(0.5, 3, 6), strict=True))
    data = open_dataset(tiny.write())
    segments = data.annotations.videos["c"].segments * 10 - 0.5
    features = torch.from_numpy(tiny.features["c"].T.copy())
    for max_length, ratio in ((64, None), (400, (0.9, 1.0)), (400, None)):
        clips = CropSet(data, ["a", "c"], max_length=max_length, crop_ratio=ratio)
        for epoch in range(20):
            clip = clips.clip(1, 3, epoch)
            numbers = iter(item_numbers(3, epoch, 1, 0, 201).tolist())
            if max_length < 333:
                next(numbers)  # the length, which is not drawn here

            def randint(low, high, numbers=numbers):
                return low + below(next(numbers), high - low + 1)

            monkeypatch.setattr(random, "randint", randint)
            item = {
                "feats": features,
                "segments": torch.from_numpy(segments),
                "labels": torch.from_numpy(data.annotations.videos["c"].labels),
            }
            out = theirs.truncate_feats(item, max_length, 0.5, 0.5, ratio)
            expected = tiny.features["c"][clip.start : clip.stop].T
            np.testing.assert_array_equal(out["feats"].numpy(), expected)
            np.testing.assert_allclose(clip.edges - 0.5, out["segments"].numpy(), atol=1e-4)
            assert clip.labels.tolist() == out["labels"].tolist()


def test_short_videos_are_cut_to_a_part_of_themselves_or_kept(tiny):
    instances(tiny, "b", (0.0, 10.0))
    data = open_dataset(tiny.write())
    clips = CropSet(data, ["b"], max_length=200, crop_ratio=(0.5, 0.9), min_inside=0.1)
    lengths = [c.stop - c.start for c in (clips.clip(0, 0, e) for e in range(300))]
    assert min(lengths) == 50
    assert max(lengths) == 90
    kept = CropSet(data, ["b"], max_length=200, crop_ratio=None).clip(0, 0, 0)
    assert (kept.start, kept.stop) == (0, 100)
    assert clips.slot_length(90) == 200
    assert CropSet(data, ["b"], max_length=200, multiple=64).slot_length(1) == 256


def test_a_crop_without_any_instance_is_the_last_place_tried(tiny):
    instances(tiny, "c", (0.0, 33.0))
    instances(tiny, "b")
    data = open_dataset(tiny.write())
    clips = CropSet(data, ["a", "c", "b"], max_length=20, trials=5)
    clip = clips.clip(1, 3, 0)  # never half of an instance of 330 rows inside 20
    assert clip.start == places(1, 333, 20, 5)[-1]
    assert len(clip.labels) == 0
    assert clip.edges.shape == (0, 2)
    clip = clips.clip(2, 3, 0)
    assert clip.start == places(2, 100, 20, 5)[0]
    assert len(clip.labels) == 0


def test_crops_depend_on_seed_epoch_and_index_alone(tiny):
    data = open_dataset(tiny.write())
    one = CropSet(data, ["c", "c", "b"], max_length=30)
    two = CropSet(data, ["c", "c", "b"], max_length=30)
    found = {(s, e, i): one.clip(i, s, e).start for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    for (seed, epoch, index), start in reversed(found.items()):
        assert two.clip(index, seed, epoch).start == start
    assert len(set(found.values())) > 4
    # Fixed points: numbers must not change with a version of NumPy or of ours.
    assert item_numbers(1, 2, 3, 4, 2).tolist() == [18050149935039908586, 2422609975323358355]
    assert [below(n, 10) for n in (0, 2**63, 2**64 - 1)] == [0, 5, 9]


def test_whole_and_resized_videos(tiny):
    instances(tiny, "b", (1.0, 3.0))
    data = open_dataset(tiny.write())
    whole = VideoSet(data, ["a", "b", "c"], pad_to=50, multiple=16)
    assert whole.lengths.tolist() == [40, 100, 333]
    assert [whole.slot_length(n) for n in (40, 64, 65, 333)] == [64, 64, 80, 336]
    clip = whole.clip(1, 5, 6)
    assert clip[:4] == ("b", 0, 100, 100)
    np.testing.assert_allclose(clip.edges, [[10, 30]])
    resized = VideoSet(data, ["a", "b", "c"], resize=25)
    assert resized.lengths.tolist() == [25, 25, 25]
    clip = resized.clip(1, 0, 0)
    assert clip[:4] == ("b", 0, 25, 25)
    np.testing.assert_allclose(clip.edges, [[2.5, 7.5]])
    crop = CropSet(data, ["b"], resize=50, max_length=40, margin="none", crop_ratio=None)
    clip = crop.clip(0, 0, 0)
    assert (clip.rows, clip.stop - clip.start) == (50, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resize": 0}, "VideoSet: expected resize >= 1, got 0"),
        ({"pad_to": 0}, "expected pad_to >= 1, got 0"),
        ({"multiple": 0}, "expected multiple >= 1, got 0"),
        ({"max_length": 0}, "expected max_length >= 1, got 0"),
    ],
)
def test_bad_numbers_of_whole_videos(tiny, arguments, message):
    with pytest.raises(ConfigError, match=message):
        VideoSet(open_dataset(tiny.write()), ["a"], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "expected max_length and trials >= 1, got 0 and 200"),
        ({"trials": 0}, "expected max_length and trials >= 1, got 2304 and 0"),
        ({"crop_ratio": (0.0, 1.0)}, r"0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"min_inside": 0.0}, r"expected min_inside in \(0, 1\], got 0.0"),
        ({"margin": "wide"}, "expected margin 'actionformer', 'opentad' or 'none', got 'wide'"),
    ],
)
def test_bad_arguments_of_crops(tiny, arguments, message):
    with pytest.raises(ConfigError, match=message):
        CropSet(open_dataset(tiny.write()), ["a"], **arguments)


def test_faulty_videos(tiny):
    data = open_dataset(tiny.write())
    with pytest.raises(DataError, match=r"VideoSet: no video 'aa'.*did you mean 'a'"):
        VideoSet(data, ["aa"])
    with pytest.raises(DataError, match="VideoSet: expected at least one video, got none"):
        CropSet(data, [])
    with pytest.raises(DataError, match="video 'c' has 333 rows, expected at most max_length = 99"):
        VideoSet(data, ["a", "c"], max_length=99)


@pytest.mark.parametrize("margin", ["actionformer", "opentad", "none"])
@pytest.mark.parametrize("crop_ratio", [None, (0.5, 0.9)])
def test_instances_that_no_crop_can_hold_are_counted(tiny, margin, crop_ratio):
    """Every place of a crop of every length is tried."""
    tiny.spec["feature"] |= {"frames": 7}
    tiny.spec["out_of_range"] = "keep"
    rng = np.random.default_rng(1)
    for name, rows in (("b", 100), ("c", 333)):
        starts = rng.uniform(-2, rows / 10, 40)
        instances(tiny, name, *zip(starts, starts + rng.uniform(0.1, 16, 40), strict=True))
    data = open_dataset(tiny.write())
    options = {"max_length": 101, "crop_ratio": crop_ratio, "margin": margin, "min_inside": 0.8}
    clips = CropSet(data, ["b", "c"], **options)
    before, after = {"actionformer": (3.0, 4.0), "opentad": (-0.5, 0.5), "none": (0.0, 0.0)}[margin]
    lost = 0
    for name, rows in (("b", 100), ("c", 333)):
        longest = 101 if rows > 101 else rows if crop_ratio is None else 90
        for start, end in data.grid(name).to_grid(data.annotations.videos[name].segments):
            lost += not any(
                min(end, place + length + after) - max(start, place - before) >= 0.8 * (end - start)
                for length in (longest, longest - 1)
                for place in range(rows - length + 1)
            )
    assert 0 < lost < 80
    assert clips.unheld == {"run": (lost, 80)}
    assert VideoSet(data, ["b", "c"]).unheld == {}
