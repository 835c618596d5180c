# SPDX-License-Identifier: Apache-2.0
"""HAPT as distributed: an archive of the same layout made here, and the real one where it is."""

import errno
import os
import zipfile

import numpy as np
import pytest

from tal_fast.data.annotations import load_annotations
from tal_fast.data.dataset import open_dataset
from tal_fast.data.prepare import hapt
from tal_fast.data.prepare.hapt import prepare_hapt
from tal_fast.errors import DataError

ROOT = "HAPT Data Set/"
NAMES = [
    "WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING",
    "STAND_TO_SIT", "SIT_TO_STAND", "SIT_TO_LIE", "LIE_TO_SIT", "STAND_TO_LIE", "LIE_TO_STAND",
]  # fmt: skip


class SmallHapt:
    """An archive of HAPT's layout; change ``members``, then write."""

    def __init__(self, path):
        self.path = path
        rng = np.random.default_rng(0)
        self.signals = {}
        self.members = {
            "README.txt": b"caf\xe9",
            "activity_labels.txt": "\n".join(f"{i + 1} {n}" for i, n in enumerate(NAMES)).encode(),
            "Train/subject_id_train.txt": b"1\n1\n3\n",
            "Test/subject_id_test.txt": b"2\n2\n",
        }
        labels = []
        for experiment, user, samples in ((1, 1, 500), (2, 1, 333), (3, 2, 400), (4, 3, 50)):
            signal = rng.normal(1.0, 3.0, (samples, 6)).round(6)
            self.signals[f"exp{experiment:02d}_user{user:02d}"] = signal
            for kind, part in (("acc", signal[:, :3]), ("gyro", signal[:, 3:])):
                text = "\n".join(" ".join(str(x) for x in row) for row in part) + "\n"
                name = f"RawData/{kind}_exp{experiment:02d}_user{user:02d}.txt"
                self.members[name] = text.encode()
            for i in range(3):
                labels.append(f"{experiment} {user} {(3 * experiment + i) % 12 + 1} {10 * i + 1} "
                              f"{10 * i + 10}")  # fmt: skip
        self.members["RawData/labels.txt"] = "\n".join(labels).encode()

    def write(self):
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.members.items():
                archive.writestr(ROOT + name, data)
        return self.path


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name, value in (("RECORDINGS", 4), ("TRAINING", 3), ("TEST", 1), ("SEGMENTS", 12)):
        monkeypatch.setattr(hapt, name, value)
    return SmallHapt(tmp_path / "hapt.zip")


