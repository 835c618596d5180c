# SPDX-License-Identifier: Apache-2.0
"""Whether data is still that of an earlier run, and what of it has changed.

Annotations are compared by their content. Features are compared by shape, and by size and
modification time of their files: reading all of them would cost more than some studies. Where the
files lie does not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from tal_fast.data.dataset import TALDataset
from tal_fast.errors import DataError, os_reason, others

__all__ = ["changed_annotations", "changed_features", "data_facts", "data_fingerprint"]


def data_fingerprint(dataset: TALDataset) -> str:
    """Returns a hash of annotations and feature shapes, the same wherever the data lies.

    Features of the same shapes with other content are for :func:`data_facts` to tell.
    """
    digest = hashlib.sha256(json.dumps(list(dataset.classes)).encode())
    for name in sorted(dataset.annotations.videos):
        _take_in(digest, dataset, name)
    return digest.hexdigest()


def _take_in(digest: Any, dataset: TALDataset, name: str) -> None:
    video, extent = dataset.annotations.videos[name], dataset.features[name]
    grid = dataset.grid(name)
    row = [name, video.subset, float(video.duration), extent.rows, extent.columns]
    row += [str(extent.dtype), float(grid.stride), float(grid.frames), float(grid.fps)]
    digest.update(json.dumps(row).encode())
    digest.update(np.ascontiguousarray(video.segments, dtype="<f8").tobytes())
    digest.update(np.ascontiguousarray(video.labels, dtype="<i8").tobytes())


def data_facts(dataset: TALDataset, videos: Iterable[str]) -> dict[str, Any]:
    """Returns what to keep beside a result, to tell later whether its data has changed.

    Args:
        dataset: an open data set.
        videos: names of the videos that the result depends on.

    Returns:
        Plain values: ``classes``, and ``videos``: name -> ``annotations`` (a hash of instances,
        duration, grid and feature shape) and ``features`` (bytes and modification time in
        nanoseconds of each file that holds them).

    Raises:
        DataError: a feature file is gone.
    """
    known: dict[str, list[int]] = {}

    def file_facts(path: str) -> list[int]:
        if path not in known:
            try:
                status = os.stat(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {os_reason(error)}") from error
            known[path] = [status.st_size, status.st_mtime_ns]
        return known[path]

    facts = {}
    for name in videos:
        digest = hashlib.sha256()
        _take_in(digest, dataset, name)
        parts = dataset.features[name].parts
        facts[name] = {
            "annotations": digest.hexdigest()[:16],
            "features": [list(file_facts(part.path)) for part in parts],
        }
    return {"classes": list(dataset.classes), "videos": facts}


def changed_annotations(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Says what differs between two :func:`data_facts` besides the feature files; None: nothing."""
    if list(then["classes"]) != list(now["classes"]):
        return f"the classes were {list(then['classes'])}, they are {list(now['classes'])}"
    before, after = then["videos"], now["videos"]
    for names, what in (
        ([name for name in before if name not in after], "is no longer there"),
        ([name for name in after if name not in before], "is new"),
        (
            [
                name
                for name in after
                if name in before and before[name]["annotations"] != after[name]["annotations"]
            ],
            "has other annotations or features of another shape",
        ),
    ):
        if names:
            return f"video {names[0]!r}{others(len(names))} {what}"
    return None


def changed_features(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Says which feature files differ in size or time between two :func:`data_facts`, or None."""
    before, after = then["videos"], now["videos"]
    names = [
        name
        for name in after
        if name in before
        and list(map(tuple, before[name]["features"])) != list(map(tuple, after[name]["features"]))
    ]
    if not names:
        return None
    first = names[0]
    return (
        f"the features of video {first!r}{others(len(names))} have changed: "
        f"{_files(before[first]['features'])} then, {_files(after[first]['features'])} now"
    )


def _files(facts: Iterable[Sequence[int]]) -> str:
    return " + ".join(
        f"{size:,} bytes of {datetime.fromtimestamp(time / 1e9, timezone.utc):%Y-%m-%d %H:%M:%S.%f}"
        for size, time in facts
    )
