# SPDX-License-Identifier: Apache-2.0
"""Datasets with the items of ActionFormer and OpenTAD."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tal_fast.compat import ActionFormerItems, OpenTADItems
from tal_fast.data import CropSet, VideoSet, open_dataset, read_array
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import ConfigError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("compat") / "demo"
    make_synthetic(path, train_videos=3, test_videos=2)
    return open_dataset(path)


def videos(data) -> list[str]:
    return list(data.features)[:4]


def seconds(segments, item_fps, stride, offset):
    return (segments.double() * stride + offset) / item_fps


@pytest.mark.parametrize("resize", [None, 50])
def test_actionformer_items(data, resize):
    items = ActionFormerItems(VideoSet(data, videos(data), resize=resize))
    assert len(items) == 4
    for index, name in enumerate(videos(data)):
        item = items[index]
        video = data.annotations.videos[name]
        assert set(item) == {
            "video_id", "feats", "segments", "labels", "fps", "duration", "feat_stride",
            "feat_num_frames",
        }  # fmt: skip
        assert item["video_id"] == name
        assert item["feats"].dtype == torch.float32
        assert item["feats"].shape == (data.channels, resize or data.features[name].rows)
        if resize is None:
            stored = read_array(data.features[name])
            assert np.array_equal(item["feats"].T.numpy(), stored.astype(np.float32))
        # Back in seconds as their models go back.
        found = seconds(
            item["segments"],
            item["fps"],
            item["feat_stride"],
            0.5 * item["feat_num_frames"],
        )
        np.testing.assert_allclose(found.numpy(), video.segments, atol=1e-4)
        assert item["segments"].dtype == torch.float32
        assert item["labels"].tolist() == video.labels.tolist()
        assert item["duration"] == video.duration
    items.close()


def test_opentad_items(data):
    longest = max(data.features[name].rows for name in videos(data))
    items = OpenTADItems(VideoSet(data, videos(data)), length=longest + 3)
    for index, name in enumerate(videos(data)):
        item = items[index]
        video, rows = data.annotations.videos[name], data.features[name].rows
        assert list(item) == ["inputs", "masks", "gt_segments", "gt_labels", "metas"]
        assert item["inputs"].shape == (data.channels, longest + 3)
        assert item["masks"].sum() == rows
        assert bool(item["masks"][:rows].all())
        assert not item["inputs"][:, rows:].any()
        metas = item["metas"]
        assert metas["video_name"] == name
        found = seconds(
            item["gt_segments"], metas["fps"], metas["snippet_stride"], metas["offset_frames"]
        )
        np.testing.assert_allclose(found.numpy(), video.segments, atol=1e-4)
    batch = next(iter(torch.utils.data.DataLoader(items, 2, collate_fn=list)))
    assert torch.stack([item["inputs"] for item in batch]).shape[0] == 2
    items.close()


def test_crops_depend_on_seed_epoch_and_index_alone(data):
    clips = CropSet(data, videos(data), max_length=30, margin="opentad")
    items, same = (OpenTADItems(clips, length=30, seed=3) for _ in range(2))
    same = pickle.loads(pickle.dumps(same))  # as a worker gets it
    for epoch in (0, 1):
        items.set_epoch(epoch)
        same.set_epoch(epoch)
        for index in (2, 0):
            a, b = items[index], same[index]
            assert torch.equal(a["inputs"], b["inputs"])
            assert a["metas"] == b["metas"]
            first = a["metas"].get("window_start_frame", 0) / a["metas"]["snippet_stride"]
            stored = read_array(data.features[videos(data)[index]])[int(first) :][:30]
            assert np.array_equal(a["inputs"].T[: len(stored)].numpy(), stored.astype(np.float32))
    items.close()
    same.close()


def test_a_video_without_instances(data):
    clips = CropSet(data, videos(data), max_length=1, trials=1, min_inside=1.0)
    items = ActionFormerItems(clips)
    found = [items[i] for i in range(len(items))]
    assert any(item["segments"] is None and item["labels"] is None for item in found)
    items.close()


def test_refuses_wrong_input(data):
    with pytest.raises(ConfigError, match="expected length >= "):
        OpenTADItems(VideoSet(data, videos(data)), length=3)
    items = ActionFormerItems(VideoSet(data, videos(data)))
    with pytest.raises(IndexError):
        items[4]
    with pytest.raises(ConfigError):
        items.set_epoch(-1)