def test_small_archive(small, tmp_path):
    calls = []
    report = prepare_hapt(small.write(), tmp_path / "out", progress=lambda *a: calls.append(a))
    assert (report.recordings, report.training, report.test) == (4, 3, 1)
    assert (report.segments, report.classes) == (12, 12)
    assert calls == [(i + 1, 4, name) for i, name in enumerate(small.signals)]
    assert "12 segments of 12 classes" in report.lines()
    data = open_dataset(tmp_path / "out")
    assert data.splits == {
        "train": ["exp01_user01", "exp02_user01", "exp04_user03"],
        "test": ["exp03_user02"],
    }
    assert data.classes == tuple(NAMES)
    assert data.grid("exp01_user01").to_grid(0.5) == 0.5
    # Segments are 1-based and inclusive samples at 50 Hz.
    np.testing.assert_array_equal(
        data.annotations.videos["exp01_user01"].segments, [[0, 0.2], [0.2, 0.4], [0.4, 0.6]]
    )
    training = np.concatenate([small.signals[v] for v in data.splits["train"]])
    mean, std = training.mean(0), training.std(0)
    np.testing.assert_allclose(report.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(report.std, std, rtol=1e-5)
    for name, signal in small.signals.items():
        features = np.load(tmp_path / "out" / "features" / f"{name}.npy")
        assert features.dtype == np.float32
        assert features.shape == ((len(signal) - 50) // 25 + 1, 300)
        for row in range(len(features)):
            expected = ((signal[row * 25 : row * 25 + 50] - mean) / std).reshape(-1)
            np.testing.assert_allclose(features[row], expected, rtol=1e-4, atol=1e-5)


def test_existing_output(small, tmp_path):
    prepare_hapt(small.write(), tmp_path / "out")
    with pytest.raises(DataError, match="out: already exists; --overwrite"):
        prepare_hapt(small.path, tmp_path / "out")
    prepare_hapt(small.path, tmp_path / "out", overwrite=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hapt.zip", "out"]


def drop(name):
    def change(small):
        del small.members[name]

    return change


def put(name, data):
    def change(small):
        small.members[name] = data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("RawData/gyro_exp02_user01.txt"), "recording exp02_user01 has no gyro file"),
        (drop("RawData/labels.txt"), r"no RawData/labels\.txt in the archive"),
        (drop("Test/subject_id_test.txt"), r"no Test/subject_id_test\.txt in the archive"),
        (drop("activity_labels.txt"), r"no activity_labels\.txt in the archive"),
        (put("activity_labels.txt", b"1 WALKING"), r"expected labels 1 to 12, got \[1\]"),
        (put("RawData/labels.txt", b"1 1 5"), "expected 5 numbers per line, got 3 in all"),
        (put("RawData/labels.txt", b"1 1 5 1 501"), r"exp01_user01 are not within 1\.\.500"),
        (put("RawData/labels.txt", b"1 1 13 1 50"), r"known activity, first \[1, 1, 13, 1, 50\]"),
        (put("RawData/labels.txt", b"1 1 5 0 50"), r"are not within 1\.\.500"),
        (put("RawData/labels.txt", b"9 1 5 1 50"), "1 segment, of which only 0 belong to a"),
        (put("RawData/labels.txt", b"1 1 5 1 50"), "expected 4 .*12 segments.* got .*1 seg"),
        (put("RawData/acc_exp01_user01.txt", b"1 2 x"), "acc_exp01_user01.txt: expected numbers"),
        (put("RawData/acc_exp01_user01.txt", b"1 2"), "expected 3 numbers per line, got 2"),
        (put("RawData/acc_exp01_user01.txt", b"1 2 nan"), "number in row 0 is not finite"),
        (put("RawData/acc_exp01_user01.txt", b"1 2 3 " * 499), "velocity as of accel.* 499"),
        (put("RawData/acc_exp04_user03.txt", b""), "expected 3 numbers per line, got 0"),
        (put("Test/subject_id_test.txt", b"3"), "expected .*3 training and 1 test.*; got"),
        (lambda s: s.members.clear(), "expected signals RawData/acc_expXX_userYY.txt, got none"),
    ],
)  # fmt: skip
def test_archive_that_is_not_hapt(small, tmp_path, change, message):
    change(small)
    if message.startswith("expected .*3 training"):
        # Person 3 instead of 2 is tested: still 3 and 1, so let 2 and 3 both be.
        small.members["Test/subject_id_test.txt"] = b"2 3"
    with pytest.raises(DataError, match=r"hapt\.zip: .*" + message):
        prepare_hapt(small.write(), tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["hapt.zip"]


def test_missing_and_broken_archives(small, tmp_path):
    with pytest.raises(DataError, match=r"hapt\.zip: no such archive"):
        prepare_hapt(small.path, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be read: expected a file, found"):
        prepare_hapt(tmp_path, tmp_path / "out")
    small.path.write_bytes(b"PK not really")
    with pytest.raises(DataError, match="not a whole zip archive: File is not a zip file"):
        prepare_hapt(small.path, tmp_path / "out")
    size = os.path.getsize(small.write())
    os.truncate(small.path, size // 2)
    with pytest.raises(DataError, match="not a whole zip archive"):
        prepare_hapt(small.path, tmp_path / "out")
    data = bytearray(small.write().read_bytes())
    data[size // 2] ^= 0xFF
    small.path.write_bytes(data)
    with pytest.raises(DataError, match="not a whole zip archive"):
        prepare_hapt(small.path, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["hapt.zip"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_ctrl_c_and_full_disk_leave_nothing(small, tmp_path, monkeypatch, error):
    saved = []

    def save(path, array):
        saved.append(path)
        if len(saved) == 3:
            raise error
        path.write_bytes(b"")

    monkeypatch.setattr(hapt.np, "save", save)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else DataError
    message = None if error is KeyboardInterrupt else "out: cannot be written: No space left"
    with pytest.raises(expected, match=message):
        prepare_hapt(small.write(), tmp_path / "out")
    assert len(saved) == 3
    assert [f.name for f in tmp_path.iterdir()] == ["hapt.zip"]


def test_ctrl_c_while_reading(small, tmp_path):
    def progress(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_hapt(small.write(), tmp_path / "out", progress=progress)
    assert [f.name for f in tmp_path.iterdir()] == ["hapt.zip"]


def test_the_real_archive(test_data, tmp_path):
    archive = test_data / "hapt_raw.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    report = prepare_hapt(archive, tmp_path / "out")
    found = (report.recordings, report.training, report.test, report.segments, report.classes)
    assert found == (61, 42, 19, 1214, 12)
    data = open_dataset(tmp_path / "out")
    assert data.channels == 300
    ours = load_annotations(tmp_path / "out" / "annotations.json")
    theirs = load_annotations(test_data / "hapt_annotations.json")
    assert ours.classes == theirs.classes
    assert sorted(ours.videos) == sorted(theirs.videos)
    for name, video in theirs.videos.items():
        mine = ours.videos[name]
        assert (mine.subset, mine.duration, mine.fps) == (video.subset, video.duration, video.fps)
        np.testing.assert_array_equal(mine.segments, video.segments)
        np.testing.assert_array_equal(mine.labels, video.labels)
    # Every training sample counts the same, so rows (which overlap) are standardised only nearly.
    rows = np.concatenate([np.load(data.features[v].path) for v in data.splits["train"]])
    axes = rows.reshape(-1, 6).astype(np.float64)
    assert np.abs(axes.mean(0)).max() < 0.01
    assert np.abs(axes.std(0) - 1).max() < 0.01
