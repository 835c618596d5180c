# SPDX-License-Identifier: Apache-2.0
"""A stream of features, opened: how the names of videos lead to what lies in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy.typing as npt

from tal_fast.data.extents import Extent, Layout
from tal_fast.data.feature_folder import (
    feature_files,
    is_there,
    require_file_name,
)
from tal_fast.data.formats import (
    IN_PLACE,
    KEYED,
    SUFFIXES,
    Kind,
    kind_of_content,
    kind_of_name,
    needs_packing,
)
from tal_fast.data.formats.arrays import array_file, close_array_file, pick
from tal_fast.data.formats.hdf5 import Hdf5File
from tal_fast.data.formats.npy import npy_array, npy_extent
from tal_fast.data.formats.rows import Reduce, as_crops, as_rows, reduced
from tal_fast.data.formats.safetensors_files import SafetensorsFile, read_store_index, store_index
from tal_fast.data.streams import Stream
from tal_fast.errors import DataError, argument, listing

__all__ = ["OpenStream"]

_SHOWN = 3


class OpenStream:
    """A stream being read: headers and files that many videos share are read once.

    Attributes:
        stream: where it lies.
        template: its template, also when the stream left it open.
        crops: crops of each row, once :meth:`array` has reduced some.
    """

    def __init__(self, stream: Stream, *, allow_pickle: bool = False) -> None:
        """Looks at what the path is.

        Args:
            stream: where it lies.
            allow_pickle: let :meth:`array` read pickles of arrays.

        Raises:
            DataError: if there is nothing, or the folder's files do not tell one template.
        """
        self.stream = stream
        self.crops: int | None = None
        self._allow_pickle = allow_pickle
        self._files: dict[str, SafetensorsFile | Hdf5File] = {}
        self._arrays: tuple[str, Any] | None = None
        self._shards: dict[str, str] | None = None
        self._kind: Kind | None = None
        self._start, self._end = "", ""
        path = stream.path
        if os.path.isdir(path):
            self._refuse_unfinished()
            template = stream.template or self._template_of_folder()
            if kind_of_name(template) is None:
                self._shards = self._shards_of_folder(template)
            self._kind = kind_of_name(template)
        elif os.path.lexists(path):
            template = stream.template or "%s"
            self._kind = kind_of_name(path) or kind_of_content(path)
            if self._kind not in KEYED:
                raise DataError(
                    f"{path}: expected a folder, or a file with an array per video "
                    f"({', '.join(s for s, kind in SUFFIXES.items() if kind in KEYED)})"
                )
        else:
            raise DataError(f"{path}: no such feature folder")
        self.template = template
        self._start, self._end = template.split("%s")
        self.is_folder = os.path.isdir(path) and self._shards is None

    def __enter__(self) -> OpenStream:
        """Returns the stream."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes its files."""
        self.close()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            if isinstance(file, Hdf5File):
                file.close()
        self._files.clear()
        if self._arrays is not None:
            close_array_file(self._arrays[1])
        self._arrays = None

    # ---- what there is -------------------------------------------------------------------------

    def _refuse_unfinished(self) -> None:
        path = self.stream.path
        if os.path.exists(os.path.join(path, "pack.json")) and store_index(path) is None:
            raise DataError(
                f"{path}: expected a complete store, got one whose packing was interrupted; run "
                "the same tal-fast pack again"
            )

    def _template_of_folder(self) -> str:
        if store_index(self.stream.path) is not None:
            return "%s"
        endings: dict[str, str] = {}
        # Only where none lies in the folder itself, those below it tell.
        for beside in ((), None):
            for name in () if endings else feature_files(self.stream.path, beside):
                if kind_of_name(name) is not None:
                    endings.setdefault(os.path.splitext(name)[1], name)
        if not endings:
            raise DataError(
                f"{self.stream.path}: no file of a known ending ({', '.join(SUFFIXES)}); "
                f"give a template (%s: the video's name) with {argument('template')}"
            )
        if len(endings) > 1:
            raise DataError(
                f"{self.stream.path}: files of {len(endings)} endings "
                f"({listing(sorted(endings.values()), _SHOWN, ', ')}); give a template with "
                f"{argument('template')}"
            )
        ending = next(iter(endings))
        # Without an index, too, safetensors files are taken for shards: of a file per video, a
        # template says so.
        return "%s" if ending == ".safetensors" else f"%s{ending}"

    def _shards_of_folder(self, template: str) -> dict[str, str] | None:
        """Returns tensor -> shard, or None for a folder of files without a known ending."""
        index = store_index(self.stream.path)
        if index is not None:
            return read_store_index(index)
        shards: dict[str, str] = {}
        for name in feature_files(self.stream.path, ()):
            if kind_of_name(name) != "safetensors":
                continue
            path = os.path.join(self.stream.path, name)
            for tensor in self._safetensors(path).names():
                if tensor in shards:
                    raise DataError(
                        f"{path}: tensor {tensor!r} is also in {os.path.basename(shards[tensor])}"
                    )
                shards[tensor] = path
        return shards or None

    def entries(self, beside: Collection[str] | None = None) -> list[str]:
        """Returns the names of all files, or of all arrays of the file or store.

        Args:
            beside: of a folder of files, only those in the folders of these videos, and in the
                folder itself; None takes all below it.

        Raises:
            DataError: if the folder cannot be read.
        """
        if self._shards is not None:
            return list(self._shards)
        if self.is_folder:
            # Where the template has folders, a video beside others has one of its own.
            names = None if beside is None or "/" in self.template else map(self.entry, beside)
            return feature_files(self.stream.path, None if names is None else list(names))
        if self._kind == "safetensors":
            return self._safetensors(self.stream.path).names()
        if self._kind == "hdf5":
            return self._hdf5(self.stream.path).names()
        return [str(name) for name in self._mapping(self.stream.path)]

    def videos(self, beside: Collection[str] | None = None) -> list[str]:
        """Returns the videos that the template finds among :meth:`entries`."""
        start, end = len(self._start), len(self._end)
        return [
            name[start : len(name) - end]
            for name in self.entries(beside)
            if len(name) > start + end and name.startswith(self._start) and name.endswith(self._end)
        ]

    def entry(self, video: str) -> str:
        """Returns the name of a video's file or array."""
        return f"{self._start}{video}{self._end}"

    def file(self, video: str) -> str:
        """Returns the path of the file that should hold a video.

        Raises:
            DataError: if the video's id cannot name a file of the folder.
            KeyError: if the store has no such tensor.
        """
        if self._shards is not None:
            return self._shards[self.entry(video)]
        if self.is_folder:
            require_file_name(self.stream.path, video)
            return os.path.join(self.stream.path, self.entry(video))
        return self.stream.path

    def holds(self, video: str) -> bool:
        """Whether there is a file or array of this video, be it sound or not.

        It is looked for by its own name, not in a listing, as :meth:`extent` and :meth:`array` do:
        whatever asks whether a video has features asks here.

        Raises:
            DataError: if the video's id cannot name a file of the folder, or a file that many share
                is faulty.
        """
        if self._shards is not None:
            return self.entry(video) in self._shards
        if self.is_folder:
            return is_there(self.file(video))
        if self._kind == "safetensors":
            return self._safetensors(self.stream.path).holds(self.entry(video))
        if self._kind == "hdf5":
            return self._hdf5(self.stream.path).holds(self.entry(video))
        return self.entry(video) in self._mapping(self.stream.path)

    # ---- one video -----------------------------------------------------------------------------

    def extent(self, video: str, layout: Layout = "TC") -> Extent:
        """Returns where a video's features lie.

        Raises:
            DataError: if its file is faulty or cannot be read in place.
            FileNotFoundError: if there is no such file.
            KeyError: if there is no such array.
        """
        path = self.file(video)
        try:
            return self._extent(video, path, layout)
        except DataError:
            # Which of the formats' errors it is does not matter where there is no file.
            if self.is_folder:
                self._require(path)
            raise

    def _extent(self, video: str, path: str, layout: Layout) -> Extent:
        kind = self._kind_of(path)
        if kind == "npy":
            return npy_extent(path, layout)
        if kind not in IN_PLACE:
            raise needs_packing(path, kind)
        if kind == "safetensors":
            tensors = self._safetensors(path)
            return tensors.extent(self._name(video, tensors, path), layout)
        with self._datasets(path) as datasets:
            return datasets.extent(self._name(video, datasets, path), layout)

    def array(
        self, video: str, layout: Layout = "TC", reduce: Reduce | None = None
    ) -> npt.NDArray[Any]:
        """Reads a video of any format: [T, C] of float16, float32 or float64.

        Args:
            video: its name.
            layout: what the axes of the array mean.
            reduce: what to take of the crops of an array [T, N, C].

        Raises:
            DataError: if its file is faulty, does not hold a 2-D array of numbers, or has no such
                crop or another number of them than the videos before.
            ConfigError: if it is a pickle and those are not allowed.
            FileNotFoundError: if there is no such file.
            KeyError: if there is no such array.
        """
        where, values = self._stored(video)
        if reduce is not None:
            values = as_crops(where, values)
            self.crops = self.crops or values.shape[1]
            # Also what shows that the axes are others than [T, N, C].
            if values.shape[1] != self.crops:
                raise DataError(
                    f"{where}: expected {self.crops} crops in the middle axis as in the video "
                    f"before, got shape {list(values.shape)}"
                )
            values = reduced(where, values, reduce)
        return as_rows(where, values, layout)

    def _stored(self, video: str) -> tuple[str, npt.NDArray[Any]]:
        """Returns where a video's array is, for messages, and the array as it is stored."""
        path = self.file(video)
        kind = self._kind_of(path)
        self._require(path)
        if kind == "npy":
            return path, npy_array(path)
        if kind == "safetensors":
            tensors = self._safetensors(path)
            name = self._name(video, tensors, path)
            return f"{path}: tensor {name!r}", tensors.array(name)
        if kind == "hdf5":
            with self._datasets(path) as datasets:
                name = self._name(video, datasets, path)
                return f"{path}: dataset {name!r}", datasets.array(name)
        if self.is_folder:
            arrays = array_file(path, kind, allow_pickle=self._allow_pickle)
            try:
                return path, pick(path, arrays, self.stream.key)
            finally:
                close_array_file(arrays)
        name = self.entry(video)
        arrays = self._mapping(path)
        if name not in arrays:
            raise KeyError(name)
        return f"{path}: {name!r}", pick(path, arrays, name)

    def files(self, video: str) -> list[str]:
        """Returns all files that a video's numbers come from, :meth:`file` first.

        An HDF5 file may lead to others: by external links, as raw files, as sources of a virtual
        dataset.

        Raises:
            DataError: if one of them is missing or faulty.
            KeyError: if there is no such array.
        """
        path = self.file(video)
        if not os.path.lexists(path) or self._kind_of(path) != "hdf5":
            return [path]
        with self._datasets(path) as datasets:
            return [path, *datasets.files(self._name(video, datasets, path))]

    @contextlib.contextmanager
    def _datasets(self, path: str) -> Iterator[Hdf5File]:
        """Opens an HDF5 file; closes it if it holds one video alone."""
        try:
            yield self._hdf5(path)
        finally:
            if self.is_folder and path in self._files:
                self._files.pop(path).close()  # type: ignore[union-attr]

    def _kind_of(self, path: str) -> Kind:
        if self._shards is not None:
            return "safetensors"
        return self._kind or kind_of_content(path)

    def _require(self, path: str) -> None:
        if not is_there(path):
            raise FileNotFoundError(path)

    def _name(self, video: str, file: SafetensorsFile | Hdf5File, path: str) -> str:
        """Returns the name of a video's array in a file that holds many, or that video alone."""
        if not self.is_folder:
            return self.entry(video)
        names = file.names()
        if self.stream.key is not None:
            if self.stream.key not in names:
                raise DataError(
                    f"{path}: no array {self.stream.key!r} among {len(names)} "
                    f"({listing(names, _SHOWN, ', ')})"
                )
            return self.stream.key
        if len(names) != 1:
            raise DataError(
                f"{path}: expected one array, got {len(names)} ({listing(names, _SHOWN, ', ')}); "
                f"name one with {argument('key')}"
            )
        return names[0]

    def _safetensors(self, path: str) -> SafetensorsFile:
        file = self._files.get(path)
        if not isinstance(file, SafetensorsFile):
            file = SafetensorsFile(path)
            if not os.path.isdir(self.stream.path) or self._kind is None:
                self._files[path] = file
        return file

    def _hdf5(self, path: str) -> Hdf5File:
        file = self._files.get(path)
        if not isinstance(file, Hdf5File):
            self._files[path] = file = Hdf5File(path)
        return file

    def _mapping(self, path: str) -> Mapping[str, Any]:
        if self._arrays is None or self._arrays[0] != path:
            assert self._kind is not None
            arrays = array_file(path, self._kind, allow_pickle=self._allow_pickle)
            if not isinstance(arrays, Mapping):
                raise DataError(
                    f"{path}: expected arrays by video, got {type(arrays).__name__}; a file per "
                    "video lies in a folder"
                )
            self._arrays = (path, arrays)
        mapping: Mapping[str, Any] = self._arrays[1]
        return mapping
