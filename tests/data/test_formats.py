# SPDX-License-Identifier: Apache-2.0
"""Formats that are read in place, formats that are packed first, and the layouts of peers."""

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from feature_files import KINDS, VIDEOS, check, values, write

from tal_fast.data.extents import read_array
from tal_fast.data.feature_index import index_features
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.formats import kind_of_content
from tal_fast.data.streams import Stream, streams_of
from tal_fast.data.unpickling import unpickle_arrays
from tal_fast.errors import ConfigError, DataError


class TestSafetensors:
    def test_one_file(self, tmp_path):
        safetensors.numpy.save_file({v: values(v) for v in VIDEOS}, tmp_path / "x.safetensors")
        check(index_features(tmp_path / "x.safetensors", VIDEOS))

    def test_shards_with_and_without_index(self, tmp_path):
        for video in VIDEOS:
            safetensors.numpy.save_file({video: values(video)}, tmp_path / f"{video}1.safetensors")
        check(index_features(tmp_path, VIDEOS, template="%s"))
        index = {"weight_map": {v: f"{v}1.safetensors" for v in VIDEOS}}
        (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
        check(index_features(tmp_path, VIDEOS))

    def test_a_file_per_video(self, tmp_path):
        for video in VIDEOS:
            safetensors.numpy.save_file(
                {"rgb": values(video), "fps": np.ones(1)}, tmp_path / f"{video}.safetensors"
            )
        check(index_features(tmp_path, VIDEOS, template="%s.safetensors", key="rgb"))
        with pytest.raises(DataError, match=r"a\.safetensors: expected one array, got 2"):
            index_features(tmp_path, VIDEOS, template="%s.safetensors")
        with pytest.raises(DataError, match="no array 'flow' among 2"):
            index_features(tmp_path, VIDEOS, template="%s.safetensors", key="flow")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("layout", ["TC", "CT"])
    def test_dtypes_and_layouts(self, tmp_path, dtype, layout):
        tensors = {v: torch.from_numpy(values(v)).to(dtype) for v in VIDEOS}
        stored = {v: (t if layout == "TC" else t.T).contiguous() for v, t in tensors.items()}
        safetensors.torch.save_file(stored, tmp_path / "x.safetensors")
        extents = index_features(tmp_path / "x.safetensors", VIDEOS, layout=layout)
        for video, extent in extents.items():
            assert f"torch.{extent.dtype}" == str(dtype)
            assert torch.equal(torch.tensor(read_array(extent)).to(dtype), tensors[video])

    def test_cut_longer_and_other_files(self, tmp_path):
        path = tmp_path / "x.safetensors"
        safetensors.numpy.save_file({v: values(v) for v in VIDEOS}, path)
        whole = path.read_bytes()
        for content, message in [
            (whole[:-1], "expected a whole safetensors file"),
            (whole + b"x", "expected a whole safetensors file"),
            (whole[:20], "expected a whole safetensors file"),
            (b"hello, this is text", "expected a whole safetensors file"),
            (b"", "got an empty file"),
        ]:
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"x\.safetensors: .*" + message):
                index_features(path, VIDEOS)

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (np.ones(4, np.float32), r"tensor 'a': expected a 2-D array \[T, C\], got shape \[4\]"),
            (np.ones((3, 4), np.int32), "tensor 'a': expected dtype float16, .* got I32"),
            (np.ones((0, 4), np.float32), r"at least one row and channel, got shape \[0, 4\]"),
        ],
    )
    def test_tensors_that_are_no_features(self, tmp_path, tensor, message):
        safetensors.numpy.save_file({"a": tensor}, tmp_path / "x.safetensors")
        with pytest.raises(DataError, match=message):
            index_features(tmp_path / "x.safetensors", ["a"])

    def test_missing_tensor_and_twice_the_same(self, tmp_path):
        for name in ("x", "y"):
            safetensors.numpy.save_file({"a": values("a")}, tmp_path / f"{name}.safetensors")
        with pytest.raises(DataError, match=r"video 'b': .*x\.safetensors: no array 'b'"):
            index_features(tmp_path / "x.safetensors", VIDEOS)
        with pytest.raises(DataError, match=r"tensor 'a' is also in x\.safetensors"):
            index_features(tmp_path, ["a"], template="%s")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not valid JSON"),
            ("[]", "expected an object 'weight_map'"),
            ("[" * 100_000, "not valid JSON"),
            ('{"weight_map": {"a": "x", "b": "y", "a": "z"}}', "key 'a' is there more than once"),
            ('{"weight_map": {"a": "../x.safetensors"}}', "expected an object 'weight_map'"),
            ('{"weight_map": {"a": "gone.safetensors"}}', r"gone\.safetensors: no such feature"),
        ],
    )
    def test_bad_index(self, tmp_path, text, message):
        (tmp_path / "x.safetensors.index.json").write_text(text)
        with pytest.raises(DataError, match=message):
            index_features(tmp_path, ["a"])

    def test_a_name_twice_in_a_header(self, tmp_path):
        safetensors.numpy.save_file({"a": values("a"), "b": values("b")}, tmp_path / "x")
        content = (tmp_path / "x").read_bytes()
        length = int.from_bytes(content[:8], "little")
        text = content[8 : 8 + length].strip()
        once = text[text.index(b'"b"') : -1]
        text = text[:-1] + b"," + once.replace(b'"b"', b'"a"') + b"}"
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        with pytest.raises(DataError, match=r"x\.safetensors: (.* than once|expected a whole)"):
            index_features(path, ["a", "b"])

    def test_two_indices(self, tmp_path):
        for name in ("x", "y"):
            (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
        with pytest.raises(DataError, match=r"expected one index of shards, got x.*, y"):
            index_features(tmp_path, ["a"])


@pytest.mark.parametrize(("kind", "suffix", "words"), KINDS)
def test_formats_that_are_packed_first(tmp_path, kind, suffix, words):
    for video in VIDEOS:
        write(tmp_path / f"v_{video}{suffix}", kind, values(video))
    template = f"v_%s{suffix}"
    message = f"video 'a': .*v_a{suffix}: .?{words} cannot be read in place; .*tal-fast pack"
    with pytest.raises(DataError, match=message):
        index_features(tmp_path, VIDEOS, template=template)
    with OpenStream(Stream(str(tmp_path), template), allow_pickle=True) as opened:
        assert opened.videos() == list(VIDEOS)
        for video in VIDEOS:
            np.testing.assert_array_equal(opened.array(video), values(video))


def test_numpy_files_without_an_ending(tmp_path):
    for video in VIDEOS:
        with open(tmp_path / video, "wb") as file:
            np.save(file, values(video))
    check(index_features(tmp_path, VIDEOS, template="%s"))


def test_pickles_only_when_allowed_and_only_arrays(tmp_path):
    write(tmp_path / "a.pkl", "pickle", values("a"))
    with (
        OpenStream(Stream(str(tmp_path))) as opened,
        pytest.raises(ConfigError, match=r"a\.pkl: pickles are only read with --allow-pickle"),
    ):
        opened.array("a")

    class Harmful:
        def __reduce__(self):
            return os.system, ("touch harm",)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Harmful()))
    with (
        OpenStream(Stream(str(tmp_path)), allow_pickle=True) as opened,
        pytest.raises(DataError, match=r"a\.pkl: cannot be unpickled: .*only arrays are read"),
    ):
        opened.array("a")
    torch.save(Harmful(), tmp_path / "a.pt")
    with (
        OpenStream(Stream(str(tmp_path), "%s.pt")) as opened,
        pytest.raises(
            DataError,
            match=r"a\.pt: cannot be loaded by torch as tensors and arrays alone: it holds",
        ),
    ):
        opened.array("a")
    assert not os.path.exists("harm")


