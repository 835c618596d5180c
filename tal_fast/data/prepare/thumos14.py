# SPDX-License-Identifier: Apache-2.0
"""THUMOS14 from its annotations and I3D features, as ActionFormer, OpenTAD and TadTR have them.

ActionFormer: ``thumos14.json`` (Validation, Test) and a folder of ``<video>.npy`` [T, 2048].
OpenTAD: ``thumos_14_anno.json`` (training, validation) and the same features. TadTR:
``th14_annotations_with_fps_duration.json`` (val, test; with Ambiguous) and torch files without an
ending, which are packed. What THUMOS calls validation is trained on, by everybody.
"""

from __future__ import annotations

from tal_fast.data.annotation_file import read_annotation_file
from tal_fast.data.prepare.choices import FeatureChoice, Repairs, VideoReport
from tal_fast.data.prepare.video_features import prepare_videos
from tal_fast.typing import FilePath, VideoProgress

__all__ = ["prepare_thumos14"]

CITATION = (
    "Y.-G. Jiang, J. Liu, A. Roshan Zamir, G. Toderici, I. Laptev, M. Shah, R. Sukthankar. "
    "THUMOS Challenge: Action Recognition with a Large Number of Classes. 2014."
)


def prepare_thumos14(
    annotations: FilePath,
    features: FeatureChoice,
    out: FilePath,
    *,
    repairs: Repairs | None = None,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> VideoReport:
    """Makes a data directory of THUMOS14.

    Known faults of the public annotations: 30 segments end after their video, 22 of them in
    ``video_test_0000270``; say what to do about them in ``repairs``. "Ambiguous" is left out.

    Args:
        annotations: the annotation file of one of the three codebases.
        features: which features; ActionFormer's I3D has stride 4 and 16 frames.
        out: directory to make; it appears when it is complete.
        repairs: what may be done about faults; default: nothing.
        overwrite: replace an existing ``out``.
        progress: called while packing with (videos done, videos in all, video).

    Raises:
        DataError: as :func:`tal_fast.data.prepare.video_features.prepare_videos`.
        ConfigError: as there.
    """
    ambiguous = {
        video.subset.lower() for video in read_annotation_file(annotations, bare="timed").videos
    }
    # "validation" is the training data, unless there is another subset of that name.
    if ambiguous & {"training", "train"}:
        splits = {"train": ["training", "train"], "test": ["validation", "val", "test", "testing"]}
    else:
        splits = {"train": ["validation", "val"], "test": ["test", "testing"]}
    return prepare_videos(
        "thumos14",
        annotations,
        features,
        out,
        splits=splits,
        ignore_labels=("Ambiguous",),
        repairs=repairs,
        citation=CITATION,
        overwrite=overwrite,
        progress=progress,
    )
