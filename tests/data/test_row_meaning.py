# SPDX-License-Identifier: Apache-2.0
"""What rows stand for: which data a model may look at, and which is other data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tal_fast.data import open_dataset
from tal_fast.data.clips import VideoSet
from tal_fast.data.row_meaning import RowMeaning, row_meaning
from tal_fast.data.synthetic import make_synthetic
from tal_fast.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "data"
    make_synthetic(folder, train_videos=6, test_videos=4, channels=8, seed=3)
    return open_dataset(folder)


def timed(data, **feature):
    """The same data with other words about its rows."""
    spec = dataclasses.replace(data.spec, feature=dataclasses.replace(data.spec.feature, **feature))
    return dataclasses.replace(data, spec=spec)


def with_fps(data, numbers):
    """The same data with frames per second of each video, in turn."""
    videos = {
        name: dataclasses.replace(video, fps=numbers[index % len(numbers)])
        for index, (name, video) in enumerate(data.annotations.videos.items())
    }
    annotations = dataclasses.replace(data.annotations, videos=videos)
    return timed(dataclasses.replace(data, annotations=annotations), fps=None)


def with_rows(data, rows):
    """The same data with so many rows of each video."""
    extents = {name: dataclasses.replace(e, rows=rows) for name, e in data.features.items()}
    return dataclasses.replace(data, features=extents)


def meaning(data, videos=None, **options):
    return row_meaning(VideoSet(data, videos or data.splits["test"], **options))


def test_rate_and_what_a_row_sees(data):
    known = meaning(timed(data, stride=10.0, frames=50.0, fps=50.0))
    assert (known.rate, known.seen) == ((5.0, 5.0), (1.0, 1.0))
    assert str(known) == "5 rows per second, each seeing 1 s"
    assert not known.stretched
    assert RowMeaning.from_dict(known.to_dict()) == known
    assert known.difference(known) is None
    assert known.beyond(known) is None


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"stride": 5.0}, "5 rows per second, there are 10"),
        ({"fps": 25.0}, "5 rows per second, there are 2.5"),
        ({"frames": 10.0}, "rows that see 1 s each, there they see 0.2 s"),
        ({"stride": 20.0, "frames": 100.0, "fps": 100.0}, None),
        ({"fps": 49.95}, None),
    ],
)
def test_another_time_axis(data, feature, words):
    spec = {"stride": 10.0, "frames": 50.0, "fps": 50.0}
    known, other = (meaning(timed(data, **given)) for given in (spec, {**spec, **feature}))
    assert known.difference(other) == words


def test_videos_of_a_split_are_judged_by_the_whole_data(data):
    """Each video has frames of its own: those that only the test has are no other features."""
    mixed = with_fps(timed(data, stride=4.0, frames=4.0), [25.0, 30.0])
    names = list(mixed.annotations.videos)
    one, other = meaning(mixed, names[0::2]), meaning(mixed, names[1::2])
    assert one.rate == (6.25, 7.5)
    assert one.difference(other) is None
    assert one.beyond(other) is None
    twice = meaning(with_fps(timed(data, stride=4.0, frames=4.0), [50.0, 60.0]))
    assert one.difference(twice) == "6.25 to 7.5 rows per second, there are 12.5 to 15"


def test_some_videos_of_another_rate(data):
    known = meaning(with_fps(timed(data, stride=1.0, frames=1.0), [10.0, 12.0]))
    wide = meaning(with_fps(timed(data, stride=1.0, frames=1.0), [12.0, 24.0]))
    assert known.difference(wide) is None
    assert known.beyond(wide) == "10 to 12 rows per second, there are 12 to 24"
    assert wide.beyond(meaning(with_fps(timed(data, stride=1.0, frames=1.0), [24.0]))) is None


def test_a_model_that_resamples_every_video_minds_no_rate(data):
    slow, fast = (timed(data, stride=stride, frames=stride, fps=50.0) for stride in (10.0, 5.0))
    resized = meaning(slow, resize=16)
    assert resized.stretched
    assert resized.difference(meaning(fast, resize=16)) is None
    assert resized.beyond(meaning(fast, resize=16)) is None
    assert resized.difference(meaning(fast, data.splits["test"][:1], resize=16)) is None


def test_features_that_were_resampled_before(data):
    """Each video's own fps, one number of rows: what ``prepare activitynet13 --resized`` makes."""
    short = with_fps(with_rows(timed(data, stride=1.0, frames=1.0), 100), [1.0, 5.0])
    known = meaning(short)
    assert known.stretched
    long = with_fps(with_rows(timed(data, stride=1.0, frames=1.0), 100), [0.1])
    assert known.difference(meaning(long)) is None
    plain = with_fps(with_rows(timed(data, stride=1.0, frames=1.0), 700), [30.0])
    words = "videos of 100 rows each, there are videos of 700 rows each"
    assert known.difference(meaning(plain)) == words


def test_streams_in_another_order(data):
    def streamed(names, widths):
        first, second = widths
        extents = {
            name: dataclasses.replace(
                e, columns=first, beside=(dataclasses.replace(e, columns=second),)
            )
            for name, e in data.features.items()
        }
        spec = dataclasses.replace(data.spec, features=names)
        return meaning(dataclasses.replace(data, spec=spec, features=extents))

    known = streamed(["a/rgb", "a/flow"], (4, 4))
    swapped = "the streams rgb (4), flow (4), in this order, there are flow (4), rgb (4)"
    assert known.difference(streamed(["b/flow", "b/rgb"], (4, 4))) == swapped
    assert known.difference(streamed(["c/rgb_new", "c/flow_new"], (4, 4))) is None
    assert "rgb (2), flow (6)" in known.difference(streamed(["a/rgb", "a/flow"], (2, 6)))
    assert known.difference(meaning(data)) is None  # packed into one: nobody can know


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rate", [5.0]),
        ("rate", [0.0, 5.0]),
        ("rate", ["a", "b"]),
        ("seen", [np.nan, 1.0]),
        ("seen", [1.0, np.inf]),
        ("rows", "x"),
        ("rows", True),
        ("stretched", 1),
        ("streams", [["a"]]),
        ("streams", [[1, 1]]),
        ("streams", None),
    ],
)
def test_what_is_no_meaning(data, key, value):
    good = meaning(data).to_dict()
    for bad in ({**good, key: value}, {k: v for k, v in good.items() if k != key}, [], 3):
        with pytest.raises(DataError, match="expected what the rows stand for under 'rows', got"):
            RowMeaning.from_dict(bad)
