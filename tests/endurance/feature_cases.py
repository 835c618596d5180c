# SPDX-License-Identifier: Apache-2.0
"""Feature files of every format: sound ones of odd arrays, and bent ones.

Whatever the library takes is compared with what the formats' own readers make of the same file.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from endurance.mutators import bent_bytes, bent_content, bent_table, bent_text, json_text
from endurance.subject import Subject, check_command, expect, refusal

from tal_fast.data.extents import read_array
from tal_fast.data.feature_index import index_features
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.reading import FeatureReader, Request
from tal_fast.data.streams import Stream
from tal_fast.data.unpickling import torch_globals, unpickle_arrays
from tal_fast.errors import DataError

_DTYPES = (
    *["<f4"] * 16,
    "<f2",
    "<f8",
    ">f4",
    ">f8",
    "|i1",
    "<i2",
    "<i4",
    "<i8",
    "|u1",
    "<u8",
    "<f16",
    "<c8",
    "|b1",
    "|S4",
    "<U3",
    "<M8[s]",
)
_SHAPES = (
    *[(6, 4)] * 12,
    (1, 4),
    (6, 1),
    (40, 3),
    (1, 6, 4),
    (6, 4, 1),
    (6, 1, 4),
    (6, 2, 4),
    (2, 3, 4, 1),
    (24,),
    (),
    (0, 4),
    (6, 0),
    (0,),
    (1, 1),
    (1, 1, 1),
)
_ODD = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 6e-8, 65504.0, 65520.0, 3.4e38, 1e-310, 1e300)


def odd_array(rng: random.Random) -> np.ndarray[Any, Any]:
    """An array of any type and shape, some of whose numbers are odd."""
    dtype, shape = np.dtype(rng.choice(_DTYPES)), rng.choice(_SHAPES)
    size = int(np.prod(shape))
    if dtype.kind in "SUM":
        return np.full(shape, "1", dtype) if dtype.kind != "M" else np.zeros(shape, dtype)
    values = np.array([rng.choice((*_ODD, rng.gauss(0, 1), rng.gauss(0, 1))) for _ in range(size)])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dtype.kind in "iu":
            values = np.nan_to_num(values, posinf=1e30, neginf=-1e30)
        array = values.astype(dtype).reshape(shape)
    return np.asarray(array, order=rng.choice("CF"))


def _rows(values: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """[T, C] of an array that has two axes besides those of length 1."""
    shape = [size for size in values.shape if size != 1]
    if values.ndim != 2:
        if len(shape) == 2:
            values = values.reshape(shape)
        else:  # a single row
            channels = values.shape[-1] if layout == "TC" else values.shape[0]
            expect(shape in ([channels], []), "took shape", values.shape, "in layout", layout)
            values = values.reshape((1, channels) if layout == "TC" else (channels, 1))
    return values if layout == "TC" else values.T


@contextlib.contextmanager
def _absence(key: str | None) -> Iterator[None]:
    """Takes the KeyError of a name that is not there for a refusal, as it is documented."""
    try:
        yield
    except KeyError as error:
        if key is None or error.args != (key,):
            raise
        raise DataError("no such array") from error


class FeatureFiles(Subject):
    """Files of one format, of a video each."""

    ending = ""
    #: Of a format whose files hold arrays by name: the name of the video's.
    key: str | None = None
    header: int | None = None

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        """Reads a file as the format's own library does."""
        raise NotImplementedError

    def sound(self, rng: random.Random) -> bytes:
        """The bytes of a sound file."""
        raise NotImplementedError

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        return bent_bytes(rng, content, self.header)

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / f"a{self.ending}"
        content = self.sound(rng)
        path.write_bytes(content if rng.random() < 0.35 else self.bent(rng, content))
        return path

    def check(self, path: Path, rng: random.Random) -> bool:
        layout = rng.choice(("TC", "CT"))
        template = f"%s{self.ending}"
        taken = False
        # Warnings of NumPy and torch about odd files go to standard error, and are no results.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with refusal(), _absence(self.key):
                stream = Stream(str(path.parent), template, self.key)
                with OpenStream(stream, allow_pickle=True) as opened:
                    values = opened.array("a", layout)
                self._compare(values, path, layout)
                taken = True
            with refusal():
                extent = index_features(
                    path.parent, ["a"], template=template, key=self.key, layout=layout
                )["a"]
                found = read_array(extent)
                self._compare(found, path, layout)
                reader = FeatureReader({"a": extent}, ["a"], check_finite=False)
                try:
                    rows = np.array([[0, 0, extent.rows, extent.rows]])
                    ((_, batch, mask),) = reader.read([Request(rows, extent.rows, None)])
                    with np.errstate(all="ignore"):
                        wanted = torch.from_numpy(found.astype("<f4"))
                    expect(
                        torch.equal(batch[0].nan_to_num(7), wanted.nan_to_num(7)),
                        "the reader gives other numbers",
                    )
                    expect(not mask.any(), "the mask leaves rows out")
                finally:
                    reader.close()
        return taken

    def _compare(self, values: np.ndarray[Any, Any], path: Path, layout: str) -> None:
        try:
            truth = self.truth(path)
        except Exception as error:
            expect(False, "took what the format's own reader refuses:", repr(error)[:200])
        expected = _rows(truth, layout)
        expect(values.shape == expected.shape, "shape", values.shape, "for", expected.shape)
        with np.errstate(all="ignore"):
            equal = (values == expected) | ((values != values) & (expected != expected))
        expect(bool(equal.all()), "other numbers")

    def commands(self, path: Path, rng: random.Random) -> None:
        key = () if self.key is None else ("--key", self.key)
        check_command(
            "pack",
            "--features",
            path.parent,
            "--template",
            f"%s{self.ending}",
            *key,
            "--out",
            path.parent.parent / "store",
            "--overwrite",
            "--allow-pickle",
        )


