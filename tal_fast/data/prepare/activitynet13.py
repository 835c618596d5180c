# SPDX-License-Identifier: Apache-2.0
"""ActivityNet-1.3 from its annotations and features, in the forms that are in use.

Annotations: the official ``activity_net.v1-3.min.json`` or ActionFormer's and OpenTAD's versions of
it, or BMN's and mmaction2's ``anet_anno_action.json`` with ``video_info_new.csv`` for the subsets.
Features: ``v_<id>.npy`` (I3D, TSP), one HDF5 file, or CSV of 100 rows (mmaction2), which is packed.
"""

from __future__ import annotations

from tal_fast.data.prepare.choices import FeatureChoice, Repairs, VideoReport
from tal_fast.data.prepare.video_features import prepare_videos
from tal_fast.typing import FilePath, VideoProgress

__all__ = ["prepare_activitynet13"]

CITATION = (
    "F. Caba Heilbron, V. Escorcia, B. Ghanem, J. C. Niebles. ActivityNet: A Large-Scale Video "
    "Benchmark for Human Activity Understanding. CVPR 2015."
)


def prepare_activitynet13(
    annotations: FilePath,
    features: FeatureChoice,
    out: FilePath,
    *,
    subsets: FilePath | None = None,
    repairs: Repairs | None = None,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> VideoReport:
    """Makes a data directory of ActivityNet-1.3: training and validation; testing has no labels.

    Known faults of the public annotations: 12 segments of length zero and 215 that end after their
    video; say what to do about them in ``repairs``.

    Args:
        annotations: the annotation file.
        features: which features; ActionFormer's I3D has stride 16 and 16 frames at 25 fps, TSP the
            same at 15 fps.
        out: directory to make; it appears when it is complete.
        subsets: BMN's ``video_info_new.csv``, for the form that names no subsets.
        repairs: what may be done about faults; default: nothing.
        overwrite: replace an existing ``out``.
        progress: called while packing with (videos done, videos in all, video).

    Raises:
        DataError: as :func:`tal_fast.data.prepare.video_features.prepare_videos`.
        ConfigError: as there.
    """
    return prepare_videos(
        "activitynet13",
        annotations,
        features,
        out,
        splits={"train": ["training", "train"], "test": ["validation", "val"]},
        subsets=subsets,
        repairs=repairs,
        citation=CITATION,
        overwrite=overwrite,
        progress=progress,
    )
