# SPDX-License-Identifier: Apache-2.0
"""Makers of data directories: from data sets as they are distributed, and from one's own files."""

from tal_fast.data.prepare.activitynet13 import prepare_activitynet13
from tal_fast.data.prepare.choices import FeatureChoice, Repairs, VideoReport
from tal_fast.data.prepare.hapt import prepare_hapt
from tal_fast.data.prepare.own_data import prepare_csv, prepare_json
from tal_fast.data.prepare.report import RecordingReport
from tal_fast.data.prepare.sp_sw_har import prepare_sp_sw_har
from tal_fast.data.prepare.thumos14 import prepare_thumos14
from tal_fast.data.prepare.video_features import prepare_videos

__all__ = [
    "FeatureChoice",
    "RecordingReport",
    "Repairs",
    "VideoReport",
    "prepare_activitynet13",
    "prepare_csv",
    "prepare_hapt",
    "prepare_json",
    "prepare_sp_sw_har",
    "prepare_thumos14",
    "prepare_videos",
]
