# SPDX-License-Identifier: Apache-2.0
"""Which part of the training data a trial sees: videos, stratified videos, or windows."""

from tal_fast.study.sampling.draws import SAMPLINGS, Sample, Split, draw_sample, split_videos
from tal_fast.study.sampling.shares import parse_fractions, parse_shares

__all__ = [
    "SAMPLINGS",
    "Sample",
    "Split",
    "draw_sample",
    "parse_fractions",
    "parse_shares",
    "split_videos",
]
