# SPDX-License-Identifier: Apache-2.0
"""HDF5: the numbers that h5py gives, from where they lie or by packing, or an error."""

import os
import sys

import numpy as np
import pytest
from feature_files import VIDEOS, check, values

from tal_fast.data.extents import read_array
from tal_fast.data.feature_index import index_features
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.formats.hdf5 import Hdf5File
from tal_fast.data.packing import pack_features
from tal_fast.data.streams import Stream, streams_of
from tal_fast.errors import DataError, MissingExtraError

h5py = pytest.importorskip("h5py")
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 4 - 1


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_contiguous_datasets_are_read_in_place(tmp_path, userblock, libver):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=userblock, libver=libver) as file:
        for video in VIDEOS:
            file[video] = values(video)
    check(index_features(path, VIDEOS))


def test_names_in_groups_and_a_prefix(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for video in VIDEOS:
            file[f"{video}/feats"] = values(video)
            file[f"{video}/rate"] = 3.0
            file[f"v_{video}"] = values(video, 4)
    check(index_features(tmp_path / "x.h5", VIDEOS, template="%s/feats"))
    check(index_features(tmp_path / "x.h5", VIDEOS, prefix="v_"), 4)
    found = found_videos(streams_of(tmp_path / "x.h5", "%s/feats"))
    assert found == list(VIDEOS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_per_video(tmp_path, dtype):
    for video in VIDEOS:
        with h5py.File(tmp_path / f"{video}.hdf5", "w") as file:
            file["feats"] = values(video, dtype=dtype).T
    check(index_features(tmp_path, VIDEOS, suffix=".hdf5", layout="CT"), dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (2, 5)},
        {"chunks": True, "compression": "gzip"},
        {"chunks": True, "shuffle": True},
        {"maxshape": (None, 5)},
    ],
)
def test_chunked_and_compressed_ones_name_pack(tmp_path, options):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", data=values("a"), **options)
    message = r"x\.h5: dataset 'a': chunked or compressed HDF5 .*tal-fast pack"
    with pytest.raises(DataError, match=message):
        index_features(tmp_path / "x.h5", ["a"])
    with OpenStream(Stream(str(tmp_path / "x.h5"))) as opened:
        np.testing.assert_array_equal(opened.array("a"), values("a"))


@pytest.mark.parametrize("mark", [b"SNOD", b"HEAP", b"TREE"])
def test_a_damaged_group_is_an_error(tmp_path, mark):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["a"] = ROWS
    content = path.read_bytes()
    assert mark in content
    path.write_bytes(content.replace(mark, b"xxxx"))
    with pytest.raises(DataError, match=r"x\.h5"), OpenStream(Stream(str(path))) as opened:
        opened.entries()


def test_a_damaged_dataset_is_not_taken_for_a_missing_one(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["a"] = ROWS
        at = h5py.h5o.get_info(file.id, b"a").addr
    content = bytearray(path.read_bytes())
    content[at] = 99  # the version of its object header
    path.write_bytes(content)
    with OpenStream(Stream(str(path))) as opened:
        assert opened.holds("a")
        for read in (opened.extent, opened.array, opened.files):
            with pytest.raises(DataError, match=r"x\.h5: dataset 'a': cannot be read"):
                read("a")
    with pytest.raises(DataError, match="cannot be read"):
        index_features(path, ["a"])


def create(file, name, stored_type, array=None, properties=None):
    """Makes a dataset of any HDF5 type, of ROWS' shape."""
    space = h5py.h5s.create_simple(ROWS.shape)
    made = h5py.h5d.create(file.id, name.encode(), stored_type, space, properties)
    if array is not None:
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))


def other_bias():
    stored = h5py.h5t.IEEE_F32LE.copy()
    stored.set_ebias(126)
    return stored


