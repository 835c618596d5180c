# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes a feature file holds: an extent inside the file, or an error that names it."""

import json
import struct
import warnings

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tal_fast.data.extents import ITEM_SIZES, read_array
from tal_fast.data.feature_index import index_features
from tal_fast.errors import DataError

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)
quick = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def seeds(tmp_path):
    """Sound files, by ending."""
    np.save(tmp_path / "a.npy", VALUES)
    safetensors.numpy.save_file({"a": VALUES}, tmp_path / "a.safetensors")
    return {ending: (tmp_path / f"a{ending}").read_bytes() for ending in (".npy", ".safetensors")}


def look(path, content):
    """Returns whether the file was taken; anything but a DataError is a bug."""
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns about odd headers that it reads all the same
        try:
            extents = index_features(path.parent, ["a"], template=f"%s{path.suffix}")
        except DataError as fault:
            error = fault
        else:
            error = None
    if error is not None:
        assert path.name in str(error)
        return False
    extent = extents["a"]
    assert extent.offset >= 0
    assert extent.rows > 0 < extent.columns
    assert extent.num_bytes == extent.rows * extent.columns * ITEM_SIZES[extent.dtype]
    assert extent.offset + extent.num_bytes <= len(content)
    assert read_array(extent).shape == (extent.rows, extent.columns)
    return True


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@given(data=st.data())
@quick
def test_changed_cut_and_longer_files(tmp_path, seeds, ending, data):
    content = bytearray(seeds[ending])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content), 140) - 1))] = data.draw(
            st.integers(0, 255)
        )
    end = data.draw(st.integers(0, len(content) + 8))
    look(tmp_path / f"a{ending}", bytes(content[:end]) + bytes(max(0, end - len(content))))


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@given(content=st.binary(max_size=300))
@quick
def test_any_bytes(tmp_path, ending, content):
    assert not look(tmp_path / f"a{ending}", content)


NUMBERS = st.integers(-(2**70), 2**70) | st.integers(-3, 40)


@given(
    descr=st.sampled_from(["<f2", "<f4", "<f8", ">f4", "<i4", "|O", "<f16", "|S4", "x"]),
    fortran=st.sampled_from([True, False, 1, None]),
    shape=st.lists(NUMBERS, max_size=3),
    tail=st.integers(0, 200),
)
@quick
def test_npy_headers(tmp_path, descr, fortran, shape, tail):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": tuple(shape)}).encode()
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
    look(tmp_path / "a.npy", head + bytes(tail))


@given(
    dtype=st.sampled_from(["F16", "BF16", "F32", "F64", "I32", "BOOL", "F8_E4M3", "x"]),
    shape=st.lists(NUMBERS, max_size=3),
    offsets=st.lists(NUMBERS, min_size=1, max_size=3),
    length=st.none() | NUMBERS,
    tail=st.integers(0, 200),
)
@quick
def test_safetensors_headers(tmp_path, dtype, shape, offsets, length, tail):
    text = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    stated = len(text) if length is None else length % 2**64
    look(tmp_path / "a.safetensors", struct.pack("<Q", stated) + text + bytes(tail))


@given(content=st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["weight_map", "a", "metadata"]), inner, max_size=3),
    max_leaves=6,
))  # fmt: skip
@example(content={"weight_map": {"a": "\0"}})
@quick
def test_indices_of_shards(tmp_path, content):
    folder = tmp_path / "store"
    folder.mkdir(exist_ok=True)
    (folder / "x.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="store"):
        index_features(folder, ["a"])


def test_sound_files_are_taken(tmp_path, seeds):
    for ending, content in seeds.items():
        assert look(tmp_path / f"a{ending}", content)
