# SPDX-License-Identifier: Apache-2.0
import errno
import filecmp

import numpy as np
import pytest

from tal_fast.data import synthetic
from tal_fast.data.annotations import load_annotations
from tal_fast.data.dataset import open_dataset
from tal_fast.data.synthetic import CLASS_STATISTICS, CLASSES, SIZES, make_synthetic
from tal_fast.data.windows import WindowSet
from tal_fast.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return open_dataset(make_synthetic(tmp_path_factory.mktemp("synthetic") / "demo"))


def test_demo_has_every_class_in_both_splits(demo):
    assert (demo.num_classes, demo.channels) == (20, 64)
    assert [len(v) for v in demo.splits.values()] == [112, 48]
    for split, least in (("train", 4), ("test", 2)):
        labels = np.concatenate(
            [v.labels for v in demo.annotations.select(demo.splits[split]).videos.values()]
        )
        assert np.bincount(labels, minlength=20).min() >= least
    windows = WindowSet(demo, demo.splits["train"])
    assert 112 <= len(windows) <= 2.2 * 112


def test_same_seed_same_bytes(demo, tmp_path):
    again = make_synthetic(tmp_path / "again")
    other = make_synthetic(tmp_path / "other", seed=1, train_videos=3, test_videos=2)
    files = [f"features/{v}.npy" for v in demo.features] + ["annotations.json", "dataset.yaml"]
    same, different, missing = filecmp.cmpfiles(demo.path, again, files, shallow=False)
    assert (len(same), different, missing) == (len(files), [], [])
    one = "features/video_training_0000000.npy"
    assert not filecmp.cmp(demo.path / one, other / one, shallow=False)


def test_hard_demo_has_the_same_instances_under_other_features(demo, tmp_path):
    hard = make_synthetic(tmp_path / "hard", size="demo-hard")
    assert (hard / "annotations.json").read_bytes() == (demo.path / "annotations.json").read_bytes()
    name = f"{demo.splits['train'][0]}.npy"
    easy_rows, hard_rows = (np.load(folder / "features" / name) for folder in (demo.path, hard))
    assert easy_rows.shape == hard_rows.shape
    assert not np.allclose(easy_rows, hard_rows)


def test_features_are_finite_and_vary_with_the_class(demo):
    """A nearest-mean classifier on training rows finds the class of most test rows."""
    rows, labels = {}, {}
    for split, videos in demo.splits.items():
        x, y = [], []
        for name in videos:
            values = np.load(demo.features[name].path)
            assert np.isfinite(values).all()
            video = demo.annotations.videos[name]
            for (start, end), label in zip(
                demo.grid(name).to_grid(video.segments), video.labels, strict=True
            ):
                if CLASSES[label] != "Diving":  # shares segments with CliffDiving
                    inside = values[max(0, round(start)) : max(round(start) + 1, round(end))]
                    x.append(inside.mean(0))
                    y.append(label)
        rows[split], labels[split] = np.array(x), np.array(y)
    kinds = np.unique(labels["train"])
    means = np.stack([rows["train"][labels["train"] == k].mean(0) for k in kinds])
    distance = ((rows["test"][:, None] - means[None]) ** 2).sum(-1)
    right = (kinds[distance.argmin(1)] == labels["test"]).mean()
    assert 0.5 < right < 1.0  # neither hopeless nor trivial; by chance it is 0.05


def test_real_length_videos_have_the_statistics_of_thumos14(tmp_path):
    data = open_dataset(make_synthetic(tmp_path / "x", size="thumos14", channels=8))
    assert len(data.features) == 413
    assert sum(len(v.labels) == 0 for v in data.annotations.videos.values()) == 1
    videos = list(data.annotations.videos.values())
    seconds = np.array([v.duration for v in videos])
    counts = np.array([len(v.labels) for v in videos])
    lengths = np.concatenate([v.segments[:, 1] - v.segments[:, 0] for v in videos])
    # THUMOS14: 154.6 s, 15.4 instances (median 8), 3.0 s long; 31 % of the time is annotated.
    assert 130 < np.median(seconds) < 185
    assert 10 < counts.mean() < 20
    assert 5 <= np.median(counts) <= 11
    assert 2.2 < np.median(lengths) < 4.0
    assert 0.18 < lengths.sum() / seconds.sum() < 0.42
    assert {v.fps for v in videos} == {30.0, 29.97, 25.0, 24.0}


def test_constants_are_those_of_the_annotations(test_data):
    file = test_data / "thumos14.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    real = load_annotations(file, out_of_range="keep")
    assert real.classes == CLASSES
    seconds = np.array([v.duration for v in real.videos.values()])
    demo = SIZES["thumos14"]
    assert np.log(seconds).mean() == pytest.approx(demo.log_seconds, abs=1e-3)
    assert np.log(seconds).std() == pytest.approx(demo.log_seconds_spread, abs=1e-3)
    # Number of instances: a constant per class and a slope on the length of the video.
    pairs = [
        (label, np.log(video.duration) - synthetic.LOG_SECONDS, np.log(number))
        for video in real.videos.values()
        for label, number in enumerate(np.bincount(video.labels, minlength=20))
        if number
    ]
    labels, x, y = (np.array(column) for column in zip(*pairs, strict=True))
    design = np.c_[np.eye(20)[labels], x]
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    assert fitted[-1] == pytest.approx(synthetic.COUNT_SLOPE, abs=1e-3)
    assert (y - design @ fitted).std() == pytest.approx(synthetic.COUNT_SPREAD, abs=1e-3)
    for label, (name, statistics) in enumerate(CLASS_STATISTICS.items()):
        mine = [v.segments[v.labels == label] for v in real.videos.values()]
        mine = [s[np.argsort(s[:, 0])] for s in mine if len(s)]
        lengths = np.concatenate([s[:, 1] - s[:, 0] for s in mine])
        gaps = np.concatenate([s[1:, 0] - s[:-1, 1] for s in mine])
        gaps = gaps[gaps > 0]
        found = (
            len(mine), np.exp(fitted[label]), np.median(lengths), np.log(lengths).std(),
            np.median(gaps), np.log(gaps).std(),
        )  # fmt: skip
        assert found == pytest.approx(statistics, abs=0.02), name


def test_half_precision_and_other_sizes(tmp_path):
    path = make_synthetic(
        tmp_path / "x", size="small", train_videos=5, test_videos=3, channels=16, dtype="float16"
    )
    data = open_dataset(path)
    assert (len(data.features), data.channels) == (8, 16)
    assert {e.dtype for e in data.features.values()} == {"float16"}
    again = make_synthetic(path, size="demo", train_videos=2, test_videos=1, overwrite=True)
    assert len(open_dataset(again).features) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "dmo"}, "size among demo, .*, thumos14, got 'dmo'; did you mean 'demo'"),
        ({"train_videos": 0}, "expected train_videos >= 1, got 0"),
        ({"channels": 4}, "expected channels >= 8, got 4"),
        ({"dtype": "int8"}, "expected dtype float32 or float16, got 'int8'"),
    ],
)  # fmt: skip
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_synthetic(tmp_path / "x", **arguments)


def test_existing_output_and_full_disk(tmp_path, monkeypatch):
    make_synthetic(tmp_path / "x", train_videos=1, test_videos=1)
    with pytest.raises(DataError, match="already exists"):
        make_synthetic(tmp_path / "x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synthetic.np, "save", full)
    with pytest.raises(DataError, match="y: cannot be written: No space left on device"):
        make_synthetic(tmp_path / "y")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]