def bfloat16():
    stored = h5py.h5t.IEEE_F32LE.copy()
    stored.set_fields(15, 7, 8, 0, 7)
    stored.set_size(2)
    return stored


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_bias, "a floating type that is not an IEEE one cannot be read in place"),
        (bfloat16, "a floating type that is not an IEEE one cannot be read in place"),
        (lambda: h5py.h5t.NATIVE_LDOUBLE, "a floating type that is not an IEEE one cannot"),
        (lambda: h5py.h5t.IEEE_F64BE, "expected little-endian numbers, got >f8"),
    ],
)
def test_types_that_hdf5_converts_are_packed(tmp_path, make, message):
    """A type of 4 bytes is not float32 for that: exponent, bias and order are its own."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        create(file, "a", make(), ROWS.astype(h5py.h5t.py_create(np.dtype("f4")).dtype)
               if make in (other_bias, bfloat16) else ROWS.astype(make().dtype))  # fmt: skip
        given = file["a"][()]
    np.testing.assert_array_equal(given, ROWS)
    with pytest.raises(DataError, match="dataset 'a': .*" + message):
        index_features(tmp_path / "x.h5", ["a"])
    packed(tmp_path, "x.h5", {"a": ROWS})


def packed(folder, name, expected):
    pack_features(streams_of(folder / name), folder / f"{name}-packed", overwrite=True)
    for video, extent in index_features(folder / f"{name}-packed", expected).items():
        np.testing.assert_array_equal(read_array(extent), expected[video])


def found_videos(streams):
    with OpenStream(*streams) as opened:
        return sorted(opened.videos())


class TestLinks:
    @pytest.fixture
    def linked(self, tmp_path):
        """A file whose datasets lie in others: at other offsets, behind a user block."""
        (tmp_path / "parts").mkdir()
        with h5py.File(tmp_path / "parts" / "deep.h5", "w", userblock_size=512) as file:
            file["x/v"] = ROWS + 100
        with h5py.File(tmp_path / "parts" / "near.h5", "w") as file:
            file["deep"] = h5py.ExternalLink("deep.h5", "/x/v")
            file["v"] = ROWS + 200
        with h5py.File(tmp_path / "all.h5", "w") as file:
            file["own"] = np.zeros((100, 4), np.float32)
            file["near"] = h5py.ExternalLink("parts/near.h5", "/v")
            file["deep"] = h5py.ExternalLink("parts/near.h5", "/deep")
            file["soft"] = h5py.SoftLink("/own")
            file["itself"] = h5py.ExternalLink("all.h5", "/own")
            file["group"] = h5py.ExternalLink("parts/deep.h5", "/x")
        own = np.zeros((100, 4), np.float32)
        return {"own": own, "soft": own, "itself": own,
                "near": ROWS + 200, "deep": ROWS + 100, "group/v": ROWS + 100}  # fmt: skip

    @pytest.mark.parametrize("working", [".", "parts"])
    def test_the_bytes_are_those_of_the_linked_file(self, tmp_path, linked, monkeypatch, working):
        monkeypatch.chdir(tmp_path / working)
        path = os.path.relpath(tmp_path / "all.h5")
        extents = index_features(path, linked)
        for video, extent in extents.items():
            np.testing.assert_array_equal(read_array(extent), linked[video])
        assert os.path.samefile(extents["deep"].path, tmp_path / "parts" / "deep.h5")
        assert extents["itself"].path == path

    def test_no_video_is_dropped_behind_a_link(self, tmp_path, linked):
        assert found_videos(streams_of(tmp_path / "all.h5")) == sorted(linked)
        packed(tmp_path, "all.h5", linked)

    def test_a_change_of_the_linked_file_is_noticed(self, tmp_path, linked):
        packed(tmp_path, "all.h5", linked)
        os.utime(tmp_path / "parts" / "deep.h5", ns=(1, 1))
        with pytest.raises(DataError, match=r"video 'deep': .* has changed since it was packed"):
            pack_features(streams_of(tmp_path / "all.h5"), tmp_path / "all.h5-packed")

    @pytest.mark.parametrize(
        ("link", "message"),
        [
            (("parts/gone.h5", "/v"), r"external link leads nowhere, .* parts/gone\.h5: /v: can't"),
            (("parts/near.h5", "/w"), "external link leads nowhere, .*object 'w' doesn't exist"),
            (("notes.txt", "/v"), "external link leads nowhere, .*file signature not found"),
            (("/nothing",), "soft link leads nowhere, expected a dataset at /nothing: component"),
            (("/bad",), "soft link leads nowhere, .*too many links"),
        ],
    )
    def test_links_that_lead_nowhere(self, tmp_path, linked, link, message):
        (tmp_path / "notes.txt").write_text("hello")
        with h5py.File(tmp_path / "all.h5", "a") as file:
            file["bad"] = h5py.ExternalLink(*link) if len(link) == 2 else h5py.SoftLink(*link)
        assert "bad" in found_videos(streams_of(tmp_path / "all.h5"))
        message = "video 'bad': .*all.h5: dataset 'bad': its " + message
        with pytest.raises(DataError, match=message):
            index_features(tmp_path / "all.h5", ["own", "bad"])
        with pytest.raises(DataError, match=message):
            pack_features(streams_of(tmp_path / "all.h5"), tmp_path / "out")

    def test_groups_that_hold_each_other(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["g/a"] = ROWS
            file["g/h"] = h5py.SoftLink("/g")
        assert found_videos(streams_of(tmp_path / "x.h5")) == ["g/a"]


class TestStorage:
    """HDF5 gives zeros for what it does not find; here that is an error."""

    def check(self, path, message, pack_message=None):
        with pytest.raises(DataError, match="dataset 'a': .*" + message):
            index_features(path, ["a"])
        with OpenStream(Stream(str(path))) as opened:
            if pack_message is None:
                np.testing.assert_array_equal(opened.array("a"), ROWS)
            else:
                with pytest.raises(DataError, match="dataset 'a': .*" + pack_message):
                    opened.array("a")

    def test_compact(self, tmp_path):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            create(file, "a", h5py.h5t.IEEE_F32LE, ROWS, properties)
        self.check(tmp_path / "x.h5", r"compact HDF5 datasets \(within .*tal-fast pack")

    @pytest.mark.parametrize(
        ("size", "message"),
        [(48, None), (20, "raw file .*: expected 48 bytes, got 20"), (None, "raw file .* No such")],
    )
    def test_raw_files(self, tmp_path, size, message):
        raw = tmp_path / "raw"
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("a", data=ROWS, external=[(raw, 0, h5py.h5f.UNLIMITED)])
        if size is None:
            raw.unlink()
        else:
            os.truncate(raw, size)
        self.check(tmp_path / "x.h5", "datasets in raw external files .*tal-fast pack", message)

    @pytest.mark.parametrize(
        ("source", "inner", "rows", "message"),
        [
            ("y.h5", "v", 3, None),
            ("gone.h5", "v", 3, r"its source gone\.h5: no such file"),
            ("y.h5", "w", 3, r"its source .*y\.h5: 'w': cannot be read"),
            ("y.h5", "v", 2, "4 of its 12 have no source"),
            (".", "b", 3, "its source .*x.h5: 'b': expected numbers, but none were ever written"),
            (".", "a", 3, "it is a source of its own"),
        ],
    )
    def test_virtual(self, tmp_path, source, inner, rows, message):
        with h5py.File(tmp_path / "y.h5", "w") as file:
            file["v"] = ROWS
        layout = h5py.VirtualLayout(ROWS.shape, np.float32)
        layout[:rows] = h5py.VirtualSource(source, inner, ROWS.shape)[:rows]
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_virtual_dataset("a", layout)
            file.create_dataset("b", ROWS.shape, np.float32)
        self.check(tmp_path / "x.h5", "virtual HDF5 datasets .*tal-fast pack", message)

    def test_unwritten(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("a", ROWS.shape, np.float32)
        self.check(tmp_path / "x.h5", "none were ever written to it", "none were ever written to")

    def test_unwritten_chunks(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("a", ROWS.shape, np.float32, chunks=(1, 4))[:2] = ROWS[:2]
        self.check(tmp_path / "x.h5", "chunked", "none were ever written to 1 of its 3 chunks")
        expected = np.where(np.arange(3)[:, None] < 2, ROWS, 7)
        with h5py.File(tmp_path / "x.h5", "w") as file:
            made = file.create_dataset("a", ROWS.shape, np.float32, chunks=(1, 4), fillvalue=7)
            made[:2] = ROWS[:2]
        packed(tmp_path, "x.h5", {"a": expected})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 4), np.int16), r"expected dtype .* got int16 \(tal-fast pack converts"),
        (np.ones((3, 4), bool), "expected dtype .* got an HDF5 enumeration"),
        (h5py.Empty("f4"), "expected numbers, got an empty dataspace"),
        (np.ones((2, 3, 4), np.float32), r"2-D array \[T, C\], got shape \[2, 3, 4\]"),
        (np.float32(3), r"got shape \[\]"),
    ],
)
def test_datasets_that_are_no_features(tmp_path, array, message):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = array
    with pytest.raises(DataError, match="dataset 'a': .*" + message):
        index_features(tmp_path / "x.h5", ["a"])


def test_missing_group_cut_and_other_files(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["aa/feats"] = values("a")
    with pytest.raises(DataError, match=r"no array 'a/feats'; did you mean 'aa/feats'"):
        index_features(path, ["a"], template="%s/feats")
    with pytest.raises(DataError, match="no array 'aa'"):
        index_features(path, ["aa"])
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5: .*truncated"):
        index_features(path, ["a"])
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5"):
        index_features(path, ["a"])


def test_names_that_are_no_utf8_are_names(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a"] = values("a")
        group = h5py.h5g.create(file.id, b"g\xfd")
        for where, name in ((file.id, b"\xff"), (group, b"b")):
            shape = h5py.h5s.create_simple(values("a").shape)
            dataset = h5py.h5d.create(where, name, h5py.h5t.IEEE_F32LE, shape)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values("a").astype(np.float32))
    names = sorted(["a", "\udcff", "g\udcfd/b"])
    assert sorted(Hdf5File(path).names()) == names
    extents = index_features(path, names)
    for name in names:
        np.testing.assert_array_equal(read_array(extents[name]), values("a").astype(np.float32))
    with pytest.raises(DataError, match="no array 'zz'"):
        index_features(path, ["zz"])


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py, .*: pip install h5py"):
        index_features(tmp_path / "x.h5", ["a"])
