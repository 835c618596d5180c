# SPDX-License-Identifier: Apache-2.0
"""fuse_windows: what takes part in the suppression, and that nothing is lost or listed twice."""

from __future__ import annotations

import pytest
import torch

from tal_fast import ops

SPANS = torch.tensor([[0.0, 10.0], [8.0, 18.0], [16.0, 26.0], [100.0, 110.0], [0.0, 10.0]])
VIDEOS = torch.tensor([7, 7, 7, 7, 3])


def detections(*rows):
    """Rows of (start, end, score, label, window)."""
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, :2], table[:, 2], table[:, 3].long(), table[:, 4].long()


CASE = detections(
    (1.0, 5.0, 0.9, 0, 0),  # 0: in one window alone
    (1.0, 5.5, 0.8, 0, 0),  # 1: nearly the same, from the same window
    (7.0, 9.0, 0.7, 0, 0),  # 2: touches the stretch that windows 0 and 1 share
    (7.2, 9.0, 0.6, 0, 1),  # 3: the same instance, seen by window 1
    (7.2, 9.0, 0.5, 1, 1),  # 4: of another class
    (7.0, 9.0, 0.4, 0, 4),  # 5: of another video
    (9.0, 17.0, 0.3, 0, 1),  # 6: touches two shared stretches
)


def test_all_detections_of_a_video_meet():
    fused = ops.fuse_windows(*CASE, SPANS, VIDEOS, iou_threshold=0.5)
    assert fused.indices.tolist() == [5, 0, 2, 4, 6]  # video 3 before video 7
    expected = ops.batched_nms(*CASE[:3], VIDEOS[CASE[3]], iou_threshold=0.5)
    assert torch.equal(fused.indices, expected.indices)


def test_only_detections_that_touch_an_overlap_meet():
    fused = ops.fuse_windows(*CASE, SPANS, VIDEOS, scope="overlaps", iou_threshold=0.5)
    # 1 stays beside 0: no other window has seen either. 6 is listed once.
    assert fused.indices.tolist() == [5, 0, 1, 2, 4, 6]


def test_overlaps_across_classes():
    fused = ops.fuse_windows(
        *CASE, SPANS, VIDEOS, scope="overlaps", per_class=False, iou_threshold=0.5
    )
    assert fused.indices.tolist() == [5, 0, 1, 2, 6]


def test_touching_means_sharing_time():
    spans, videos = torch.tensor([[0.0, 10.0], [10.0, 20.0]]), torch.tensor([0, 0])
    twins = detections((9.0, 11.0, 0.9, 0, 0), (9.0, 11.0, 0.8, 0, 1))
    # The windows touch in one point, which is no stretch.
    kept = ops.fuse_windows(*twins, spans.double(), videos, scope="overlaps", iou_threshold=0.5)
    assert kept.indices.tolist() == [0, 1]


def test_a_long_window_overlaps_more_than_its_neighbour():
    spans = torch.tensor([[0.0, 30.0], [5.0, 8.0], [20.0, 25.0]])
    twins = detections((21.0, 24.0, 0.9, 0, 0), (21.0, 24.0, 0.8, 0, 2))
    kept = ops.fuse_windows(
        *twins, spans.double(), torch.zeros(3, dtype=torch.long), scope="overlaps"
    )
    assert kept.indices.tolist() == [0]


def test_labels_of_any_size_do_not_collide():
    labels = torch.tensor([10**12, 10**12, -5, 10**12])
    rows = detections((1, 5, 0.9, 0, 0), (1, 5, 0.8, 0, 0), (1, 5, 0.7, 0, 0), (8.5, 9, 0.6, 0, 1))
    kept = ops.fuse_windows(*rows[:2], labels, rows[3], SPANS, VIDEOS, scope="overlaps")
    assert sorted(kept.indices.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("scope", ["all", "overlaps"])
def test_nothing_in_nothing_out(scope):
    empty = torch.zeros(0, dtype=torch.long)
    fused = ops.fuse_windows(
        torch.zeros(0, 2), torch.zeros(0), empty, empty, SPANS, VIDEOS, scope=scope
    )
    assert len(fused.indices) == 0


def test_errors():
    with pytest.raises(RuntimeError, match=r"window_videos of shape \[W\], got \[5, 2\] and \[4\]"):
        ops.fuse_windows(*CASE, SPANS, VIDEOS[:4])
    with pytest.raises(RuntimeError, match=r"expected windows of shape \[7\], one per segment"):
        ops.fuse_windows(*CASE[:3], CASE[3][:5], SPANS, VIDEOS)
    with pytest.raises(RuntimeError, match=r"expected windows in \[0, 4\), got 0 to 4"):
        ops.fuse_windows(*CASE, SPANS[:4], VIDEOS[:4])
