# SPDX-License-Identifier: Apache-2.0
"""HAPT: postural transitions and activities from a waist-worn phone, as UCI distributes them.

Reyes-Ortiz, Oneto, Samà, Parra, Anguita: Transition-Aware Human Activity Recognition Using
Smartphones. Neurocomputing, 2015 (UCI data set 341). 61 recordings of 30 people at 50 Hz with
acceleration (g) and angular velocity (rad/s), three axes each.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotations import Annotations, Video, save_annotations
from tal_fast.data.dataset import DatasetSpec, FeatureSpec, save_spec
from tal_fast.data.files import directory_in_one_step
from tal_fast.data.prepare.report import RecordingReport
from tal_fast.errors import DataError, counted, os_reason
from tal_fast.typing import FilePath, Floats, VideoProgress

__all__ = ["prepare_hapt"]

FPS = 50.0
FRAMES = 50  # samples of one feature row: one second
STRIDE = 25  # samples between two rows: 50 % overlap
AXES = 6
RECORDINGS, TRAINING, TEST, SEGMENTS, CLASSES = 61, 42, 19, 1214, 12

CITATION = (
    "Jorge-L. Reyes-Ortiz, Luca Oneto, Albert Samà, Xavier Parra, Davide Anguita. "
    "Transition-Aware Human Activity Recognition Using Smartphones. Neurocomputing. Springer 2015."
)
_SIGNAL = re.compile(r"RawData/(acc|gyro)_exp(\d+)_user(\d+)\.txt$")

Signal = npt.NDArray[np.float32]


def prepare_hapt(
    archive: FilePath,
    out: FilePath,
    *,
    overwrite: bool = False,
    progress: VideoProgress | None = None,
) -> RecordingReport:
    """Makes a data directory from the HAPT archive.

    Features: windows of one second (50 samples) that start every half second, their six axes
    (acceleration x y z, angular velocity x y z) flattened sample by sample into 300 float32.
    Each *axis* is standardised: minus its mean, divided by its population standard deviation, over
    all samples of the training recordings. Samples after the last full window are left out.

    Annotations: sample numbers are 1-based and inclusive, so a segment is [(first - 1) / 50,
    last / 50] seconds. People listed in ``Test/subject_id_test.txt`` are subset ``validation``, the
    others ``training``.

    Args:
        archive: the zip as distributed.
        out: directory to make; it appears when it is complete.
        overwrite: replace an existing ``out``.
        progress: called with (recordings done, recordings in all, recording).

    Raises:
        DataError: if the archive is missing, broken or does not hold what HAPT holds, or ``out``
            exists or cannot be written.
    """
    source = Path(archive)
    with directory_in_one_step(out, overwrite=overwrite) as work:
        signals, annotations = _read_archive(source, progress)
        training = [name for name, v in annotations.videos.items() if v.subset == "training"]
        _check_counts(source, annotations, len(training))
        mean, std = _statistics([signals[name] for name in training])
        (work / "features").mkdir()
        rows = 0
        for name, signal in signals.items():
            features = _features((signal - mean) / std)
            np.save(work / "features" / f"{name}.npy", features)
            rows += len(features)
        save_annotations(annotations, work / "annotations.json", version="HAPT 2.1")
        feature = FeatureSpec(
            channels=FRAMES * AXES, stride=STRIDE, frames=FRAMES, fps=FPS, layout="TC"
        )
        save_spec(
            DatasetSpec(
                name="hapt", feature=feature, classes=annotations.classes, citation=CITATION
            ),
            work,
        )
    return RecordingReport(
        path=Path(out),
        recordings=len(signals),
        training=len(training),
        test=len(signals) - len(training),
        segments=annotations.num_instances,
        classes=len(annotations.classes),
        rows=rows,
        channels=FRAMES * AXES,
        seconds=sum(len(s) for s in signals.values()) / FPS,
        mean=tuple(float(x) for x in mean),
        std=tuple(float(x) for x in std),
    )


def _read_archive(
    source: Path, progress: VideoProgress | None
) -> tuple[dict[str, Signal], Annotations]:
    try:
        with zipfile.ZipFile(source) as archive:
            return _Archive(source, archive).read(progress)
    except FileNotFoundError:
        raise DataError(f"{source}: no such archive") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{source}: not a whole zip archive: {error}") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {os_reason(error)}") from error


class _Archive:
    """The members of one opened zip."""

    def __init__(self, source: Path, archive: zipfile.ZipFile) -> None:
        self.source = source
        self.archive = archive
        self.names = archive.namelist()

    def read(self, progress: VideoProgress | None) -> tuple[dict[str, Signal], Annotations]:
        members: dict[tuple[int, int], dict[str, str]] = {}
        for name in self.names:
            match = _SIGNAL.search(name)
            if match:
                key = int(match[2]), int(match[3])
                members.setdefault(key, {})[match[1]] = name
        if not members:
            raise DataError(
                f"{self.source}: expected signals RawData/acc_expXX_userYY.txt, got none among "
                f"{counted(len(self.names), 'file')}"
            )
        classes = self._classes()
        test_people = {int(x) for x in self._numbers("Test/subject_id_test.txt", 1)[:, 0]}
        labels = self._numbers("RawData/labels.txt", 5)
        signals: dict[str, Signal] = {}
        videos: dict[str, Video] = {}
        for done, (key, files) in enumerate(sorted(members.items())):
            name = f"exp{key[0]:02d}_user{key[1]:02d}"
            signals[name] = self._signal(name, files)
            mine = labels[(labels[:, 0] == key[0]) & (labels[:, 1] == key[1])]
            videos[name] = self._video(
                name, mine, len(signals[name]), key[1] in test_people, len(classes)
            )
            if progress is not None:
                progress(done + 1, len(members), name)
        annotations = Annotations(videos, classes)
        if annotations.num_instances != len(labels):
            raise DataError(
                f"{self.source}: RawData/labels.txt has {counted(len(labels), 'segment')}, of "
                "which only "
                f"{annotations.num_instances} belong to a recording"
            )
        return signals, annotations

    def _member(self, path: str) -> bytes:
        for name in self.names:
            if name == path or name.endswith("/" + path):
                return self.archive.read(name)
        raise DataError(f"{self.source}: no {path} in the archive")

    def _numbers(self, path: str, columns: int) -> Floats:
        return self._parse(path, self._member(path), columns).astype(np.float64)

    def _parse(self, path: str, table: bytes, columns: int) -> Floats:
        try:
            numbers = np.array(table.split(), dtype=np.float64)
        except ValueError as error:
            raise DataError(f"{self.source}: {path}: expected numbers: {error}") from error
        if not len(numbers) or len(numbers) % columns:
            raise DataError(
                f"{self.source}: {path}: expected {columns} numbers per line, "
                f"got {len(numbers)} in all"
            )
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0]) // columns
            raise DataError(f"{self.source}: {path}: a number in row {row} is not finite")
        return numbers.reshape(-1, columns)

    def _classes(self) -> tuple[str, ...]:
        fields = self._member("activity_labels.txt").decode("ascii", "replace").split()
        pairs = {int(n): label for n, label in zip(fields[::2], fields[1::2], strict=False)
                 if n.isdigit()}  # fmt: skip
        if sorted(pairs) != list(range(1, CLASSES + 1)):
            raise DataError(
                f"{self.source}: activity_labels.txt: expected labels 1 to {CLASSES}, "
                f"got {sorted(pairs)}"
            )
        return tuple(pairs[i] for i in range(1, CLASSES + 1))

    def _signal(self, name: str, files: dict[str, str]) -> Signal:
        """Returns [samples, 6]: acceleration, then angular velocity."""
        parts = []
        for kind in ("acc", "gyro"):
            if kind not in files:
                raise DataError(f"{self.source}: recording {name} has no {kind} file")
            parts.append(self._parse(files[kind], self.archive.read(files[kind]), AXES // 2))
        if len(parts[0]) != len(parts[1]):
            raise DataError(
                f"{self.source}: recording {name}: expected as many samples of angular velocity as "
                f"of acceleration, {len(parts[0])}, got {len(parts[1])}"
            )
        if len(parts[0]) < FRAMES:
            raise DataError(
                f"{self.source}: recording {name}: expected at least {counted(FRAMES, 'sample')}, "
                f"got {len(parts[0])}"
            )
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _video(
        self,
        name: str,
        labels: Floats,
        samples: int,
        test: bool,
        num_classes: int,
    ) -> Video:
        activity, first, last = labels[:, 2], labels[:, 3], labels[:, 4]
        bad = (activity < 1) | (activity > num_classes) | (first < 1) | (last < first)
        bad |= last > samples
        if bad.any():
            row = labels[int(np.flatnonzero(bad)[0])].astype(int).tolist()
            raise DataError(
                f"{self.source}: RawData/labels.txt: {counted(int(bad.sum()), 'segment')} of "
                f"recording {name} "
                f"are not within 1..{samples} or have no known activity, first {row}"
            )
        return Video(
            name=name,
            subset="validation" if test else "training",
            duration=samples / FPS,
            fps=FPS,
            segments=np.stack([(first - 1) / FPS, last / FPS], axis=1),
            labels=(activity - 1).astype(np.int64),
        )


def _check_counts(source: Path, annotations: Annotations, training: int) -> None:
    recordings = len(annotations.videos)
    labels = [v.labels for v in annotations.videos.values()]
    seen = len(np.unique(np.concatenate(labels))) if labels else 0
    counted = (recordings, training, recordings - training, annotations.num_instances, seen)
    expected = (RECORDINGS, TRAINING, TEST, SEGMENTS, CLASSES)
    if counted != expected:
        words = "{} recordings, {} training and {} test, {} segments, {} labels"
        raise DataError(
            f"{source}: expected {words.format(*expected)}; got {words.format(*counted)}"
        )


def _statistics(signals: list[Signal]) -> tuple[Signal, Signal]:
    """Returns mean and population standard deviation per axis, each float32 [6]."""
    count = sum(len(s) for s in signals)
    mean = sum(s.sum(axis=0, dtype=np.float64) for s in signals) / count
    square = sum(np.square(s - mean).sum(axis=0, dtype=np.float64) for s in signals)
    return mean.astype(np.float32), np.sqrt(square / count).astype(np.float32)


def _features(signal: Signal) -> Signal:
    """Returns [rows, 300]: windows of FRAMES samples every STRIDE samples, sample by sample."""
    rows = (len(signal) - FRAMES) // STRIDE + 1
    index = np.arange(rows)[:, None] * STRIDE + np.arange(FRAMES)[None, :]
    return np.ascontiguousarray(signal[index].reshape(rows, FRAMES * AXES), dtype=np.float32)
