# SPDX-License-Identifier: Apache-2.0
"""Shards of a packed store: written whole, read back and compared, and described in themselves.

A shard is a safetensors file with a tensor [T, C] per video. Its metadata has, per video, the
SHA-256 of the tensor's bytes and what the source files looked like, so that a folder of shards says
by itself how far a packing has come. ``features.safetensors.index.json`` comes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tal_fast.data.files import sync_directory, write_error, write_text_atomically
from tal_fast.data.formats.safetensors_files import (
    INDEX_SUFFIX,
    SafetensorsFile,
    read_store_index,
    store_index,
)
from tal_fast.data.json_files import parse_json
from tal_fast.errors import DataError
from tal_fast.typing import FilePath, VideoProgress

if TYPE_CHECKING:
    import torch

__all__ = [
    "INDEX",
    "SETTINGS",
    "Shard",
    "existing_shards",
    "locked",
    "remove_store",
    "shard_name",
    "verify_store",
    "write_index",
    "write_shard",
]

INDEX = f"features{INDEX_SUFFIX}"
SETTINGS = "pack.json"
_METADATA = "tal_fast.pack"
_READ = 1 << 22

Shard = dict[str, dict[str, Any]]
"""What a shard's metadata says: video -> ``sha256``, ``rows``, ``sources``, ``rounding``."""


def shard_name(shard: int) -> str:
    """Returns the file name of the shard with this number, from 1 on."""
    return f"features-{shard:05d}.safetensors"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other packings out of a folder as long as the block runs.

    Raises:
        DataError: if another one is at it.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another tal-fast pack is writing here") from None
        # What a killed packing left; nobody else writes names like these.
        for pattern in (".features*.tmp", f".{SETTINGS}.*.tmp"):
            for leftover in folder.glob(pattern):
                leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def remove_store(folder: Path) -> None:
    """Removes the files of a store, the index first, so that no half of one looks whole."""
    names = [INDEX, SETTINGS, *sorted(path.name for path in folder.glob("features-*.safetensors"))]
    for name in names:
        (folder / name).unlink(missing_ok=True)


def write_shard(
    folder: Path, shard: int, tensors: Mapping[str, torch.Tensor], videos: Shard
) -> None:
    """Writes a shard under a temporary name, reads it back, compares, and renames it.

    Args:
        folder: the store.
        shard: of the shard, from 1 on.
        tensors: [T, C] per video, contiguous.
        videos: metadata per video; the checksums are added here.

    Raises:
        DataError: if it cannot be written, or what is read back differs.
    """
    import safetensors
    import safetensors.torch

    path = folder / shard_name(shard)
    temporary = folder / f".{path.name}.tmp"
    for name, tensor in tensors.items():
        videos[name]["sha256"] = hashlib.sha256(_bytes(tensor)).hexdigest()
    metadata = {_METADATA: json.dumps(videos, sort_keys=True)}
    try:
        safetensors.torch.save_file(dict(tensors), temporary, metadata)
        # The library makes a private file; the store should be as readable as any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
            # So that the comparison reads what the disk has, not what the memory still holds.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _compare(temporary, videos)
        os.replace(temporary, path)
        sync_directory(folder)
    except OSError as error:
        raise write_error(path, error) from error
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _compare(path: Path, videos: Shard, progress: Callable[[str], None] | None = None) -> None:
    """Compares the tensors of a shard with their checksums."""
    shard = SafetensorsFile(path)
    if sorted(shard.names()) != sorted(videos):
        raise DataError(f"{path}: its tensors are not those that its metadata describes")
    with open(path, "rb") as file:
        for name, facts in videos.items():
            extent = shard.extent(name)
            digest = hashlib.sha256()
            file.seek(extent.offset)
            left = extent.num_bytes
            while left:
                block = file.read(min(left, _READ))
                if not block:
                    raise DataError(f"{path}: video {name!r}: the file ends in its features")
                digest.update(block)
                left -= len(block)
            if digest.hexdigest() != facts["sha256"]:
                raise DataError(
                    f"{path}: video {name!r}: its bytes (offset {extent.offset}, "
                    f"{extent.num_bytes} bytes) are not those that were packed: expected SHA-256 "
                    f"{facts['sha256']}, got {digest.hexdigest()}"
                )
            if progress is not None:
                progress(name)


def _metadata(path: Path) -> Shard:
    import safetensors

    SafetensorsFile(path)  # says what is wrong with a file that is not whole
    with safetensors.safe_open(path, "numpy") as file:
        metadata = (file.metadata() or {}).get(_METADATA)
    if metadata is None:
        raise DataError(f"{path}: expected a shard of tal-fast pack, got one without its metadata")
    videos: Shard = parse_json(str(path), metadata.encode())
    return videos


def existing_shards(folder: Path) -> list[Shard]:
    """Returns what the shards that are there hold, in order.

    Raises:
        DataError: if one is broken, none of ours, or missing between others.
    """
    paths = sorted(folder.glob("features-*.safetensors"))
    for number, path in enumerate(paths, 1):
        if path.name != shard_name(number):
            raise DataError(f"{folder}: expected {shard_name(number)} before {path.name}")
    return [_metadata(path) for path in paths]


def write_index(folder: Path, shards: list[Shard], facts: Mapping[str, Any]) -> Path:
    """Writes the index of a complete store.

    Raises:
        DataError: if it cannot be written.
    """
    index = {
        "metadata": dict(facts),
        "weight_map": {
            video: shard_name(number) for number, shard in enumerate(shards, 1) for video in shard
        },
    }
    return write_text_atomically(folder / INDEX, json.dumps(index, indent=0) + "\n")


def verify_store(folder: FilePath, progress: VideoProgress | None = None) -> int:
    """Reads a packed store and compares every video with its checksum.

    Args:
        folder: the store.
        progress: called with (videos done, videos in all, video).

    Returns:
        The number of videos, all as they were packed.

    Raises:
        DataError: if the store is incomplete, or the first difference.
    """
    root = Path(folder)
    index = store_index(os.fspath(root))
    if index is None:
        raise DataError(f"{root}: expected a packed store, got a folder without {INDEX}")
    where = read_store_index(index)
    done = 0

    def count(video: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(where), video)

    for path in sorted(set(where.values())):
        videos = _metadata(Path(path))
        listed = {video for video, file in where.items() if file == path}
        if listed != set(videos):
            raise DataError(f"{path}: holds other videos than {index} says")
        _compare(Path(path), videos, count)
    return done
