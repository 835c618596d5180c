# SPDX-License-Identifier: Apache-2.0
"""Small files that unpack to much are refused, with the limit in the message."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import torch

from tal_fast.data import unpacked
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.json_files import read_json
from tal_fast.data.streams import Stream
from tal_fast.errors import DataError, TrainingError
from tal_fast.training.checkpoint import read_torch_file

LIMIT = 1 << 20
ZEROS = np.zeros((LIMIT, 2), "f4")


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(unpacked, "FREE_BYTES", LIMIT)


def repacked(path):
    """The members of a zip archive, compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("ending", [".npz", ".pt"])
def test_features(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    if ending == ".npz":
        np.savez_compressed(path, a=ZEROS)
    else:
        torch.save(torch.from_numpy(ZEROS), path)
        repacked(path)
    message = (
        rf"a{ending}: [\d,]+ bytes that unpack to more than [\d,]+; expected at most 100 times"
    )
    stream = Stream(str(tmp_path), f"%s{ending}")
    with OpenStream(stream) as opened, pytest.raises(DataError, match=message):
        opened.array("a")


def test_checkpoints(tmp_path):
    path = tmp_path / "c.pt"
    torch.save({"a": torch.from_numpy(ZEROS)}, path)
    assert len(read_torch_file(path)["a"]) == LIMIT
    repacked(path)
    with pytest.raises(TrainingError, match=r"c\.pt: [\d,]+ bytes that unpack to more than"):
        read_torch_file(path)


def test_json(tmp_path):
    text = json.dumps({"database": {}})
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress((text + " " * 100_000).encode()))
    assert read_json(path, "annotations")[1] == {"database": {}}
    path.write_bytes(gzip.compress((text + " " * (LIMIT + 1)).encode()))
    with pytest.raises(DataError, match=r"a\.json\.gz: [\d,]+ bytes that unpack to more than"):
        read_json(path, "annotations")
