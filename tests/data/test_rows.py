# SPDX-License-Identifier: Apache-2.0
"""What is an array of features: axes of length 1, crops, integers; in place and by packing."""

import re

import numpy as np
import pytest
import safetensors.numpy
import torch

from tal_fast.cli import main
from tal_fast.data.extents import read_array
from tal_fast.data.feature_index import index_features
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.packing import pack_features
from tal_fast.data.streams import Stream, streams_of
from tal_fast.errors import ConfigError, DataError

T, C = 5, 3
VALUES = np.arange(T * C, dtype=np.float32).reshape(T, C)


def save(folder, kind, array):
    if kind == "npy":
        np.save(folder / "a.npy", array)
    elif kind == "fortran":
        np.save(folder / "a.npy", np.asfortranarray(array))
    elif kind == "npz":
        np.savez(folder / "a.npz", array)
    elif kind == "torch":
        torch.save(torch.from_numpy(np.array(array)), folder / "a.pt")
    elif kind == "safetensors":
        safetensors.numpy.save_file({"a": np.array(array)}, folder / "a.safetensors")
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "a.h5", "w") as file:
            file["a"] = array
    (name,) = (file.name for file in folder.iterdir())
    return folder / name if kind in ("hdf5", "safetensors") else folder


@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "torch", "safetensors", "hdf5"])
@pytest.mark.parametrize(
    ("shape", "layout", "rows"),
    [
        ((1, T, C), "TC", VALUES),
        ((T, 1, 1, C), "TC", VALUES),
        ((T, C, 1, 1), "TC", VALUES),
        ((T, C, 1), "TC", VALUES),
        ((1, C, T), "CT", VALUES.reshape(C, T).T),
        ((1, 1, T * C), "TC", VALUES.reshape(1, -1)),
        ((T * C, 1, 1), "CT", VALUES.reshape(1, -1)),
        ((1, T * C), "TC", VALUES.reshape(1, -1)),
        ((T * C, 1), "TC", VALUES.reshape(-1, 1)),
    ],
)
def test_axes_of_length_one(tmp_path, kind, shape, layout, rows):
    source = save(tmp_path, kind, VALUES.reshape(shape))
    streams = streams_of(source)
    with OpenStream(streams[0]) as opened:
        np.testing.assert_array_equal(opened.array("a", layout), rows)
        if kind not in ("npz", "torch"):
            np.testing.assert_array_equal(read_array(opened.extent("a", layout)), rows)


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((T * C, 1, 1), "TC", r"2-D array \[T, C\], got shape \[15, 1, 1\]$"),
        ((1, 1, T * C), "CT", r"2-D array \[C, T\], got shape \[1, 1, 15\]$"),
        ((1, T * C, 1), "TC", r"2-D array \[T, C\], got shape \[1, 15, 1\]$"),
        ((T * C,), "TC", r"2-D array \[T, C\], got shape \[15\]$"),
        ((1, 0, 3), "TC", "at least one row and channel"),
    ],
)
def test_what_may_be_read_in_two_ways_is_an_error(tmp_path, shape, layout, message):
    array = VALUES.reshape(shape) if 0 not in shape else np.zeros(shape, np.float32)
    np.save(tmp_path / "a.npy", array)
    with OpenStream(Stream(str(tmp_path))) as opened:
        for read in (opened.extent, opened.array):
            with pytest.raises(DataError, match=message):
                read("a", layout)


@pytest.mark.parametrize("kind", ["npy", "npz", "torch", "safetensors", "hdf5"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_integers_are_packed(tmp_path, kind, dtype):
    (tmp_path / "in").mkdir()
    source = save(tmp_path / "in", kind, VALUES.astype(dtype))
    if kind in ("npy", "safetensors", "hdf5"):
        name = re.escape(dtype) if kind != "safetensors" else r"[IU]\d+"
        with pytest.raises(DataError, match=rf"got {name} \(tal-fast pack converts it\)"):
            index_features(source, ["a"])
    report = pack_features(streams_of(source), tmp_path / "out")
    found = read_array(index_features(tmp_path / "out", ["a"])["a"])
    np.testing.assert_array_equal(found, VALUES)
    assert report.rounding.largest == 0


def test_rounding_of_integers_is_reported_and_never_hidden(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[2**24 + 1, 3]], np.int32))
    report = pack_features(streams_of(tmp_path), tmp_path / "out")
    assert (report.rounding.largest, report.rounding.value) == (1, 2**24 + 1)
    for array in (np.array([[3, 2**53 + 1]]), np.array([[3, np.longdouble(1) / 3]], np.longdouble)):
        if array.dtype == np.float64:
            continue  # a machine without longer numbers
        np.save(tmp_path / "a.npy", array)
        with (
            OpenStream(Stream(str(tmp_path), "%s.npy")) as opened,
            pytest.raises(DataError, match=r"element \[0, 1\]: .* is no float64 number"),
        ):
            opened.array("a")