def test_one_file_with_an_array_per_video(tmp_path):
    arrays = {f"v_{v}": values(v) for v in VIDEOS}
    np.savez(tmp_path / "x.npz", **arrays)
    torch.save({k: torch.from_numpy(x) for k, x in arrays.items()}, tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(arrays))
    for name in ("x.npz", "x.pt", "x.pkl"):
        stream = Stream(str(tmp_path / name), "v_%s")
        with OpenStream(stream, allow_pickle=True) as opened:
            assert opened.videos() == list(VIDEOS)
            for video in VIDEOS:
                np.testing.assert_array_equal(opened.array(video), values(video))
            with pytest.raises(KeyError):
                opened.array("c")


@pytest.mark.parametrize(
    "kept",
    [
        b"r\xff\xff\xff\x7f",
        b"p2147483647\n",
        b"p+2147483647\n",
        b"p \t2147483647 \n",
        b"p2_147_483_647\n",
        b"p" + b"0" * 30 + b"2147483647\n",
    ],
)
def test_a_pickle_that_numbers_its_values_in_billions_is_refused(kept):
    with pytest.raises(DataError, match=r"it: .* keeps a value as number 2147483647 and has only"):
        unpickle_arrays("it", b"\x80\x02K\x01" + kept + b".")
    # What only looks like it, within the numbers of an array, is read.
    array = np.frombuffer(kept.ljust(48, b"r"), np.float32)
    for protocol in range(6):
        found = unpickle_arrays("it", pickle.dumps({"a": array}, protocol))["a"]
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("place", "value", "words"), [(6, 148, "zip file version"), (8, 1, "encrypted")]
)
def test_archives_of_later_versions_and_with_passwords(tmp_path, place, value, words):
    np.savez(tmp_path / "a.npz", values("a"))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\x01\x02") + place] |= value
    (tmp_path / "a.npz").write_bytes(data)
    with (
        OpenStream(Stream(str(tmp_path), "%s.npz")) as opened,
        pytest.raises(DataError, match=rf"a\.npz: .*{words}"),
    ):
        opened.array("a")


