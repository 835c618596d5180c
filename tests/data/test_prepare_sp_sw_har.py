# SPDX-License-Identifier: Apache-2.0
"""sp-sw-har as distributed (CSV) and packed (npz): small ones made here, the real one if there."""

import numpy as np
import pytest

from tal_fast.data.dataset import open_dataset
from tal_fast.data.prepare.sp_sw_har import COLUMNS, LABELS, TEST_PEOPLE, prepare_sp_sw_har
from tal_fast.data.validation import validate_dataset
from tal_fast.errors import ConfigError, DataError

# label, samples; the third run is one sample long
RUNS = [(0, 40), (1, 30), (2, 1), (3, 50), (4, 45), (0, 1), (2, 33)]


@pytest.fixture
def recordings():
    rng = np.random.default_rng(0)
    found = {}
    for person in ("s01", "s02", "s04", "s05"):
        for take in (1, 2):
            labels = np.concatenate([np.full(n + take, label) for label, n in RUNS[:2]])
            labels = np.concatenate([labels, *(np.full(n, label) for label, n in RUNS[2:])])
            signal = rng.normal(2, 3, (len(labels), 6)).astype(np.float32)
            seconds = np.arange(len(labels)) // 4 * 4 / 100  # in bursts of four
            found[f"{person}_{take:02d}_sp"] = (signal, labels.astype(np.int8), seconds)
    return found


def as_npz(recordings, path):
    arrays = {}
    for name, (signal, labels, seconds) in recordings.items():
        arrays |= {name: signal, f"{name}_y": labels, f"{name}_t": seconds.astype(np.float32)}
    np.savez(path, **arrays)
    return path


def as_csv(recordings, path):
    for name, (signal, labels, seconds) in recordings.items():
        (path / "DATA" / name[:3]).mkdir(parents=True, exist_ok=True)
        lines = [",".join(COLUMNS)]
        for row, label, second in zip(signal.tolist(), labels, seconds, strict=True):
            numbers = [*map(repr, row), str(1657533977813 + round(1000 * second))]
            lines.append(",".join([*numbers, LABELS[label]]))
        (path / "DATA" / name[:3] / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return path / "DATA"


@pytest.mark.parametrize("form", [as_npz, as_csv])
def test_small_recordings(recordings, tmp_path, form):
    source = form(recordings, tmp_path / "x.npz" if form is as_npz else tmp_path)
    calls = []
    report = prepare_sp_sw_har(
        source, tmp_path / "out", test_people=["s04"], progress=lambda *args: calls.append(args)
    )
    assert calls == [(i + 1, 8, name) for i, name in enumerate(recordings)]
    assert (report.recordings, report.people, report.training, report.test) == (8, 4, 6, 2)
    assert (report.segments, report.single_samples) == (8 * 4, 8 * 2)
    assert "16 segments of one sample are left out" in report.lines()[1]
    data = open_dataset(tmp_path / "out")
    assert data.classes == LABELS[1:]
    assert data.splits["test"] == ["s04_01_sp", "s04_02_sp"]
    train = [r[0] for name, r in recordings.items() if name[:3] != "s04"]
    mean, std = np.concatenate(train).mean(0), np.concatenate(train).std(0)
    for name, (signal, labels, seconds) in recordings.items():
        video = data.annotations.videos[name]
        rate = (len(labels) - 1) / seconds[-1]
        assert video.fps == pytest.approx(rate, rel=1e-5)
        assert video.duration == pytest.approx(len(labels) / rate, rel=1e-5)
        edges = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 3),
                 np.flatnonzero(labels == 4), np.flatnonzero(labels == 2)[1:]]  # fmt: skip
        expected = [[run[0] / rate, (run[-1] + 1) / rate] for run in edges]
        np.testing.assert_allclose(video.segments, expected, rtol=1e-5)
        assert video.labels.tolist() == [0, 2, 3, 1]
        features = np.load(tmp_path / "out" / "features" / f"{name}.npy")
        assert features.shape == ((len(labels) - 32) // 16 + 1, 192)
        assert features.dtype == np.float32
        for row in range(len(features)):
            rows = (signal[row * 16 : row * 16 + 32] - mean) / std
            np.testing.assert_allclose(features[row], rows.reshape(-1), rtol=1e-4, atol=1e-5)
    found = validate_dataset(tmp_path / "out", group=r"(s\d+)_")
    # The 33 samples at the end of each recording reach half beyond the last row.
    assert [(f.check, f.examples) for f in found.findings] == [
        ("never-learned", ("'WALKING': 6 of 6",))
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("s01_01_sp_y"), "recording s01_01_sp has no array s01_01_sp_y"),
        (lambda a: a.update(s01_01_sp=np.ones((3, 6))), r"at least 32 samples .* \[3, 6\]"),
        (lambda a: a.update(s01_01_sp=np.ones((99, 5))), r"of 6 axes, got shape \[99, 5\]"),
        (lambda a: a.update(s01_01_sp_y=np.ones(9)), "labels and times, got 9 and"),
        (lambda a: a["s01_01_sp"].__setitem__((7, 2), np.nan), "number of sample 7 is not finite"),
        (lambda a: a["s01_01_sp_y"].__setitem__(3, 5), "expected labels 0 to 4, got 0 to 5"),
        (lambda a: a["s01_01_sp_t"].fill(1), r"times that grow, got 1\.0 to 1\.0"),
        (lambda a: a.clear(), "expected arrays s01_01_sp, got none"),
    ],
)
def test_faulty_archives(recordings, tmp_path, change, message):
    arrays = dict(np.load(as_npz(recordings, tmp_path / "x.npz")))
    change(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=r"x\.npz: .*" + message):
        prepare_sp_sw_har(tmp_path / "x.npz", tmp_path / "out", test_people=["s04"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected columns x_acc, .*, got $"),
        ("a,b\n1,2\n", "expected columns x_acc, .* got a, b"),
        (",".join(COLUMNS) + "\n1,2\n", "line 2: expected 8 values"),
        (",".join(COLUMNS) + "\n1,2,3,4,5,6,7,RUN\n", "expected labels SEATED, .* got 'RUN'"),
        (",".join(COLUMNS) + "\n1,2,x,4,5,6,7,SEATED\n", "expected numbers"),
        (",".join(COLUMNS) + "\n", "at least 32 samples"),
    ],
)
def test_faulty_csv(recordings, tmp_path, text, message):
    source = as_csv(recordings, tmp_path)
    (source / "s02" / "s02_01_sp.csv").write_text(text)
    with pytest.raises(DataError, match=r"s02_01_sp\.csv: .*" + message):
        prepare_sp_sw_har(source, tmp_path / "out", test_people=["s04"])