class NpyFiles(FeatureFiles):
    name, ending, header = "npy", ".npy", 90

    def sound(self, rng: random.Random) -> bytes:
        out = io.BytesIO()
        np.lib.format.write_array(out, odd_array(rng), rng.choice((None, None, (2, 0), (3, 0))))
        return out.getvalue()

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.6:
            return super().bent(rng, content)
        return bent_npy(rng)

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        return np.load(path)


def bent_npy(rng: random.Random) -> bytes:
    """A file whose header's text is odd, and whose header's length is mostly right."""
    number = rng.choice(
        ("6", "4", "0", "-1", "True", "6.0", "2**70", str(2**62), "None", "'6'", "1e9")
    )
    fields = {
        "'descr'": rng.choice(
            (
                "'<f4'",
                "'|O'",
                "'<f4,<f4'",
                "[('a', '<f4')]",
                "'f4'",
                "4",
                "'<f999'",
                "('<f4', (2,))",
                "[]",
                "'<f4'",
                "__import__('os')",
            )
        ),
        "'fortran_order'": rng.choice(("False", "True", "0", "1", "None", "'a'")),
        "'shape'": rng.choice(
            (
                f"({number}, 4)",
                f"(6, {number})",
                f"({number},)",
                "()",
                "6",
                "[6, 4]",
                "(" * 200 + ")" * 200,
                f"({number}, {number})",
                "(6, 4)",
            )
        ),
    }
    if rng.random() < 0.2:
        del fields[rng.choice(list(fields))]
    if rng.random() < 0.2:
        fields[rng.choice(("'extra'", "1", "'descr '", "'shape'"))] = "(3, 8)"
    text = (
        "{"
        + ", ".join(f"{key}: {value}" for key, value in fields.items())
        + rng.choice(("}", "", "}" + " " * 60, "}" + " " * 12000))
        + "\n"
    )
    version = rng.choice((1, 1, 2, 3, 4, 0, 255))
    size = len(text) + rng.choice((0, 0, 0, 0, -1, 5, 60000))
    length = struct.pack("<H" if version == 1 else "<I", max(0, size) % 65536)
    return (
        b"\x93NUMPY"
        + bytes((version, 0))
        + length
        + text.encode()
        + bytes(rng.choice((96, 95, 0, 200)))
    )