def test_bfloat16_of_torch_becomes_the_same_float32(tmp_path):
    tensor = torch.randn(3, 4).bfloat16()
    torch.save({"x": tensor}, tmp_path / "a.pt")
    with OpenStream(Stream(str(tmp_path), "%s.pt")) as opened:
        np.testing.assert_array_equal(opened.array("a"), tensor.float().numpy())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"PK no", "cannot be read|not a whole npz file"),
        ("a.npz", b"", "not a whole npz file"),
        ("a.pt", b"PK no", "cannot be loaded by torch"),
        ("a.pt", b"", "a.pt: cannot be loaded"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "a.pt: cannot be loaded"),
        ("a.pt", b"<!DOCTYPE html>\n", "a.pt: cannot be loaded"),
        ("a.pkl", b"\x80\x04", "cannot be unpickled"),
        ("a.npy", b"\x93NUMPY", "got one with a bad header"),
        ("a", b"", "expected a feature file, got an empty file"),
        ("a", b"hello", "neither its name nor its first bytes tell a format"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    template = "%s" + os.path.splitext(name)[1]
    with (
        OpenStream(Stream(str(tmp_path), template), allow_pickle=True) as opened,
        pytest.raises(DataError, match=message),
    ):
        opened.array("a")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 4), bool), "expected dtype .* or integers, got bool"),
        (np.ones(3, np.float32), r"2-D array \[T, C\], got shape \[3\]"),
        (np.ones((0, 3), np.float32), r"at least one row and channel, got shape \[0, 3\]"),
    ],
)
def test_arrays_that_are_no_features(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", array)
    with (
        OpenStream(Stream(str(tmp_path))) as opened,
        pytest.raises(DataError, match=r"a\.npz: .*" + message),
    ):
        opened.array("a")


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_of_numpy_arrays(tmp_path, old):
    options = {"_use_new_zipfile_serialization": not old}
    torch.save(values("a"), tmp_path / "a.pt", **options)
    torch.save({"feats": values("b").astype(">f8"), "fps": np.float32(25)}, tmp_path / "b.pt",
               **options)  # fmt: skip
    for video, key in (("a", None), ("b", "feats")):
        with OpenStream(Stream(str(tmp_path), "%s.pt", key)) as opened:
            np.testing.assert_array_equal(opened.array(video), values(video))


def test_names_of_numpy_1_are_known(tmp_path):
    content = pickle.dumps(values("a"), protocol=2)
    assert b"numpy._core" in content
    (tmp_path / "a.pkl").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    torch.save(values("a"), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "b.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    for name in ("a.pkl", "b.pt"):
        path = tmp_path / name
        with OpenStream(Stream(str(tmp_path), f"%s{path.suffix}"), allow_pickle=True) as opened:
            np.testing.assert_array_equal(opened.array(path.stem), values("a"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pkl"])
def test_arrays_of_objects_are_never_unpickled(tmp_path, suffix):
    array = np.array([[1.0, None]], object)
    if suffix in (".npy", ".npz"):
        {".npy": np.save, ".npz": np.savez}[suffix](tmp_path / "a", array, allow_pickle=True)
    elif suffix == ".pt":
        torch.save(array, tmp_path / "a.pt")
    else:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(array))
    message = rf"a\{suffix}: .*(Python objects \(dtype object\)|numpy.dtypes.ObjectDType)"
    with (
        OpenStream(Stream(str(tmp_path), f"%s{suffix}"), allow_pickle=True) as opened,
        pytest.raises(DataError, match=message) as caught,
    ):
        opened.array("a")
    assert "allow_pickle" not in str(caught.value)


def test_ids_that_are_numbers(tmp_path):
    torch.save({1: torch.ones(3, 4)}, tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({1: np.ones((3, 4))}))
    for name in ("x.pt", "x.pkl"):
        with OpenStream(Stream(str(tmp_path / name)), allow_pickle=True) as opened:
            assert opened.videos() == ["1"]
            assert opened.array("1").shape == (3, 4)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({1: np.ones((3, 4)), "1": np.ones((3, 4))}))
    with (
        OpenStream(Stream(str(tmp_path / "x.pkl")), allow_pickle=True) as opened,
        pytest.raises(DataError, match="two arrays of one name"),
    ):
        opened.videos()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 4).to(torch.float8_e4m3fn),
        torch.ones(3, 4, device="meta"),
        torch.ones(3, 4).to_sparse(),
        torch.ones(3, 4, dtype=torch.complex64),
    ],
    ids=["float8", "meta", "sparse", "complex"],
)
def test_tensors_that_numpy_lacks(tmp_path, tensor):
    torch.save(tensor, tmp_path / "a.pt")
    with (
        OpenStream(Stream(str(tmp_path), "%s.pt")) as opened,
        pytest.raises(DataError, match=r"a\.pt: "),
    ):
        opened.array("a")