class TestCrops:
    @pytest.fixture
    def crops(self, tmp_path):
        """Ten crops per row, of 7 and 4 rows."""
        (tmp_path / "in").mkdir()
        rng = np.random.default_rng(0)
        arrays = {
            n: rng.normal(size=(r, 10, 4)).astype(np.float32) for n, r in (("a", 7), ("b", 4))
        }
        for name, array in arrays.items():
            np.save(tmp_path / "in" / f"{name}.npy", array)
        return arrays

    def test_they_are_not_read_unasked(self, tmp_path, crops):
        message = r"expected a 2-D array \[T, C\], got shape \[7, 10, 4\]; tal-fast pack --reduce"
        with pytest.raises(DataError, match=message):
            index_features(tmp_path / "in", crops)
        with pytest.raises(DataError, match=message):
            pack_features(streams_of(tmp_path / "in"), tmp_path / "out")

    @pytest.mark.parametrize("reduce", ["mean", "0", "9"])
    def test_the_command(self, tmp_path, crops, capsys, reduce):
        command = ["pack", "--features", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        assert main([*command, "--reduce", reduce]) == 0
        assert "one row from 10 crops of it each" in capsys.readouterr().out
        for name, extent in index_features(tmp_path / "out", crops).items():
            array = crops[name]
            expected = (
                array.astype(np.float64).mean(1) if reduce == "mean" else array[:, int(reduce)]
            )
            np.testing.assert_array_equal(read_array(extent), expected.astype(np.float32))
        # An interrupted packing goes on in the same way alone.
        assert main([*command, "--reduce", "1"]) != 0
        assert f"begun with reduce {int(reduce) if reduce != 'mean' else reduce!r}" in (
            capsys.readouterr().err
        )

    def test_channels_first(self, tmp_path, crops):
        for name, array in crops.items():
            np.save(tmp_path / "in" / f"{name}.npy", array.transpose(2, 1, 0))
        pack_features(streams_of(tmp_path / "in"), tmp_path / "out", layout="CT", reduce=3)
        for name, extent in index_features(tmp_path / "out", crops).items():
            np.testing.assert_array_equal(read_array(extent), crops[name][:, 3])

    def test_other_axes_and_numbers(self, tmp_path, crops):
        for name, array in crops.items():
            np.save(tmp_path / "in" / f"{name}.npy", array.transpose(1, 0, 2))  # [10, T, C]
        with pytest.raises(DataError, match=r"b\.npy: expected 7 crops in the middle axis .* 4, 4"):
            pack_features(streams_of(tmp_path / "in"), tmp_path / "out", reduce="mean")
        np.save(tmp_path / "in" / "a.npy", VALUES)
        with pytest.raises(
            DataError, match=r"a\.npy: expected crops \[T, N, C\] to reduce, got sh"
        ):
            pack_features(streams_of(tmp_path / "in"), tmp_path / "again", reduce="mean")
        np.save(tmp_path / "in" / "a.npy", crops["a"])
        with pytest.raises(DataError, match=r"a\.npy: expected a crop from 0 to 9, got 10"):
            pack_features(streams_of(tmp_path / "in"), tmp_path / "third", reduce=10)

    @pytest.mark.parametrize("reduce", ["max", -1, True, 1.0])
    def test_unknown_words(self, tmp_path, crops, reduce):
        with pytest.raises(ConfigError, match="pack: expected reduce 'mean' or the number of a"):
            pack_features(streams_of(tmp_path / "in"), tmp_path / "out", reduce=reduce)
