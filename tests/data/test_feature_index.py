# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest

from tal_fast.data.feature_index import index_features, read_extent
from tal_fast.errors import ConfigError, DataError


def mapped(extent):
    """What the bytes of an extent are, as [T, C]."""
    shape = (extent.rows, extent.columns)
    stored = shape if extent.layout == "TC" else shape[::-1]
    array = np.memmap(extent.path, extent.dtype, "r", extent.offset, stored)
    return np.array(array if extent.layout == "TC" else array.T)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["TC", "CT"])
@pytest.mark.parametrize("fortran", [False, True])
def test_extent_leads_to_the_numbers(tmp_path, dtype, layout, fortran):
    values = np.arange(35, dtype=dtype).reshape(7, 5)  # [T, C]
    stored = values if layout == "TC" else values.T
    np.save(tmp_path / "x.npy", np.asfortranarray(stored) if fortran else stored.copy("C"))
    extent = read_extent(tmp_path / "x.npy", layout=layout)
    assert (extent.rows, extent.columns, extent.dtype) == (7, 5, dtype)
    assert extent.layout == (layout if not fortran else {"TC": "CT", "CT": "TC"}[layout])
    np.testing.assert_array_equal(mapped(extent), values)


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_headers_of_later_versions(tmp_path, version):
    values = np.ones((3, 4), np.float32)
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, values, version=version)
    np.testing.assert_array_equal(mapped(read_extent(tmp_path / "x.npy")), values)


def save(path, array):
    np.save(path, array)
    return path


def cut(path, size):
    os.truncate(path, size)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "no such feature file"),
        (lambda p: (p.write_bytes(b"") and p) or p, "expected a .npy file, got an empty file"),
        (lambda p: p.write_bytes(b"hello") and p, "bad header"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x09\x09" + b" " * 90) and p, "bad header.*9.9"),
        (lambda p: cut(save(p, np.ones((3, 4))), 40), "bad header"),
        (lambda p: cut(save(p, np.ones((3, 4))), 128 + 95), "truncated.*224 bytes.*got 223"),
        (lambda p: save(p, np.array([[1, None]], object)), "float32 or float64, got object"),
        (lambda p: save(p, np.ones((3, 4), np.int64)), "float16, float32 or float64, got int64"),
        (lambda p: save(p, np.ones((3, 4), np.complex64)), "got complex64"),
        (lambda p: save(p, np.ones((3, 4), ">f4")), "little-endian numbers, got >f4"),
        (lambda p: save(p, np.ones(12)), r"2-D array \[T, C\], got shape \[12\]"),
        (lambda p: save(p, np.ones((2, 3, 4))), r"2-D array \[T, C\], got shape \[2, 3, 4\]"),
        (lambda p: save(p, np.ones((0, 4))), r"at least one row and channel, got shape \[0, 4\]"),
        (lambda p: save(p, np.ones((3, 0))), r"at least one row and channel, got shape \[3, 0\]"),
    ],
)  # fmt: skip
def test_faulty_file(tmp_path, make, message):
    path = make(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x\.npy: .*" + message):
        read_extent(path)


def test_longer_than_its_header_says(tmp_path):
    path = save(tmp_path / "x.npy", np.ones((3, 4)))
    with open(path, "ab") as file:
        file.write(b"12")
    with pytest.raises(DataError, match=r"longer than its header: 224 bytes .* got 226"):
        read_extent(path)


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(DataError, match=r"x\.npy: cannot be read: expected a file"):
        read_extent(tmp_path / "x.npy")


def test_index_uses_prefix_suffix_and_order(tmp_path):
    for name, rows in (("b", 3), ("a", 5)):
        np.save(tmp_path / f"v_{name}-i3d.npy", np.ones((rows, 2), np.float32))
    got = index_features(tmp_path, ["b", "a"], prefix="v_", suffix="-i3d.npy", channels=2)
    assert [(name, e.rows) for name, e in got.items()] == [("b", 3), ("a", 5)]


def test_missing_files_are_counted(tiny):
    tiny.write()
    with pytest.raises(DataError, match=r"video 'aa': .*aa\.npy: no such .*; did you mean 'a.npy'"):
        index_features(tiny.path / "features", ["a", "aa"])
    message = "2 videos without a feature file <video>.npy, first video 'x': .*for example, 'a.npy'"
    with pytest.raises(DataError, match=message):
        index_features(tiny.path / "features", ["a", "x", "y"])


def test_wrong_channel_count_in_one_file(tiny):
    tiny.features["b"] = np.ones((20, 5), np.float32)
    tiny.write()
    with pytest.raises(DataError, match=r"video 'b': .*b\.npy: expected 4 channels, got 5$"):
        index_features(tiny.path / "features", tiny.ROWS)
    with pytest.raises(DataError, match="expected 5 channels, got 4"):
        index_features(tiny.path / "features", tiny.ROWS, channels=5)


def test_swapped_axes_are_recognised(tiny):
    tiny.features["b"] = np.ones((4, 20), np.float32)
    tiny.write()
    with pytest.raises(DataError, match=r"expected 4 channels, got 20 \(the axes look swapped"):
        index_features(tiny.path / "features", tiny.ROWS)


def test_faults_of_several_files_are_told_together(tiny):
    tiny.write()
    cut(tiny.file("a"), 200)
    tiny.file("b").write_bytes(b"")
    with pytest.raises(DataError, match=r"video 'a': .*truncated.*; video 'b': .*empty file"):
        index_features(tiny.path / "features", tiny.ROWS)


def test_bad_arguments(tmp_path):
    with pytest.raises(ConfigError, match="expected layout 'TC' or 'CT', got 'NTC'"):
        index_features(tmp_path, ["a"], layout="NTC")
    with pytest.raises(DataError, match="gone: no such feature folder"):
        index_features(tmp_path / "gone", ["a"])