def test_a_broken_member_of_an_archive(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=values("a"))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60:70] = bytes(10)
    (tmp_path / "a.npz").write_bytes(content)
    with (
        OpenStream(Stream(str(tmp_path))) as opened,
        pytest.raises(DataError, match=r"a\.npz: 'x': cannot be read"),
    ):
        opened.array("a")


@pytest.mark.parametrize("dtype", [">f4", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_that_is_packed_is_checked_like_one_read_in_place(tmp_path, dtype, order):
    np.save(tmp_path / "a.npy", np.asarray(values("a"), dtype, order=order))
    with OpenStream(Stream(str(tmp_path))) as opened:
        np.testing.assert_array_equal(opened.array("a"), values("a"))
        with open(tmp_path / "a.npy", "ab") as file:
            file.write(b"more")
        with pytest.raises(DataError, match=r"a\.npy: expected \d+ bytes for shape \[7, 5\]"):
            opened.array("a")


def test_big_endian_arrays_are_read_for_packing(tmp_path):
    np.save(tmp_path / "a.npy", values("a").astype(">f4"))
    with OpenStream(Stream(str(tmp_path))) as opened:
        array = opened.array("a")
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, values("a"))


class TestStreams:
    def test_two_folders_side_by_side(self, tmp_path):
        for name, channels in (("rgb", 2), ("flow", 3)):
            (tmp_path / name).mkdir()
            for video in VIDEOS:
                np.save(tmp_path / name / f"{video}.npy", values(video, channels))
        extents = index_features([tmp_path / "rgb", tmp_path / "flow"], VIDEOS, channels=5)
        for video, extent in extents.items():
            expected = np.concatenate([values(video, 2), values(video, 3)], axis=1)
            assert [part.columns for part in extent.parts] == [2, 3]
            assert extent.width == 5
            np.testing.assert_array_equal(read_array(extent), expected)

    def test_two_templates_in_one_folder_and_mixed_formats(self, tmp_path):
        for video in VIDEOS:
            np.save(tmp_path / f"{video}-rgb.npy", values(video, 2))
            np.save(tmp_path / f"{video}-flow.npy", values(video, 3, np.float16).T.copy().T)
        extents = index_features([tmp_path] * 2, VIDEOS, template=["%s-rgb.npy", "%s-flow.npy"])
        assert [part.dtype for part in extents["a"].parts] == ["float32", "float16"]
        assert read_array(extents["a"]).shape == (7, 5)

    def test_streams_of_unequal_rows(self, tmp_path):
        for name, rows in (("rgb", 7), ("flow", 6)):
            (tmp_path / name).mkdir()
            np.save(tmp_path / name / "a.npy", np.ones((rows, 2), np.float32))
        message = r"video 'a': .*flow/a\.npy: expected 7 rows as in .*rgb/a\.npy, got 6 .*shortest"
        with pytest.raises(DataError, match=message):
            index_features([tmp_path / "rgb", tmp_path / "flow"], ["a"])

    def test_bad_descriptions(self, tmp_path):
        with pytest.raises(ConfigError, match="at least one folder or file"):
            streams_of([])
        with pytest.raises(ConfigError, match=r"one %s for the video's name, got 'x\.npy'"):
            streams_of("x", "x.npy")
        with pytest.raises(ConfigError, match="one key or 2, one per folder, got 3"):
            streams_of(["x", "y"], None, ["a", "b", "c"])
        with pytest.raises(ConfigError, match="a template, or prefix and suffix, got both"):
            index_features(tmp_path, ["a"], template="%s.npy", prefix="v_")

    def test_the_template_of_a_folder(self, tmp_path):
        with pytest.raises(DataError, match="no file of a known ending"):
            OpenStream(Stream(str(tmp_path)))
        np.save(tmp_path / "a.npy", values("a"))
        (tmp_path / "notes.txt").write_text("hello")
        assert OpenStream(Stream(str(tmp_path))).template == "%s.npy"
        np.savez(tmp_path / "a.npz", values("a"))
        with pytest.raises(DataError, match=r"files of 2 endings \(a\.npy, a\.npz\)"):
            OpenStream(Stream(str(tmp_path)))
        with pytest.raises(DataError, match=r"a\.npy: expected a folder, or a file with an array"):
            OpenStream(Stream(str(tmp_path / "a.npy")))
        with pytest.raises(DataError, match="gone: no such feature folder"):
            OpenStream(Stream(str(tmp_path / "gone")))


def test_kinds_by_content(tmp_path):
    write(tmp_path / "x.npz", "npz", values("a"))
    write(tmp_path / "x.pt", "torch", values("a"))
    safetensors.numpy.save_file({"a": values("a")}, tmp_path / "x.safetensors")
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for name, kind in (
        ("x.npz", "npz"), ("x.pt", "torch"), ("x.safetensors", "safetensors"), ("x.h5", "hdf5"),
    ):  # fmt: skip
        assert kind_of_content(str(tmp_path / name)) == kind
    with pytest.raises(DataError, match="no such feature file"):
        kind_of_content(str(tmp_path / "gone"))
