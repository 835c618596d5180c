# SPDX-License-Identifier: Apache-2.0
"""Files of detections, first of all ActivityNet's results JSON.

The file is ``{"version": ..., "results": {video: [{"segment": [start, end], "label": name,
"score": s}]}, "external_data": {}}`` with times in seconds. Those of a model of ours have its name
before the results, under ``model``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.data.files import write_text_atomically
from tal_fast.data.json_files import parse_json, read_bytes
from tal_fast.data.unpickling import unpickle_arrays
from tal_fast.errors import DataError, argument
from tal_fast.evaluation import fast_json
from tal_fast.evaluation.arrays import as_array, as_labels
from tal_fast.evaluation.columns import number_column, segment_columns
from tal_fast.evaluation.detections import Detections, VideoDetections
from tal_fast.typing import FilePath, Ints

__all__ = ["predicting_model", "read_results", "write_results"]

_HEAD = 4096  # bytes of a file that hold what stands before its detections


def read_results(source: FilePath | Mapping[str, Any], *, allow_pickle: bool = False) -> Detections:
    """Reads and checks predictions.

    Args:
        source: path of a results JSON, plain or gzipped; of JSON lines (``.jsonl``,
            ``.jsonl.gz``), one ``{"video", "segment", "label", "score"}`` per line; or of
            ActionFormer's ``eval_results.pkl``. Or the content of a results JSON, of which only the
            key ``results`` is required, or of such a pickle: columns ``video-id``, ``t-start``,
            ``t-end``, ``label``, ``score``. Labels are names, or numbers of classes.
        allow_pickle: read a pickle. Even then nothing but arrays and plain values is unpickled.

    Returns:
        The detections in the order of the file; ``classes`` are the labels in order of appearance.

    Raises:
        DataError: if the file is missing, truncated or not such a file, holds a video or another
            key twice, or a record lacks a key, has a value of another type, is reversed, or holds
            NaN or infinity. The message names file, video and position.
    """
    if isinstance(source, Mapping):
        if "video-id" in source:
            return _from_columns("predictions", source)
        return _from_content("predictions", source)
    origin, raw = read_bytes(source, "predictions")
    if origin.endswith((".pkl", ".pickle")):
        if not allow_pickle:
            raise DataError(
                f"{origin}: a pickle is read only with {argument('allow_pickle', True)}"
            )
        return _from_columns(origin, unpickle_arrays(origin, raw))
    if origin.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        return _from_lines(origin, raw)
    return _from_json(origin, raw)


def _from_json(origin: str, raw: bytes) -> Detections:
    columns = fast_json.read_columns(raw)
    if columns is None:
        return _from_content(origin, parse_json(origin, raw))
    detections = Detections(*columns, origin=origin)
    detections.check()
    return detections


def _from_content(origin: str, parsed: Any) -> Detections:
    results = parsed.get("results") if isinstance(parsed, Mapping) else None
    if not isinstance(results, Mapping):
        mapping = isinstance(parsed, Mapping)
        keys = sorted(map(str, parsed))[:5] if mapping else type(parsed).__name__
        raise DataError(f"{origin}: expected an object with an object 'results', got {keys}")
    records: list[Any] = []
    sizes: list[int] = []
    videos: dict[str, None] = {}
    for key, entries in results.items():
        video = str(key)
        if video in videos:  # a mapping may hold 1 and "1"
            raise DataError(f"{origin}: video {video!r} is listed more than once")
        videos[video] = None
        if not isinstance(entries, (list, tuple)):
            raise DataError(
                f"{origin}: video {video!r}: expected a list of predictions, "
                f"got {type(entries).__name__}"
            )
        records.extend(entries)
        sizes.append(len(entries))
    video_index = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    return _from_records(origin, tuple(videos), video_index, records)


def _from_lines(origin: str, raw: bytes) -> Detections:
    records: list[Any] = []
    videos: dict[str, int] = {}
    owners: list[int] = []
    for line_number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        record = parse_json(f"{origin}, line {line_number}", line)
        video = record.get("video") if isinstance(record, Mapping) else None
        if not isinstance(video, str):
            raise DataError(
                f"{origin}, line {line_number}: expected an object with video, segment, label and "
                f"score, got {record!r:.60}"
            )
        owners.append(videos.setdefault(video, len(videos)))
        records.append(record)
    return _from_records(origin, tuple(videos), np.array(owners, dtype=np.int64), records)


def _from_records(
    origin: str, videos: tuple[str, ...], video_index: Ints, records: list[Any]
) -> Detections:
    empty = np.zeros(0)
    # Only `describe` of this one is used: it names records before their values are known.
    names = Detections(videos, (), video_index, video_index, empty, empty, empty, origin)
    labels = _values(records, "label", names)
    if not set(map(type, labels)) <= {str, int}:
        labels = [plain(str(label) if isinstance(label, str) else label) for label in labels]
    if not set(map(type, labels)) <= {str, int}:
        i = next(i for i, label in enumerate(labels) if type(label) not in (str, int))
        raise DataError(
            f"{names.describe(i)}: expected label as a class name or number, got {labels[i]!r:.60}"
        )
    index: dict[str | int, int] = {}
    label_index = [index.setdefault(label, len(index)) for label in labels]
    start, end = segment_columns(_values(records, "segment", names), names.describe)
    detections = Detections(
        videos=videos,
        classes=tuple(index),
        video=video_index,
        label=np.array(label_index, dtype=np.int64),
        start=start,
        end=end,
        score=number_column(_values(records, "score", names), "score", names.describe),
        origin=origin,
    )
    detections.check()
    return detections


def _from_columns(origin: str, content: Any) -> Detections:
    keys = ("video-id", "t-start", "t-end", "label", "score")
    if not isinstance(content, Mapping) or not all(key in content for key in keys):
        got = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise DataError(f"{origin}: expected columns {', '.join(keys)}, got {got}")
    columns = {key: as_array(f"{origin}: column {key}", content[key]) for key in keys}
    sizes = {key: list(column.shape) for key, column in columns.items()}
    if any(len(size) != 1 or size != sizes["score"] for size in sizes.values()):
        raise DataError(f"{origin}: expected columns of equal length, got {sizes}")
    text_kinds = "UTO"  # text, text of NumPy 2, and objects, as which tables keep text
    kinds = {"video-id": text_kinds, "label": f"iu{text_kinds}"}
    kinds.update(dict.fromkeys(("t-start", "t-end", "score"), "iuf"))
    for key, column in columns.items():
        if len(column) and column.dtype.kind not in kinds[key]:
            raise DataError(f"{origin}: column {key}: expected another dtype, got {column.dtype}")
    names = columns["video-id"].tolist()
    if not all(isinstance(name, str) for name in names):
        i = next(i for i, name in enumerate(names) if not isinstance(name, str))
        raise DataError(f"{origin}: column video-id: expected names, got {names[i]!r:.60}")
    videos: dict[str, int] = {}
    owners = [videos.setdefault(str(video), len(videos)) for video in names]
    labels: dict[str | int, int] = {}
    own = plain(as_labels(f"{origin}: column label", columns["label"]))
    label = [labels.setdefault(name, len(labels)) for name in own]
    detections = Detections(
        videos=tuple(videos),
        classes=tuple(labels),
        video=np.array(owners, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        start=columns["t-start"].astype(np.float64),
        end=columns["t-end"].astype(np.float64),
        score=columns["score"].astype(np.float64),
        origin=origin,
    )
    detections.check()
    return detections


def write_results(
    path: FilePath,
    detections: Mapping[str, VideoDetections] | Detections,
    classes: Sequence[str] | Sequence[int] | npt.ArrayLike | None = None,
    *,
    version: str = "tal_fast",
    model: str = "",
) -> Path:
    """Writes a results JSON, whole or not at all.

    Numbers are written as float64 in the shortest form that reads back to the same bits.

    Args:
        path: file to write; an existing one is replaced in one step.
        detections: video name to (segments [n, 2] in seconds, labels [n] as names or indices,
            scores [n]), or :class:`Detections`.
        classes: class names, or their numbers (``label_id``); needed with a mapping.
        version: value of the file's key ``version``.
        model: what predicted; value of the key ``model``, which is not there without one.

    Returns:
        The path.

    Raises:
        DataError: if a record is bad (see :meth:`Detections.from_videos`), or the file cannot be
            written.
    """
    if not isinstance(detections, Detections):
        if classes is None:
            raise DataError(f"{os.fspath(path)}: expected classes with a mapping, got None")
        detections = Detections.from_videos(detections, classes, origin=os.fspath(path))
    results = detections.to_results(version=version, model=model)
    return write_text_atomically(path, json.dumps(results, allow_nan=False) + "\n")


def predicting_model(path: FilePath) -> str | None:
    """Returns the ``model`` of a file that :func:`write_results` wrote; None where nothing tells.

    It stands before the detections, which are not read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    begin, found, _ = head.partition(b'"results"')
    try:
        fields = json.loads(begin.rstrip().rstrip(b",") + b"}")
    except ValueError:
        return None
    model = fields.get("model") if found and isinstance(fields, dict) else None
    return model if isinstance(model, str) and model else None


def _values(records: list[Any], key: str, names: Detections) -> list[Any]:
    try:
        return [record[key] for record in records]
    except (KeyError, TypeError, IndexError):
        pass
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise DataError(
                f"{names.describe(i)}: expected an object with segment, label and score, "
                f"got {record!r:.60}"
            )
        if key not in record:
            raise DataError(f"{names.describe(i)}: no {key!r} among {sorted(map(str, record))}")
    raise AssertionError("a column of records was refused")  # pragma: no cover
