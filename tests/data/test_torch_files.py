# SPDX-License-Identifier: Apache-2.0
"""Files of torch that lack numbers: torch gives what the memory held, the library refuses them."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch

from tal_fast.data.formats.arrays import array_file
from tal_fast.errors import DataError

VALUES = torch.arange(24.0).reshape(6, 4)
SOUND = {
    "tensor": VALUES,
    "part": VALUES.expand(2, 6, 4)[1],
    "turned": VALUES.T,
    "parameter": torch.nn.Parameter(VALUES),
    "half": VALUES.bfloat16(),
    "empty": torch.zeros(0, 4),
    "named": {"a": VALUES, "b": VALUES},
    "array": VALUES.numpy(),
}


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "pickles"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_files_are_read(tmp_path, name, archive):
    path = tmp_path / "a.pt"
    torch.save(SOUND[name], path, _use_new_zipfile_serialization=archive)
    found = array_file(str(path), "torch", allow_pickle=True)
    if name == "named":
        assert np.array_equal(found["b"], VALUES)
    else:
        assert np.array_equal(found, torch.as_tensor(SOUND[name]).detach().float())


def test_a_record_that_is_elsewhere(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(VALUES[0, 0].char(), path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"a/data/0") - 46  # of the directory
    content[entry + 42 : entry + 46] = bytes(4)  # the offset: where the pickle is
    path.write_bytes(content)
    torch.load(path)  # takes it
    with pytest.raises(DataError, match=r"a\.pt: .*record 'a/data/0' is not where"):
        array_file(str(path), "torch", allow_pickle=True)


def test_an_archive_whose_end_is_bent(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(VALUES, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x06\x07") + 4] = 255  # the number of the disk
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pt: .*its archive is broken"):
        array_file(str(path), "torch", allow_pickle=True)


def test_a_storage_that_is_not_listed(tmp_path):
    file = io.BytesIO()
    torch.save(VALUES, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    (key,) = [op for op in _lists(content) if op]
    path = tmp_path / "a.pt"
    listed = pickle.dumps(key, protocol=2)
    at = content.rindex(listed)
    path.write_bytes(content[:at] + pickle.dumps([], protocol=2))
    with pytest.raises(DataError, match=r"a\.pt: .*the numbers of storage \d+ are not in it"):
        array_file(str(path), "torch", allow_pickle=True)


def _lists(content):
    """The list of storages: the fifth pickle."""
    file = io.BytesIO(content)
    from tal_fast.data.formats.torch_files import _Skeleton

    return [_Skeleton(file).load() for _ in range(5)][-1:]
