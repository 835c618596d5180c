# SPDX-License-Identifier: Apache-2.0
"""Feature files of all formats, and what they hold."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch

from tal_fast.data.extents import read_array

# (format, ending of the file, what the error for reading it in place calls it)
KINDS = [
    ("npz", ".npz", "npz files"),
    ("torch", ".pt", "torch files"),
    ("torch", "", "torch files"),  # TadTR's THUMOS14 features
    ("old torch", "", "torch files"),
    ("pickle", ".pkl", "pickles"),
    ("pickle", "", "pickles"),
    ("csv", ".csv", "CSV files"),  # mmaction2's ActivityNet features
]


def write(path: Path, kind: str, array: np.ndarray) -> None:
    if kind == "npz":
        np.savez_compressed(path, feats=array)
    elif kind == "torch":
        torch.save(torch.from_numpy(array), path)
    elif kind == "old torch":
        torch.save(torch.from_numpy(array), path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(array))
    elif kind == "csv":
        names = ",".join(f"f{i}" for i in range(array.shape[1]))
        np.savetxt(path, array, delimiter=",", header=names, comments="", fmt="%.9g")
    else:
        np.save(path, array)
    assert os.path.exists(path)


VIDEOS = {"a": 7, "b": 3}


def values(video, channels=5, dtype=np.float32):
    rows = VIDEOS[video]
    start = 100 * (1 + list(VIDEOS).index(video))
    return (start + np.arange(rows * channels)).reshape(rows, channels).astype(dtype)


def check(extents, channels=5, dtype=np.float32):
    assert list(extents) == list(VIDEOS)
    for video, extent in extents.items():
        assert (extent.rows, extent.width) == (VIDEOS[video], channels)
        np.testing.assert_array_equal(read_array(extent), values(video, channels, dtype))
