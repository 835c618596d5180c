# SPDX-License-Identifier: Apache-2.0
"""Where the features of each video lie: file, byte offset, shape and dtype.

Headers are parsed by the formats' own libraries, and every extent is checked against the size of
its file. The native reader that gets the extents parses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from tal_fast.data.axes import swapped_axes
from tal_fast.data.extents import DTYPES, Extent, Layout, beside
from tal_fast.data.feature_names import other_capitals, rename
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.formats.npy import npy_extent
from tal_fast.data.streams import Stream, streams_of
from tal_fast.errors import ConfigError, DataError, counted, listing, nearest, same_to_the_eye
from tal_fast.typing import FilePath

__all__ = [
    "DTYPES",
    "Extent",
    "Layout",
    "index_features",
    "index_streams",
    "read_extent",
    "unannotated",
    "without_features",
]


def read_extent(path: FilePath, *, layout: Layout = "TC") -> Extent:
    """Reads the header of a ``.npy`` file and checks it against the file's size.

    Args:
        path: the file.
        layout: what its two axes mean. A Fortran-ordered array of one layout has the bytes of the
            other, so it is read as such and needs no copy.

    Raises:
        DataError: if the file is missing, empty, no ``.npy`` file, not a little-endian array of
            float16, float32 or float64 with two axes besides those of length 1, without rows or
            columns, or of another size than its header says.
    """
    return npy_extent(path, layout)


def index_features(
    folder: FilePath | Sequence[FilePath],
    videos: Iterable[str],
    *,
    prefix: str = "",
    suffix: str = ".npy",
    template: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    layout: Layout = "TC",
    channels: int | None = None,
) -> dict[str, Extent]:
    """Finds and checks the features of every video, without reading them.

    Example::

        index_features("i3d", names, prefix="v_", suffix=".npy")
        index_features(["rgb", "flow"], names, template="%s.npy")  # two streams side by side
        index_features("tsp.h5", names)                            # one file, a dataset per video
        index_features("packed", names)                            # a store of tal-fast pack

    Args:
        folder: a folder of files, a folder of safetensors shards, or one safetensors or HDF5 file;
            several of them are streams whose channels follow each other.
        videos: names of the videos.
        prefix: text before the video's name in a file's name, or in an array's name.
        suffix: text after it in a file's name.
        template: a file or array name with ``%s`` for the video's name, instead of prefix and
            suffix; one per stream if they differ.
        key: name of the array in each video's own file, when such a file holds several.
        layout: meaning of the axes, ``"TC"`` ([T, C]) or ``"CT"``.
        channels: expected number of channels over all streams; default: that of most videos.

    Returns:
        An extent per video, in the order of ``videos``; a further stream is :attr:`Extent.beside`.

    Raises:
        DataError: if a file is missing, faulty, of a format that has to be packed first, has
            another number of channels than the others, or streams differ in rows. Faults are
            collected: the message counts them and names the first few.
        ConfigError: if ``layout`` or a template is not as it should be.
        MissingExtraError: if HDF5 is to be read and h5py is not installed.
    """
    streams = streams_of(folder, template, key, around=(prefix, suffix))
    return index_streams(streams, videos, layout=layout, channels=channels)


def index_streams(
    streams: Sequence[Stream],
    videos: Iterable[str],
    *,
    layout: Layout = "TC",
    channels: int | None = None,
) -> dict[str, Extent]:
    """Does what :func:`index_features` does, for streams.

    Raises:
        DataError: as :func:`index_features`.
        ConfigError: if ``layout`` is unknown.
        MissingExtraError: if HDF5 is to be read and h5py is not installed.
    """
    if layout not in ("TC", "CT"):
        raise ConfigError(f"index_features: expected layout 'TC' or 'CT', got {layout!r}")
    names = list(videos)
    columns: list[dict[str, Extent]] = []
    faults: list[str] = []
    for stream in streams:
        with OpenStream(stream) as opened:
            columns.append(_index_stream(opened, names, layout, faults))
    extents: dict[str, Extent] = {}
    for video in names:
        parts = [column[video] for column in columns if video in column]
        if len(parts) < len(columns):
            continue
        try:
            extents[video] = beside(parts) if len(parts) > 1 else parts[0]
        except DataError as error:
            faults.append(f"video {video!r}: {error} (streams that differ can be packed with "
                          "--rows shortest)")  # fmt: skip
    swapped = swapped_axes(extents.values(), layout)
    if swapped:
        faults.append(f"{streams[0].path}: {swapped}")
    elif extents:
        common = channels or Counter(e.width for e in extents.values()).most_common(1)[0][0]
        for video, extent in extents.items():
            if extent.width != common:
                hint = " (the axes look swapped: layout)" if extent.rows == common else ""
                faults.append(
                    f"video {video!r}: {extent.path}: expected {counted(common, 'channel')}, "
                    f"got {extent.width}{hint}"
                )
    if faults:
        raise DataError(listing(faults))
    return extents


def _index_stream(
    opened: OpenStream, names: Sequence[str], layout: Layout, faults: list[str]
) -> dict[str, Extent]:
    extents: dict[str, Extent] = {}
    missing: list[str] = []
    for video in names:
        try:
            extents[video] = opened.extent(video, layout)
        except (KeyError, FileNotFoundError):
            missing.append(video)
        except DataError as error:
            faults.append(f"video {video!r}: {error}")
    if missing:
        faults.insert(0, _describe_missing(missing, opened))
    return extents


def _describe_missing(missing: list[str], opened: OpenStream) -> str:
    """Says which videos are missing, and what something that is there is called."""
    path = opened.stream.path
    entries = opened.entries(missing)
    if opened.is_folder:
        first = f"video {missing[0]!r}: {opened.file(missing[0])}: no such feature file"
        what, holder = f"a feature file {opened.template.replace('%s', '<video>')}", "folder"
    else:
        first = f"video {missing[0]!r}: {path}: no array {opened.entry(missing[0])!r}"
        what, holder = f"an array {opened.template.replace('%s', '<video>')}", "file"
    twins = other_capitals(opened, missing)
    if twins:
        advice = rename(opened, twins, len(missing))
        return f"{counted(len(missing), 'video')} without {what}, first {first}; {advice}"
    if len(missing) == 1:
        return first + nearest(opened.entry(missing[0]), sorted(entries)[:5000], numbered=True)
    example = f"; the {holder} holds, for example, {min(entries)!r}" if entries else (
        f"; the {holder} is empty")  # fmt: skip
    example = same_to_the_eye(opened.entry(missing[0]), entries) or example
    return f"{counted(len(missing), 'video')} without {what}, first {first}{example}"


def without_features(
    streams: Sequence[Stream], videos: Iterable[str], *, allow_pickle: bool = False
) -> list[str]:
    """Returns the videos that some stream does not hold, in the order given.

    Args:
        streams: where the features lie.
        videos: names of the videos.
        allow_pickle: look into a pickle of arrays, where a stream is one.

    Raises:
        DataError: if a stream cannot be read, or an id cannot name a file.
    """
    left = list(videos)
    lacking: set[str] = set()
    for stream in streams:
        with OpenStream(stream, allow_pickle=allow_pickle) as opened:
            lacking.update(video for video in left if not opened.holds(video))
    return [video for video in left if video in lacking]


def unannotated(streams: Sequence[Stream], annotated: Collection[str]) -> list[str]:
    """Returns the ids of features that belong to none of the videos, sorted.

    Of a folder of files, those beside the files of the videos count: in the folder itself, and in
    folders below it that an id (``P01/P01_01``) leads to. It is the first stream that is looked at.

    Raises:
        DataError: if it cannot be read.
    """
    with OpenStream(streams[0]) as opened:
        return sorted(set(opened.videos(annotated)) - set(annotated))