class NpzFiles(FeatureFiles):
    name, ending, key = "npz", ".npz", "feats"

    def sound(self, rng: random.Random) -> bytes:
        return self.archive(rng, {"feats": odd_npy(rng)})

    def archive(self, rng: random.Random, members: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        kind = rng.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        )
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w", kind) as file:
            warnings.simplefilter("ignore")  # a name that is twice
            for name, content in members.items():
                file.writestr(f"{name}.npy", content)
                if rng.random() < 0.1:
                    file.writestr(f"{name}.npy", odd_npy(rng))
        return out.getvalue()

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        how = rng.random()
        if how < 0.4:
            return super().bent(rng, content)
        inner = bent_npy(rng) if how < 0.7 else bent_bytes(rng, odd_npy(rng), 90)
        names = rng.choice(
            (("feats",), ("feats", "other"), ("feats.npy",), ("../feats", "feats"), ("",))
        )
        return self.archive(rng, dict.fromkeys(names, inner))

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        with np.load(path, allow_pickle=False) as file:
            return file["feats"]


def odd_npy(rng: random.Random) -> bytes:
    out = io.BytesIO()
    np.save(out, odd_array(rng))
    return out.getvalue()


class SafetensorsFiles(FeatureFiles):
    name, ending, key, header = "safetensors", ".safetensors", "a", 120

    def sound(self, rng: random.Random) -> bytes:
        array = odd_array(rng)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            array = np.ones((6, 4), "f4")
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
        tensor = torch.from_numpy(array)
        if rng.random() < 0.3 and tensor.is_floating_point():
            tensor = tensor.to(rng.choice((torch.bfloat16, torch.float8_e4m3fn)))
        return safetensors.torch.save({"a": tensor, "b": torch.zeros(3)}, {"x": "y"})

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return super().bent(rng, content)
        length = int.from_bytes(content[:8], "little")
        entries = bent_content(rng, json.loads(content[8 : 8 + length]))
        text = json_text(entries).encode()
        if rng.random() < 0.2:
            text = bent_text(rng, text.decode()).encode("utf-8", "surrogatepass")
        size = len(text) + rng.choice((0, 0, 0, 0, 0, 1, -1, 2**40, 2**63))
        return struct.pack("<Q", max(0, size)) + text + content[8 + length :]

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        tensor = safetensors.torch.load_file(path)["a"]
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Hdf5Files(FeatureFiles):
    name, ending, key = "hdf5", ".h5", "feats"

    def sound(self, rng: random.Random) -> bytes:
        array = odd_array(rng)
        if array.dtype.kind in "UM":
            array = np.ones((6, 4), "f4")
        out = io.BytesIO()
        with h5py.File(out, "w", libver=rng.choice(("earliest", "latest"))) as file:
            options = {}
            if rng.random() < 0.5 and array.ndim == 2 and array.size:
                options = {
                    "chunks": True,
                    **rng.choice(
                        (
                            {},
                            {"compression": "gzip"},
                            {"shuffle": True},
                            {"fletcher32": True},
                            {"maxshape": (None, None)},
                        )
                    ),
                }
            name = rng.choice(("feats", "feats", "g/feats"))
            file.create_dataset(name, data=array, **options)
            if name != "feats":
                file["feats"] = rng.choice(
                    (
                        h5py.SoftLink("/g/feats"),
                        h5py.SoftLink("/g/none"),
                        h5py.SoftLink("feats"),
                        h5py.ExternalLink("no.h5", "a"),
                    )
                )
            if rng.random() < 0.2:
                file["other"] = np.zeros(3)
        return out.getvalue()

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        with h5py.File(path, "r") as file:
            return file["feats"][()]