def test_bad_arguments_and_files(recordings, tmp_path):
    source = as_npz(recordings, tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="expected device sp or sw, got 'phone'"):
        prepare_sp_sw_har(source, tmp_path / "out", device="phone")
    with pytest.raises(DataError, match="4 people s01 to s05 to test on, got s08, s12, s16, s20"):
        prepare_sp_sw_har(source, tmp_path / "out")
    with pytest.raises(DataError, match="to test on, got all of them"):
        prepare_sp_sw_har(source, tmp_path / "out", test_people=["s01", "s02", "s04", "s05"])
    with pytest.raises(DataError, match="expected arrays s01_01_sw, got none"):
        prepare_sp_sw_har(source, tmp_path / "out", device="sw")
    with pytest.raises(DataError, match=r"gone\.npz: no such file or folder"):
        prepare_sp_sw_har(tmp_path / "gone.npz", tmp_path / "out")
    (tmp_path / "b.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"b\.npz: not a whole \.npz file"):
        prepare_sp_sw_har(tmp_path / "b.npz", tmp_path / "out")
    np.save(tmp_path / "c.npy", np.ones(3))
    with pytest.raises(DataError, match=r"expected an \.npz file of recordings, got one array"):
        prepare_sp_sw_har(tmp_path / "c.npy", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected files s01/s01_01_sp\.csv, got none"):
        prepare_sp_sw_har(tmp_path / "empty", tmp_path / "out")


def test_the_real_recordings(test_data, tmp_path):
    source = test_data / "sp_sw_har_phone.npz"
    if not source.is_file():
        pytest.skip(f"no {source}")
    report = prepare_sp_sw_har(source, tmp_path / "out")
    assert (report.recordings, report.people, report.single_samples) == (223, 23, 29)
    # 470 WALKING without 24 of one sample, 223 STANDING_UP, 446 TURNING, 223 SITTING_DOWN
    assert report.segments == 446 + 223 + 446 + 223
    data = open_dataset(tmp_path / "out")
    assert {name[:3] for name in data.splits["test"]} == set(TEST_PEOPLE)
    result = validate_dataset(tmp_path / "out", group=r"(s\d+)_")
    assert result.ok, result.table()
    assert result.fitting == 1
