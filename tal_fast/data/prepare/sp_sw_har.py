# SPDX-License-Identifier: Apache-2.0
"""sp-sw-har: people who stand up, walk, turn and sit down, with a phone and a watch.

Matey-Sanz, Casteleyn, Granell: Dataset of inertial measurements of smartphones and smartwatches for
human activity recognition. Data in Brief, 2023. Recordings of 23 people at about 102 Hz with
acceleration (m/s²) and angular velocity (rad/s), three axes each, and a label per sample.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotations import Annotations, Video, save_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, save_spec
from tal_fast.data.files import directory_in_one_step
from tal_fast.data.prepare.report import RecordingReport
from tal_fast.errors import ConfigError, DataError, counted
from tal_fast.typing import FilePath, Ints, VideoProgress

__all__ = ["prepare_sp_sw_har"]

FRAMES = 32  # samples of one feature row, about 0.31 s: transitions last 1.2 s in the median
STRIDE = 16
AXES = 6
BACKGROUND = "SEATED"
LABELS = (BACKGROUND, "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN")
# No split is official. Every fourth person is tested on.
TEST_PEOPLE = ("s04", "s08", "s12", "s16", "s20")
COLUMNS = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro", "timestamp", "label")
CITATION = (
    "Miguel Matey-Sanz, Sven Casteleyn, Carlos Granell. Dataset of inertial measurements of "
    "smartphones and smartwatches for human activity recognition. Data in Brief, 2023."
)
_NAME = re.compile(r"(s\d+)_\d+_(sp|sw)$")


@dataclass(frozen=True)
class _Recording:
    name: str
    person: str
    signal: npt.NDArray[np.float32]  # [T, 6]
    labels: Ints  # [T], index into LABELS
    rate: float  # samples per second


def prepare_sp_sw_har(
    source: FilePath,
    out: FilePath,
    *,
    device: str = "sp",
    test_people: Iterable[str] = TEST_PEOPLE,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> RecordingReport:
    """Makes a data directory from the sp-sw-har recordings.

    Features: windows of 32 samples that start every 16, their six axes flattened sample by sample
    into 192 float32. Each axis is standardised over all samples of the training recordings.

    Annotations: a segment is a run of equal labels, [first / rate, (last + 1) / rate] seconds. The
    clock of the recordings ticks in milliseconds and its samples arrive in bursts, so time is the
    sample's index over the recording's own mean rate. Runs of one sample are left out and counted.

    Args:
        source: the folder ``DATA`` of the data set (``s01/s01_01_sp.csv`` and so on), or an
            ``.npz`` with the arrays ``s01_01_sp`` (float [T, 6]), ``s01_01_sp_y`` (labels 0 to 4)
            and ``s01_01_sp_t`` (seconds).
        out: directory to make; it appears when it is complete.
        device: ``"sp"`` for the phone, ``"sw"`` for the watch.
        test_people: people of the subset ``validation``; the others are ``training``. There is no
            official split.
        overwrite: replace an existing ``out``.
        progress: called with (recordings done, recordings in all, recording).

    Raises:
        DataError: if the source is missing or does not hold such recordings, or ``out`` cannot be
            written.
        ConfigError: if ``device`` is unknown.
    """
    if device not in ("sp", "sw"):
        raise ConfigError(f"prepare: expected device sp or sw, got {device!r}")
    path = Path(source)
    recordings = _read(path, device, progress)
    people = sorted({recording.person for recording in recordings})
    tested = set(test_people)
    if not tested < set(people):
        unknown = sorted(tested - set(people))
        raise DataError(
            f"{path}: expected some of the {counted(len(people), 'person')} {people[0]} to "
            f"{people[-1]} to "
            f"test on, got {', '.join(unknown) or 'all of them'}"
        )
    mean, std = _statistics([r.signal for r in recordings if r.person not in tested])
    videos: dict[str, Video] = {}
    rows = single = 0
    with directory_in_one_step(out, overwrite=overwrite) as work:
        (work / "features").mkdir()
        for recording in recordings:
            features = _features((recording.signal - mean) / std)
            np.save(work / "features" / f"{recording.name}.npy", features)
            rows += len(features)
            videos[recording.name], slips = _video(recording, recording.person in tested)
            single += slips
        annotations = Annotations(videos, LABELS[1:])
        save_annotations(annotations, work / "annotations.json", version="sp-sw-har")
        # Each recording has its own rate.
        feature = FeatureSpec(channels=FRAMES * AXES, stride=STRIDE, frames=FRAMES, fps=None)
        spec = DatasetSpec("sp-sw-har", feature=feature, classes=LABELS[1:], citation=CITATION)
        save_spec(spec, work)
    training = sum(recording.person not in tested for recording in recordings)
    return RecordingReport(
        path=Path(out),
        recordings=len(recordings),
        people=len(people),
        training=training,
        test=len(recordings) - training,
        segments=annotations.num_instances,
        classes=len(LABELS) - 1,
        background=BACKGROUND,
        single_samples=single,
        rows=rows,
        channels=FRAMES * AXES,
        seconds=sum(len(r.signal) / r.rate for r in recordings),
        mean=tuple(float(x) for x in mean),
        std=tuple(float(x) for x in std),
    )


# ---- reading -----------------------------------------------------------------------------------


def _read(source: Path, device: str, progress: VideoProgress | None) -> list[_Recording]:
    if os.path.isdir(source):
        files = sorted(source.rglob(f"s*_{device}.csv"))
        names = {file.stem: file for file in files if _NAME.match(file.stem)}
        if not names:
            raise DataError(f"{source}: expected files s01/s01_01_{device}.csv, got none")
        recordings = []
        for done, (name, file) in enumerate(sorted(names.items()), 1):
            recordings.append(_from_csv(file))
            if progress is not None:
                progress(done, len(names), name)
        return recordings
    try:
        archive = np.load(source, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{source}: no such file or folder") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: not a whole .npz file: {error}") from error
    if isinstance(archive, np.ndarray):
        raise DataError(f"{source}: expected an .npz file of recordings, got one array")
    with archive:
        keys = sorted(key for key in archive.files if _NAME.match(key) and key.endswith(device))
        if not keys:
            raise DataError(f"{source}: expected arrays s01_01_{device}, got none")
        recordings = []
        for done, key in enumerate(keys, 1):
            parts = []
            for suffix in ("", "_y", "_t"):
                if key + suffix not in archive.files:
                    raise DataError(f"{source}: recording {key} has no array {key + suffix}")
                parts.append(archive[key + suffix])
            recordings.append(_checked(f"{source}: recording {key}", key, *parts))
            if progress is not None:
                progress(done, len(keys), key)
        return recordings


def _from_csv(file: Path) -> _Recording:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    header = tuple(lines[0].split(",")) if lines else ()
    if header != COLUMNS:
        raise DataError(f"{file}: expected columns {', '.join(COLUMNS)}, got {', '.join(header)}")
    fields = [line.split(",") for line in lines[1:]]
    short = next((i for i, row in enumerate(fields) if len(row) != len(COLUMNS)), None)
    if short is not None:
        raise DataError(f"{file}: line {short + 2}: expected {counted(len(COLUMNS), 'value')}")
    unknown = next((row[-1] for row in fields if row[-1] not in LABELS), None)
    if unknown is not None:
        raise DataError(f"{file}: expected labels {', '.join(LABELS)}, got {unknown!r}")
    try:
        numbers = np.array([row[:-1] for row in fields], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{file}: expected numbers: {error}") from error
    numbers = numbers.reshape(-1, AXES + 1)
    labels = np.array([LABELS.index(row[-1]) for row in fields], dtype=np.int64)
    # The clock of the files counts milliseconds.
    return _checked(str(file), file.stem, numbers[:, :AXES], labels, numbers[:, AXES] / 1000)


def _checked(
    where: str,
    name: str,
    signal: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    seconds: npt.NDArray[np.generic],
) -> _Recording:
    if signal.ndim != 2 or signal.shape[1] != AXES or len(signal) < FRAMES:
        raise DataError(
            f"{where}: expected at least {counted(FRAMES, 'sample')} of {AXES} axes, got shape "
            f"{list(signal.shape)}"
        )
    if labels.shape != signal.shape[:1] or seconds.shape != signal.shape[:1]:
        raise DataError(
            f"{where}: expected {len(signal)} labels and times, got {len(labels)} and "
            f"{len(seconds)}"
        )
    values = signal.astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(f"{where}: a number of sample {int(np.flatnonzero(bad)[0])} is not finite")
    numbers = labels.astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= len(LABELS):
        raise DataError(
            f"{where}: expected labels 0 to {len(LABELS) - 1}, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    times = seconds.astype(np.float64)
    span = float(times[-1] - times[0])
    if not span > 0:
        raise DataError(f"{where}: expected times that grow, got {times[0]} to {times[-1]}")
    match = _NAME.match(name)
    assert match is not None
    return _Recording(name, match[1], values, numbers, (len(times) - 1) / span)


# ---- making ------------------------------------------------------------------------------------


def _video(recording: _Recording, test: bool) -> tuple[Video, int]:
    """Returns the annotation, and the number of runs of one sample that were left out."""
    labels = recording.labels
    edges = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
    starts, ends = edges[:-1], edges[1:]
    long = ends - starts > 1
    kept = long & (labels[starts] != 0)
    return (
        Video(
            name=recording.name,
            subset="validation" if test else "training",
            duration=len(labels) / recording.rate,
            fps=recording.rate,
            segments=np.stack([starts[kept], ends[kept]], axis=1) / recording.rate,
            labels=labels[starts[kept]] - 1,
        ),
        int((~long).sum()),
    )


def _statistics(
    signals: list[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns mean and population standard deviation per axis, each float32 [6]."""
    every = np.concatenate(signals).astype(np.float64)
    return every.mean(axis=0).astype(np.float32), every.std(axis=0).astype(np.float32)


def _features(signal: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns [rows, 192]: windows of FRAMES samples every STRIDE samples, sample by sample."""
    windows = np.lib.stride_tricks.sliding_window_view(signal, FRAMES, axis=0)[::STRIDE]
    # [rows, 6, FRAMES] -> sample by sample
    return np.ascontiguousarray(windows.transpose(0, 2, 1).reshape(len(windows), -1), np.float32)