class TorchFiles(FeatureFiles):
    name, ending = "pt", ".pt"

    def sound(self, rng: random.Random) -> bytes:
        array = odd_array(rng)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            array = np.ones((6, 4), "f4")
        tensor = torch.from_numpy(np.array(array.astype(array.dtype.newbyteorder("=")), order="C"))
        how = rng.randrange(8)
        content: Any = tensor
        if how == 0:
            content = {"feats": tensor}
        elif how == 1:
            content = array
        elif how == 2:
            content = tensor.unsqueeze(0).expand(2, *tensor.shape)[0] if tensor.ndim else tensor
        elif how == 3:
            content = rng.choice(([tensor], {"feats": tensor, 1: tensor}, "text", None, {1: 2}))
        elif how == 4 and tensor.ndim == 2:
            content = rng.choice(
                (torch.eye(6).to_sparse(), torch.nn.Parameter(torch.ones(6, 4)), tensor.T)
            )
        out = io.BytesIO()
        torch.save(content, out, _use_new_zipfile_serialization=rng.random() < 0.6)
        return out.getvalue()

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        if rng.random() < 0.5 or not content.startswith(b"PK"):
            return super().bent(rng, content)
        return bent_archive(rng, content)

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        with torch.serialization.safe_globals(torch_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            (content,) = content.values()
        if isinstance(content, np.ndarray):
            return content
        return (
            content.detach()
            .to(torch.float64 if content.is_floating_point() else content.dtype)
            .numpy()
        )


def bent_archive(rng: random.Random, content: bytes) -> bytes:
    """A zip archive one of whose members is bent, with checksums that are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    chosen = rng.choice([*members, *(name for name in members if name.endswith("data.pkl"))])
    members[chosen] = bent_bytes(rng, members[chosen])
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    with zipfile.ZipFile(out, "w") as new:
        for name, inner in members.items():
            new.writestr(name, inner)
    return out.getvalue()


class PickleFiles(FeatureFiles):
    name, ending = "pickle", ".pkl"

    def sound(self, rng: random.Random) -> bytes:
        array = odd_array(rng)
        content = rng.choice(
            (array, {"feats": array}, {1: array, "1": array}, [array], array.tolist())
        )
        return pickle.dumps(content, protocol=rng.randrange(6))

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        # A bent pickle may name anything, so no one else may load it: its arrays are numbers, and
        # that is what is checked.
        content = unpickle_arrays("it", path.read_bytes())
        if isinstance(content, dict):
            (content,) = content.values()
        return content


class CsvFiles(FeatureFiles):
    name, ending = "csv features", ".csv"

    def sound(self, rng: random.Random) -> bytes:
        columns = rng.choice((1, 3, 4))
        names = rng.choice(([f"f{i}" for i in range(columns)], list(map(str, range(columns)))))
        rows = [
            [f"{rng.gauss(0, 1):.9g}" for _ in range(columns)] for _ in range(rng.choice((1, 5)))
        ]
        if rng.random() < 0.2:
            names, rows = ["", *names], [[str(i), *row] for i, row in enumerate(rows)]
        return "".join(",".join(row) + "\n" for row in (names, *rows)).encode()

    def bent(self, rng: random.Random, content: bytes) -> bytes:
        how = rng.randrange(3)
        if how == 0:
            return super().bent(rng, content)
        text = (bent_table if how == 1 else bent_text)(rng, content.decode())
        return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")), "surrogatepass")

    def truth(self, path: Path) -> np.ndarray[Any, Any]:
        table = pd.read_csv(
            path,
            skipinitialspace=True,
            float_precision="round_trip",
            encoding="utf-8-sig",
            index_col=False,
        )
        name = str(table.columns[0])
        if name.startswith("Unnamed") or not name.strip():  # a form feed is no name, either
            table = table.iloc[:, 1:]
        return table.to_numpy().astype(np.float32)


SUBJECTS = (NpyFiles, NpzFiles, SafetensorsFiles, Hdf5Files, TorchFiles, PickleFiles, CsvFiles)
