# SPDX-License-Identifier: Apache-2.0
"""Any features -> a packed store, one shard at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tal_fast.data.axes import other_layout
from tal_fast.data.extents import ITEM_SIZES, Layout
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.files import write_error, write_text_atomically
from tal_fast.data.formats.rows import Reduce
from tal_fast.data.json_files import read_json
from tal_fast.data.packing.rounding import TARGETS, Rounding, narrowed
from tal_fast.data.packing.store import (
    SETTINGS,
    Shard,
    existing_shards,
    locked,
    remove_store,
    write_index,
    write_shard,
)
from tal_fast.data.streams import Stream
from tal_fast.errors import ConfigError, DataError, argument, counted, listing, nearest, os_reason
from tal_fast.typing import FilePath, VideoProgress

if TYPE_CHECKING:
    import torch

__all__ = ["PackReport", "RowsRule", "pack_features"]

FORMAT = 1
SHARD_BYTES = 1 << 28
RowsRule = Literal["equal", "shortest"]


@dataclass(frozen=True)
class PackReport:
    """What a packing wrote.

    Attributes:
        path: the store.
        videos: videos in it.
        resumed: those of them that an earlier run had packed.
        shards: files.
        rows: rows of all videos.
        channels: channels of a row.
        dtype: type of the store.
        num_bytes: bytes of all features.
        cut_rows: rows that were left out of longer streams (``rows="shortest"``).
        rounding: what the type of the store changed.
        crops: crops of each row that were reduced to one, by stream; only known of videos that this
            run packed.
    """

    path: Path
    videos: int
    resumed: int
    shards: int
    rows: int
    channels: int
    dtype: str
    num_bytes: int
    cut_rows: int
    rounding: Rounding
    crops: tuple[int, ...] = ()

    def lines(self) -> list[str]:
        """Says in a few lines what was written and what rounding cost."""
        again = f", {self.resumed} of them by an earlier run" if self.resumed else ""
        r = self.rounding
        lines = [
            f"{counted(self.videos, 'video')}{again}, {counted(self.rows, 'row')} of "
            f"{counted(self.channels, 'channel')}, "
            f"{self.dtype}, {self.num_bytes / 1e6:.1f} MB in {self.shards} shards; every video "
            "read back and compared",
        ]
        if self.crops:
            lines.append(f"one row from {' and '.join(map(str, self.crops))} crops of it each")
        if self.cut_rows:
            lines.append(
                f"{counted(self.cut_rows, 'row')} left out where one stream is longer than another"
            )
        if not r.video:
            lines.append("nothing was rounded")
        else:
            lines.append(
                f"rounding to {self.dtype}: {100 * r.relative:.4g} % of the features' root mean "
                f"square; largest error {r.largest:.4g} at {r.value:.6g} (video {r.video!r}, row "
                f"{r.row}, channel {r.channel}); {r.to_zero} of {r.elements} became 0"
            )
        return [*lines, f"written to {self.path}"]


def pack_features(
    streams: Sequence[Stream],
    out: FilePath,
    *,
    dtype: str = "float32",
    layout: Layout = "TC",
    videos: Iterable[str] | None = None,
    rows: RowsRule = "equal",
    reduce: Reduce | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> PackReport:
    """Converts features into safetensors shards with a tensor [T, C] per video.

    A shard is written under a temporary name, read back from the disk, compared by SHA-256 and
    renamed; the index comes last. A run that was killed, at whatever moment, is taken up after its
    last shard by the same call, and gives the same bytes as one that was not. Memory: one shard and
    one video, whatever the size of the data.

    Example::

        pack_features(streams_of(["rgb", "flow"], "%s.npz"), "packed", dtype="float16")

    Args:
        streams: where the features lie (:func:`tal_fast.data.streams.streams_of`).
        out: folder to write.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        layout: what the axes of the sources mean; the store is [T, C].
        videos: which ones, in this order; default: all of the first stream, sorted.
        rows: ``"equal"``: streams that differ in rows are an error; ``"shortest"`` leaves out the
            last rows of the longer ones.
        reduce: of features [T, N, C] with N crops: the number of the one to take, from 0 on, or
            ``"mean"``, computed in float64. All videos have to have as many crops.
        shard_bytes: a shard ends with the video before the one that would make it larger.
        allow_pickle: read pickles; of arrays only, all else in them is refused.
        overwrite: start over instead of continuing.
        progress: called with (videos done, videos in all, video).

    Raises:
        DataError: if a source is missing or faulty, holds NaN or infinity or a number too large for
            ``dtype``, or has changed since an earlier run; if ``out`` holds something else or
            cannot be written.
        ConfigError: if an argument is unknown, or ``out`` was begun with other settings.
    """
    _check_arguments(dtype, layout, rows, reduce, shard_bytes)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(folder))
            opened = [
                stack.enter_context(OpenStream(stream, allow_pickle=allow_pickle))
                for stream in streams
            ]
            names = sorted(opened[0].videos()) if videos is None else list(videos)
            _check_names(names, opened)
            settings = {
                "format": FORMAT,
                "streams": [
                    [os.path.abspath(s.stream.path), s.template, s.stream.key] for s in opened
                ],
                "layout": layout,
                "dtype": dtype,
                "rows": rows,
                "reduce": reduce,
                "shard_bytes": shard_bytes,
                "videos": len(names),
            }
            shards = _take_up(folder, settings, overwrite)
            packer = _Packer(
                folder, opened, names, layout, dtype, rows, reduce, shard_bytes, progress
            )
            return packer.run(shards)
    except OSError as error:
        raise write_error(folder, error) from error


def _check_arguments(
    dtype: str, layout: str, rows: str, reduce: Reduce | None, shard_bytes: int
) -> None:
    for name, value, known in (
        ("dtype", dtype, TARGETS),
        ("layout", layout, ("TC", "CT")),
        ("rows", rows, ("equal", "shortest")),
    ):
        if value not in known:
            raise ConfigError(
                f"pack: expected {name} among {', '.join(known)}, got {value!r}"
                f"{nearest(value, known)}"
            )
    is_crop = isinstance(reduce, int) and not isinstance(reduce, bool) and reduce >= 0
    if reduce not in (None, "mean") and not is_crop:
        raise ConfigError(
            f"pack: expected reduce 'mean' or the number of a crop from 0 on, got {reduce!r}"
        )
    if shard_bytes < 1:
        raise ConfigError(f"pack: expected shard_bytes >= 1, got {shard_bytes}")


def _check_names(names: list[str], opened: Sequence[OpenStream]) -> None:
    if not names:
        raise DataError(
            f"{opened[0].stream.path}: no video of the form {opened[0].template!r} to pack"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{opened[0].stream.path}: video {name!r}: its name is not UTF-8, as the names in "
                "a store are; rename the file"
            ) from None
    for stream in opened:
        missing = [name for name in names if not stream.holds(name)]
        if missing:
            raise DataError(
                f"{stream.stream.path}: {len(missing)} of {counted(len(names), 'video', 'are')} "
                "missing: "
                f"{listing(missing, between=', ')}"
            )


def _take_up(folder: Path, settings: dict[str, Any], overwrite: bool) -> list[Shard]:
    """Returns the shards of an earlier run with the same settings; begins a store if none."""
    file = folder / SETTINGS
    if overwrite and file.exists():
        remove_store(folder)
    if not file.exists():
        if any(folder.iterdir()):
            raise DataError(f"{folder}: expected a new or empty folder, or a packed store")
        write_text_atomically(file, json.dumps(settings, indent=2) + "\n")
        return []
    _, before = read_json(file, "settings of a packed store")
    if not isinstance(before, dict):
        raise DataError(f"{file}: expected an object of settings, got {type(before).__name__}")
    for name, value in settings.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{folder}: begun with {name} {before.get(name)!r}, now {value!r}; "
                f"{argument('overwrite', True)} starts over"
            )
    return existing_shards(folder)


class _Packer:
    """One run over the videos."""

    def __init__(
        self,
        folder: Path,
        opened: Sequence[OpenStream],
        names: Sequence[str],
        layout: Layout,
        dtype: str,
        rows: str,
        reduce: Reduce | None,
        shard_bytes: int,
        progress: VideoProgress | None,
    ) -> None:
        self.folder = folder
        self.opened = opened
        self.names = names
        self.layout = layout
        self.dtype = dtype
        self.rows = rows
        self.reduce = reduce
        self.shard_bytes = shard_bytes
        self.progress = progress
        self.channels = 0
        self.lengths: set[int] = set()  # rows of the videos packed by this run

    def run(self, shards: list[Shard]) -> PackReport:
        done = [video for shard in shards for video in shard]
        resumed = len(done)
        self._check_resumed(shards, done)
        tensors: dict[str, torch.Tensor] = {}
        facts: Shard = {}
        size = 0
        for number, video in enumerate(self.names[resumed:], resumed + 1):
            tensor, about = self._video(video)
            needed = tensor.numel() * tensor.element_size()
            if tensors and size + needed > self.shard_bytes:
                write_shard(self.folder, len(shards) + 1, tensors, facts)
                shards.append(facts)
                tensors, facts, size = {}, {}, 0
            tensors[video], facts[video] = tensor, about
            size += needed
            # Only the buffer may hold on to it, or two videos more are in memory.
            del tensor
            if self.progress is not None:
                self.progress(number, len(self.names), video)
        if tensors:
            write_shard(self.folder, len(shards) + 1, tensors, facts)
            shards.append(facts)
        return self._finish(shards, resumed)

    def _check_resumed(self, shards: list[Shard], done: list[str]) -> None:
        if sorted(done) != sorted(self.names[: len(done)]):
            raise DataError(
                f"{self.folder}: its shards hold other videos than the features; "
                f"{argument('overwrite', True)} starts over"
            )
        for shard in shards:
            for video, about in shard.items():
                if about["sources"] != self._sources(video):
                    raise DataError(
                        f"video {video!r}: {self.opened[0].file(video)} has changed since it was "
                        f"packed; {argument('overwrite', True)} starts over"
                    )
                self._check_channels(video, about["channels"], about["rows"])

    def _video(self, video: str) -> tuple[torch.Tensor, dict[str, Any]]:
        sources = self._sources(video)
        parts = [self._read(stream, video) for stream in self.opened]
        lengths = [len(part) for part in parts]
        if len(set(lengths)) > 1 and self.rows == "equal":
            raise DataError(
                f"video {video!r}: expected streams of equal rows, got {lengths}; "
                f"{argument('rows', 'shortest')} leaves out the last rows of the longer ones"
            )
        length = min(lengths)
        values = parts[0] if len(parts) == 1 else np.concatenate(
            [part[:length] for part in parts], axis=1)  # fmt: skip
        del parts
        self._check_channels(video, values.shape[1], length)
        tensor, rounding = narrowed(video, values, self.dtype)
        about = {
            "rows": length,
            "channels": values.shape[1],
            "cut_rows": max(lengths) - length,
            "sources": sources,
            "rounding": rounding.to_dict(),
        }
        return tensor, about

    def _check_channels(self, video: str, channels: int, length: int) -> None:
        self.channels = self.channels or channels
        self.lengths.add(length)
        if channels == self.channels:
            return
        hint = ""
        if len(self.lengths) == 1:  # of videos that differ in what should be their channels
            hint = (
                f"; every video so far has {counted(length, 'row')}, so the axes look swapped: "
                f"{argument('layout', other_layout(self.layout))}"
            )
        raise DataError(
            f"video {video!r}: expected {counted(self.channels, 'channel')} as in the videos "
            f"before it, got {channels}{hint}"
        )

    def _read(self, stream: OpenStream, video: str) -> npt.NDArray[Any]:
        try:
            return stream.array(video, self.layout, self.reduce)
        except DataError as error:
            raise DataError(f"video {video!r}: {error}") from error

    def _sources(self, video: str) -> list[list[int]]:
        """Returns size and time of change of each file that a video comes from."""
        sources = []
        for stream in self.opened:
            try:
                paths = stream.files(video)
            except DataError as error:
                raise DataError(f"video {video!r}: {error}") from error
            for path in paths:
                try:
                    status = os.stat(path)
                except OSError as error:
                    raise DataError(f"video {video!r}: {path}: {os_reason(error)}") from error
                sources.append([status.st_size, status.st_mtime_ns])
        return sources

    def _finish(self, shards: list[Shard], resumed: int) -> PackReport:
        everything = [about for shard in shards for about in shard.values()]
        rounding = sum((Rounding(**about["rounding"]) for about in everything), Rounding())
        rows = sum(about["rows"] for about in everything)
        num_bytes = rows * self.channels * ITEM_SIZES[self.dtype]
        write_index(
            self.folder,
            shards,
            {
                "total_size": num_bytes,
                "dtype": self.dtype,
                "channels": self.channels,
                "rounding": {**rounding.to_dict(), "relative": rounding.relative},
            },
        )
        return PackReport(
            path=self.folder,
            videos=len(everything),
            resumed=resumed,
            shards=len(shards),
            rows=rows,
            channels=self.channels,
            dtype=self.dtype,
            num_bytes=num_bytes,
            cut_rows=sum(about["cut_rows"] for about in everything),
            rounding=rounding,
            crops=tuple(stream.crops for stream in self.opened if stream.crops),
        )
