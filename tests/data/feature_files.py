# SPDX-License-Identifier: Apache-2.0
"""Feature files of the formats that are packed before they are read."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch

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
