# SPDX-License-Identifier: Apache-2.0
"""The packed store: same numbers, whatever the input, and however often the packing is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from feature_files import KINDS, write
from processes import started

from tal_fast.data.dataset import open_dataset
from tal_fast.data.extents import read_array
from tal_fast.data.feature_index import index_features
from tal_fast.data.packing import Rounding, pack_features, store, verify_store
from tal_fast.data.packing.rounding import narrowed
from tal_fast.data.streams import streams_of
from tal_fast.errors import ConfigError, DataError

CHANNELS = 6


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        f"v{i:02d}": rng.normal(0, 3, (int(rng.integers(1, 40)), CHANNELS)).astype(np.float32)
        for i in range(12)
    }


@pytest.fixture
def folder(tmp_path, arrays):
    (tmp_path / "in").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "in" / f"{name}.npy", array)
    return tmp_path / "in"


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(Path(path).iterdir())}


def stored(path, names, dtype):
    extents = index_features(path, names)
    assert {extent.dtype for extent in extents.values()} == {dtype}
    return {name: read_array(extent) for name, extent in extents.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_same_numbers_in_the_store(tmp_path, folder, arrays, dtype):
    calls = []
    report = pack_features(
        streams_of(folder), tmp_path / "out", dtype=dtype, shard_bytes=1000,
        progress=lambda *args: calls.append(args),
    )  # fmt: skip
    assert calls == [(i + 1, 12, name) for i, name in enumerate(arrays)]
    assert (report.videos, report.resumed, report.channels) == (12, 0, CHANNELS)
    assert report.rows == sum(map(len, arrays.values()))
    assert report.shards == len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    kind = getattr(torch, dtype)
    found = stored(tmp_path / "out", arrays, dtype)
    expected = {name: torch.from_numpy(a).to(kind) for name, a in arrays.items()}
    for name, tensor in expected.items():
        assert torch.equal(torch.from_numpy(found[name]).to(kind), tensor)
    # The report says what NumPy says.
    whole = np.concatenate(list(arrays.values())).astype(np.float64)
    error = np.abs(torch.cat(list(expected.values())).double().numpy() - whole)
    assert report.rounding.largest == error.max()
    np.testing.assert_allclose(
        report.rounding.relative, np.sqrt((error**2).sum() / (whole**2).sum()), rtol=1e-12
    )
    if dtype == "float32":
        assert "nothing was rounded" in report.lines()
    else:
        r = report.rounding
        assert arrays[r.video][r.row, r.channel] == np.float32(r.value)
        assert f"rounding to {dtype}" in "\n".join(report.lines())
    # Others open it too.
    shard = safetensors.torch.load_file(tmp_path / "out" / "features-00001.safetensors")
    assert torch.equal(shard["v00"], expected["v00"])
    assert verify_store(tmp_path / "out") == 12
    modes = {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(("kind", "suffix"), [("npy", ".npy"), *(k[:2] for k in KINDS)])
@pytest.mark.parametrize("layout", ["TC", "CT"])
def test_every_format(tmp_path, arrays, kind, suffix, layout):
    (tmp_path / "in").mkdir()
    for name, array in arrays.items():
        path = tmp_path / "in" / f"v_{name}{suffix}"
        write(path, kind, array if layout == "TC" else array.T.copy())
    streams = streams_of(tmp_path / "in", f"v_%s{suffix}")
    pack_features(streams, tmp_path / "out", layout=layout, allow_pickle=True)
    for name, found in stored(tmp_path / "out", arrays, "float32").items():
        np.testing.assert_array_equal(found, arrays[name])


def test_hdf5_of_every_storage(tmp_path, arrays):
    h5py = pytest.importorskip("h5py")
    options = [{}, {"chunks": True}, {"chunks": True, "compression": "gzip", "shuffle": True}]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i, (name, array) in enumerate(arrays.items()):
            array = array.astype(">f4") if i % 4 == 3 else array
            file.create_dataset(f"g/{name}", data=array, **options[i % 3])
    pack_features(streams_of(tmp_path / "x.h5", "g/%s"), tmp_path / "out")
    for name, found in stored(tmp_path / "out", arrays, "float32").items():
        np.testing.assert_array_equal(found, arrays[name])


def test_float64_and_big_endian_and_bfloat16_inputs(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", values.astype(">f8"))
    report = pack_features(streams_of(tmp_path, "%s.npy"), tmp_path / "out")
    found = stored(tmp_path / "out", ["a", "b"], "float32")
    for name in "ab":
        np.testing.assert_array_equal(found[name], values.astype(np.float32))
    assert report.rounding.largest == np.abs(values - values.astype(np.float32)).max()
    tensor = torch.from_numpy(values).bfloat16()
    safetensors.torch.save_file({"c": tensor}, tmp_path / "c.safetensors")
    report = pack_features(
        streams_of(tmp_path / "c.safetensors"), tmp_path / "again", dtype="bfloat16"
    )
    assert report.rounding.largest == 0
    assert torch.equal(torch.tensor(stored(tmp_path / "again", "c", "bfloat16")["c"]).bfloat16(),
                       tensor)  # fmt: skip


def test_a_packed_store_in_a_data_directory(tmp_path, tiny):
    path = tiny.write()
    report = pack_features(streams_of(path / "features"), path / "packed")
    tiny.spec["features"] = "packed"
    tiny.write()
    data = open_dataset(path)
    assert data.channels == 4 == report.channels
    for name, values in tiny.features.items():
        np.testing.assert_array_equal(read_array(data.features[name]), values)
    tiny.database["e"] = tiny.database["a"]
    tiny.write()
    with pytest.raises(DataError, match=r"video 'e': .*packed: no array 'e'"):
        open_dataset(path)


class TestStreams:
    @pytest.fixture
    def two(self, tmp_path, arrays):
        for folder, columns, cut in (("rgb", slice(0, 2), 0), ("flow", slice(2, None), 1)):
            (tmp_path / folder).mkdir()
            for name, array in arrays.items():
                rows = len(array) - (cut if len(array) > 1 and name > "v05" else 0)
                np.save(tmp_path / folder / f"{name}.npy", array[:rows, columns])
        return streams_of([tmp_path / "rgb", tmp_path / "flow"])

    def test_side_by_side(self, tmp_path, two, arrays):
        names = [name for name in arrays if name <= "v05"]
        pack_features(two, tmp_path / "out", videos=names)
        for name, found in stored(tmp_path / "out", names, "float32").items():
            np.testing.assert_array_equal(found, arrays[name])

    def test_unequal_rows(self, tmp_path, two, arrays):
        with pytest.raises(DataError, match=r"video 'v06': expected streams of equal rows, got \["):
            pack_features(two, tmp_path / "out")
        report = pack_features(two, tmp_path / "cut", rows="shortest")
        expected = {n: a[: len(a) - 1 if len(a) > 1 and n > "v05" else None]
                    for n, a in arrays.items()}  # fmt: skip
        assert report.cut_rows == sum(len(arrays[n]) - len(expected[n]) for n in arrays) > 0
        assert f"{report.cut_rows} rows left out" in "\n".join(report.lines())
        for name, found in stored(tmp_path / "cut", arrays, "float32").items():
            np.testing.assert_array_equal(found, expected[name])

    def test_missing_in_one(self, tmp_path, two):
        os.unlink(tmp_path / "flow" / "v03.npy")
        with pytest.raises(DataError, match="flow: 1 of 12 videos are missing: v03"):
            pack_features(two, tmp_path / "out")


class TestRounding:
    def test_against_numpy(self):
        x = np.array([[1.0, 1.0005, -2.00049], [1e-9, 65519.0, 0.0]], np.float32)
        tensor, r = narrowed("v", x, "float16")
        y = x.astype(np.float16)
        np.testing.assert_array_equal(tensor.numpy(), y)
        error = np.abs(x.astype(np.float64) - y)
        assert (r.largest, r.row, r.channel, r.value) == (15.0, 1, 1, 65519.0)
        assert r.square_error == pytest.approx((error**2).sum(), rel=1e-12)
        assert r.to_zero == 1
        assert r.elements == 6

    def test_rows_count_over_chunks(self, monkeypatch):
        monkeypatch.setattr("tal_fast.data.packing.rounding._CHUNK", 8)
        x = np.ones((9, 4), np.float32)
        x[7, 2] = 1.0003
        _, r = narrowed("v", x, "float16")
        assert (r.row, r.channel, r.elements) == (7, 2, 36)
        x[8, 1] = np.nan
        with pytest.raises(DataError, match=r"video 'v': row 8, channel 1: expected finite .* nan"):
            narrowed("v", x, "float16")

    def test_sum_keeps_the_worst(self):
        total = Rounding(largest=1.0, video="a", square=1.0) + Rounding(
            largest=2.0, video="b", square=2.0, square_error=3.0
        )
        assert (total.largest, total.video, total.relative) == (2.0, "b", 1.0)
        assert Rounding().relative == 0

    @pytest.mark.parametrize(
        ("value", "dtype", "message"),
        [
            (65520.0, "float16", r"65520 does not fit into float16 \(largest 65504\); bfloat16"),
            (-1e30, "float16", "-1.00000002e.30 does not fit into float16"),
            (3.4e38, "bfloat16", r"3.39\d+e.38 does not fit into bfloat16 \(largest 3.38"),
            (1e39, "float32", "1e.39 does not fit into float32"),
            (np.inf, "float16", "expected finite features, got inf"),
            (-np.inf, "float32", "expected finite features, got -inf"),
            (np.nan, "bfloat16", "expected finite features, got nan"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, value, dtype, message):
        x = np.ones((6, 3), np.float64 if abs(value) > 3.5e38 else np.float32)
        x[4, 2] = value
        np.save(tmp_path / "clip.npy", x)
        with pytest.raises(DataError, match="video 'clip': row 4, channel 2: " + message):
            pack_features(streams_of(tmp_path), tmp_path / "out", dtype=dtype)
        assert not (tmp_path / "out" / store.INDEX).exists()

    def test_the_largest_that_fits(self, tmp_path):
        x = np.full((1, 1), 65519.996, np.float32)
        np.save(tmp_path / "clip.npy", x)
        pack_features(streams_of(tmp_path), tmp_path / "out", dtype="float16")
        assert stored(tmp_path / "out", ["clip"], "float16")["clip"] == 65504


class Killed(BaseException):
    """Ends a packing like a signal: nothing in it may catch it."""


class TestResume:
    @pytest.fixture
    def whole(self, tmp_path, folder):
        pack_features(streams_of(folder), tmp_path / "whole", dtype="float16", shard_bytes=500)
        return contents(tmp_path / "whole")

    def pack(self, folder, out, **options):
        options = {"dtype": "float16", "shard_bytes": 500, **options}
        return pack_features(streams_of(folder), out, **options)

    @pytest.mark.parametrize("function", ["os.replace", "os.fsync", "Path.unlink", "save_file"])
    def test_killed_at_every_step(self, tmp_path, folder, whole, monkeypatch, function):
        """Each call of a function that changes the disk is the last one once."""
        owner, name = {
            "os.replace": (os, "replace"),
            "os.fsync": (os, "fsync"),
            "Path.unlink": (Path, "unlink"),
            "save_file": (safetensors.torch, "save_file"),
        }[function]
        real = getattr(owner, name)
        kills, packed = 0, set()
        for step in range(200):
            left = step

            def dying(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return real(*args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, dying)
                try:
                    self.pack(folder, tmp_path / f"out{step}")
                    break
                except Killed:
                    kills += 1
            if (tmp_path / f"out{step}" / store.INDEX).exists():  # killed after its last step
                assert verify_store(tmp_path / f"out{step}") == 12
            else:
                with pytest.raises(DataError, match=r"was interrupted; run the|without|no such"):
                    index_features(tmp_path / f"out{step}", ["v00"])
            packed.add(self.pack(folder, tmp_path / f"out{step}").resumed)
            assert contents(tmp_path / f"out{step}") == whole
        assert kills >= 4
        assert len(packed) > 2, "it went on from different shards"

    def test_killed_by_a_signal(self, tmp_path, folder, whole):
        """A real process, killed for good, when it has written some shards."""
        code = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from tal_fast.data.packing import pack_features\n"
            "from tal_fast.data.streams import streams_of\n"
            "out, shards = Path(sys.argv[2]), int(sys.argv[3])\n"
            "def wait(*progress):\n"
            "    if len(list(out.glob('features-*.safetensors'))) >= shards:\n"
            "        print('there', flush=True)\n"
            "        time.sleep(3600)\n"
            "pack_features(streams_of(sys.argv[1]), out, dtype='float16', shard_bytes=500,"
            " progress=wait)\n"
        )
        for shards in (0, 1, 3):
            command = [sys.executable, "-c", code, folder, tmp_path / "out", str(shards)]
            with started(command, stdout=subprocess.PIPE) as process:
                assert process.stdout.readline() == b"there\n"
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / store.INDEX).exists()
        assert self.pack(folder, tmp_path / "out").resumed >= 3
        assert contents(tmp_path / "out") == whole

    def test_leftovers_of_a_kill_go(self, tmp_path, folder, whole):
        (tmp_path / "out").mkdir()
        for name in (".features-00001.safetensors.tmp", ".pack.json.77.tmp"):
            (tmp_path / "out" / name).write_text("half")
        self.pack(folder, tmp_path / "out")
        assert contents(tmp_path / "out") == whole

    def test_complete_ones_are_left_as_they_are(self, tmp_path, folder, whole):
        report = self.pack(folder, tmp_path / "whole")
        assert report.resumed == report.videos == 12
        assert "12 of them by an earlier run" in report.lines()[0]
        assert contents(tmp_path / "whole") == whole

    def test_other_settings(self, tmp_path, folder, whole):
        with pytest.raises(
            ConfigError, match="begun with dtype 'float16', now 'float32'; --overwrite"
        ):
            self.pack(folder, tmp_path / "whole", dtype="float32")
        self.pack(folder, tmp_path / "whole", dtype="float32", overwrite=True)
        stored(tmp_path / "whole", ["v00"], "float32")
        assert verify_store(tmp_path / "whole") == 12

    def test_changed_sources(self, tmp_path, folder, whole):
        os.utime(folder / "v03.npy", ns=(1, 1))
        with pytest.raises(DataError, match=r"video 'v03': .*v03\.npy has changed since it was"):
            self.pack(folder, tmp_path / "whole")
        np.save(folder / "v99.npy", np.ones((1, CHANNELS), np.float32))
        with pytest.raises(ConfigError, match="begun with videos 12, now 13"):
            self.pack(folder, tmp_path / "whole")
        os.rename(folder / "v01.npy", folder / "v01b.npy")
        os.unlink(folder / "v99.npy")
        with pytest.raises(DataError, match="its shards hold other videos"):
            self.pack(folder, tmp_path / "whole")

    def test_broken_and_missing_shards(self, tmp_path, folder, whole):
        path = tmp_path / "whole" / "features-00002.safetensors"
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(DataError, match=r"features-00002\.safetensors: expected a whole"):
            self.pack(folder, tmp_path / "whole")
        path.unlink()
        with pytest.raises(DataError, match=r"expected features-00002\S+ before features-00003"):
            self.pack(folder, tmp_path / "whole")
        safetensors.torch.save_file({"x": torch.ones(1)}, path)
        with pytest.raises(DataError, match="expected a shard of tal-fast pack, got one without"):
            self.pack(folder, tmp_path / "whole")

    def test_two_at_once(self, tmp_path, folder):
        (tmp_path / "out").mkdir()
        with (
            store.locked(tmp_path / "out"),
            pytest.raises(DataError, match="another tal-fast pack is writing here"),
        ):
            self.pack(folder, tmp_path / "out")


class TestChecksums:
    def test_what_the_disk_changed_is_noticed(self, tmp_path, folder, monkeypatch):
        real = safetensors.torch.save_file

        def faulty(tensors, path, metadata):
            real(tensors, path, metadata)
            data = bytearray(Path(path).read_bytes())
            data[-1] ^= 1
            Path(path).write_bytes(data)

        monkeypatch.setattr(safetensors.torch, "save_file", faulty)
        with pytest.raises(DataError, match=r"video 'v11': its bytes .* are not those that were"):
            pack_features(streams_of(folder), tmp_path / "out")
        assert [file.name for file in (tmp_path / "out").iterdir()] == [store.SETTINGS]

    def test_later_changes_are_found(self, tmp_path, folder):
        pack_features(streams_of(folder), tmp_path / "out", shard_bytes=1500)
        calls = []
        verify_store(tmp_path / "out", lambda *args: calls.append(args))
        assert [args[:2] for args in calls] == [(i + 1, 12) for i in range(12)]
        path = tmp_path / "out" / "features-00002.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        with pytest.raises(DataError, match=r"features-00002\S+: video .*expected SHA-256 \w"):
            verify_store(tmp_path / "out")
        path.write_bytes((tmp_path / "out" / "features-00001.safetensors").read_bytes())
        with pytest.raises(DataError, match="holds other videos than"):
            verify_store(tmp_path / "out")
        with pytest.raises(DataError, match="expected a packed store, got a folder without"):
            verify_store(folder)

    def test_full_disk(self, tmp_path, folder, monkeypatch):
        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store.os, "replace", full)
        with pytest.raises(DataError, match="cannot be written: No space left on device"):
            pack_features(streams_of(folder), tmp_path / "out")

    def test_the_library_cannot_write(self, tmp_path, folder, monkeypatch):
        def broken(*args):
            raise safetensors.SafetensorError("I/O error: No space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", broken)
        with pytest.raises(DataError, match=r"features-00001.*cannot be written: I/O error"):
            pack_features(streams_of(folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "flaot16"}, ConfigError, "pack: expected dtype .* did you mean 'float16'"),
        ({"dtype": "float64"}, ConfigError, "float32, float16, bfloat16, got 'float64'"),
        ({"layout": "NTC"}, ConfigError, "pack: expected layout among TC, CT, got 'NTC'"),
        ({"rows": "longest"}, ConfigError, "pack: expected rows among equal, shortest"),
        ({"shard_bytes": 0}, ConfigError, "pack: expected shard_bytes >= 1, got 0"),
        ({"videos": ["nobody"]}, DataError, "1 of 1 video is missing: nobody"),
        ({"videos": []}, DataError, "no video of the form '%s.npy' to pack"),
    ],
)
def test_bad_arguments(tmp_path, folder, options, error, message):
    with pytest.raises(error, match=message):
        pack_features(streams_of(folder), tmp_path / "out", **options)


def test_other_channels_and_faulty_files_and_folders(tmp_path, folder):
    np.save(folder / "v04.npy", np.ones((3, 2), np.float32))
    with pytest.raises(DataError, match=r"video 'v04': expected 6 channels as in .* got 2"):
        pack_features(streams_of(folder), tmp_path / "out")
    (folder / "v04.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"video 'v04': .*v04\.npy: expected a .npy file"):
        pack_features(streams_of(folder), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="mine: expected a new or empty folder, or a packed"):
            pack_features(streams_of(folder), tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "out" / store.SETTINGS).write_text("{")
    with pytest.raises(DataError, match=r"pack\.json: not valid JSON"):
        pack_features(streams_of(folder), tmp_path / "out")
    (tmp_path / "out" / store.SETTINGS).write_text('{"dtype": "float32", "dtype": "float16"}')
    with pytest.raises(DataError, match=r"pack\.json: key 'dtype' is there more than once"):
        pack_features(streams_of(folder), tmp_path / "out")


def test_memory_does_not_grow_with_the_data(tmp_path):
    """40 and 160 MB of features in shards of 8 MB: the same peak, far below either difference."""
    code = (
        "import sys\n"
        "from tal_fast.data.packing import pack_features\n"
        "from tal_fast.data.streams import streams_of\n"
        "from tal_fast.training.environment import peak_memory_mib\n"
        "r = pack_features(streams_of(sys.argv[1]), sys.argv[2], dtype='float16',"
        " shard_bytes=8 << 20)\n"
        "print(r.num_bytes, int(peak_memory_mib() * 2**20))\n"
    )
    peaks = {}
    rng = np.random.default_rng(0)
    array = rng.normal(size=(1024, 1024)).astype(np.float32)  # 4 MB
    for count in (10, 40):
        source = tmp_path / f"in{count}"
        source.mkdir()
        for i in range(count):
            np.save(source / f"{i:03d}.npy", array)
        text = subprocess.run(
            [sys.executable, "-c", code, source, tmp_path / f"out{count}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        num_bytes, peaks[count] = map(int, text.split())
        assert num_bytes == count * 2 << 20
    assert peaks[40] - peaks[10] < 24 << 20, peaks


def test_the_index_is_an_ordinary_one(tmp_path, folder, arrays):
    pack_features(streams_of(folder), tmp_path / "out", shard_bytes=1500)
    content = json.loads((tmp_path / "out" / store.INDEX).read_text())
    assert sorted(content["weight_map"]) == sorted(arrays)
    assert content["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    for name, file in content["weight_map"].items():
        with safetensors.safe_open(tmp_path / "out" / file, "numpy") as shard:
            np.testing.assert_array_equal(shard.get_tensor(name), arrays[name])
