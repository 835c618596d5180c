# SPDX-License-Identifier: Apache-2.0
"""The curve's numbers by hand, its picture and its page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from tal_fast.errors import DataError
from tal_fast.study.curve import (
    build_curve,
    build_curves,
    curve_csv,
    mean_and_deviation,
    trials_csv,
)
from tal_fast.study.display import curve_table, duration
from tal_fast.study.picture import curve_picture, figure_svg, save_pictures, tiou_picture
from tal_fast.study.report import coverage_rows, render_page
from tal_fast.study.settings import StudySpec, hash_settings

CLASSES = ["run", "jump & <throw>", "sit"]


def trial(fraction, repetition, value, *, videos=2, instances=10, classes=3, **result):
    return {
        "trial": f"p{round(100 * fraction):03d}_r{repetition}",
        "model": "tadtr-small",
        "settings": "x",
        "fraction": fraction,
        "repetition": repetition,
        "seed": 7,
        "seconds": 30.0,
        "threads": 1,
        "started": "2026-01-01T00:00:00Z",
        "sample": {
            "videos": ["v"] * videos,
            "instances": instances,
            "classes": CLASSES[:classes],
            "missing_classes": CLASSES[classes:],
        },
        "result": {
            "average_map": value,
            "map_per_threshold": {"0.5": value, "0.3": value + 0.1},
            "windows": 64,
            "steps": 8,
            **result,
        },
    }


RECORDS = [
    trial(1.0, 0, 0.8, videos=20, instances=100),
    trial(0.1, 1, 0.2, instances=11, classes=2),
    trial(0.1, 0, 0.1, instances=8, classes=1),
    trial(0.1, 2, 0.6, instances=14),
]
SETTINGS = {
    "model": "tadtr-small",
    "data": {"name": "toys", "classes": 3, "train_videos": 20, "test_videos": 5},
    "split": "data",
    "seed": 0,
    "config": {"training": {"epochs": 16}},
}


def study(**changes):
    run = {
        "started": "2026-01-01T00:00:00Z",
        "seconds": 75.0,
        "trials": 4,
        "jobs": 2,
        "threads": 1,
        "machine": {"cpu": "A <fast> one", "cores": 2, "isa": "avx2"},
    }
    return {
        "settings": SETTINGS,
        "hash": hash_settings(SETTINGS),
        "command": "tal-fast study run --data toys --out here",
        "request": {"trials": 4, "samplings": ["video"], "budgets": ["epochs"]},
        "runs": [run],
        **changes,
    }


class TestCurve:
    def test_by_hand(self):
        first, last = build_curve(RECORDS)
        # mean of 0.1, 0.2, 0.6 is 0.3; squared deviations 0.04 + 0.01 + 0.09 = 0.14, over 2, root
        assert first.mean == pytest.approx(0.3)
        assert first.deviation == pytest.approx(0.07**0.5)
        assert (first.fraction, first.n, first.videos, first.instances) == (0.1, 3, 2, 11)
        assert first.classes == 2
        assert first.values == (0.1, 0.2, 0.6)
        assert first.per_tiou["0.3"] == (pytest.approx(0.4), pytest.approx(0.07**0.5))
        assert (last.fraction, last.mean, last.deviation, last.n) == (1.0, 0.8, None, 1)
        assert last.per_tiou["0.5"] == (0.8, None)

    def test_one_value_has_no_deviation(self):
        assert mean_and_deviation([0.5]) == (0.5, None)
        assert mean_and_deviation([0.5, 0.5]) == (0.5, 0.0)

    def test_curve_csv(self):
        assert curve_csv(build_curves(RECORDS)) == (
            "sampling,budget,ema,p,videos,instances,classes,windows,steps,n,trials,"
            "mean,sd,sd_seeds,sd_draws,mean_0.3,sd_0.3,mean_0.5,sd_0.5\n"
            "video,epochs,off,0.1,2,11,2,64,8,3,3,"
            "0.300000,0.264575,,,0.400000,0.264575,0.300000,0.264575\n"
            "video,epochs,off,1,20,100,3,64,8,1,1,0.800000,,,,0.900000,,0.800000,\n"
        )

    def test_trials_csv(self):
        lines = trials_csv(RECORDS).splitlines()
        assert [line.split(",")[0] for line in lines[1:]] == [
            "p010_r0",
            "p010_r1",
            "p010_r2",
            "p100_r0",
        ]
        header = lines[0].split(",")
        row = dict(zip(header, lines[2].split(","), strict=True))
        assert row["average_map"] == row["map_0.5"] == "0.200000"
        assert row["missing_classes"] == "sit"
        assert (row["videos"], row["steps"], row["epochs"]) == ("2", "8", "")

    def test_results_without_steps(self):
        (curve,) = build_curves([trial(0.5, 0, 0.1, windows=None), trial(0.5, 1, 0.1)])
        assert curve.points[0].windows is None
        assert ",,8,2," in curve_csv([curve])

    def test_table(self):
        (curve,) = build_curves(RECORDS)
        table = curve_table(curve)
        assert list(table.columns[5].cells) == ["30.00 ± 26.46", "80.00"]

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.2, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (725, "12 min 05 s"),
            (12000, "3 h 20 min"),
        ],
    )
    def test_duration(self, seconds, text):
        assert duration(seconds) == text


class TestPicture:
    def test_files(self, tmp_path):
        paths = save_pictures(curve_picture(build_curve(RECORDS)), tmp_path, "curve")
        assert [path.name for path in paths] == ["curve.png", "curve.svg"]
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "curve.svg"]

    def test_every_trial_is_a_dot(self):
        (axes,) = curve_picture(build_curve(RECORDS)).axes
        dots = next(line for line in axes.lines if line.get_label() == "one trial")
        assert sorted(dots.get_ydata()) == pytest.approx([10, 20, 60, 80])
        mean = next(line for line in axes.lines if line.get_label() == "mean")
        assert list(mean.get_ydata()) == pytest.approx([30, 80])
        assert axes.get_ylim()[0] == 0

    def test_one_point(self):
        (axes,) = curve_picture(build_curve(RECORDS[:1])).axes
        assert not axes.collections  # no band
        assert len(tiou_picture(build_curve(RECORDS[:1])).axes) == 1

    def test_same_numbers_same_file(self):
        points = build_curve(RECORDS)
        assert figure_svg(curve_picture(points), "a") == figure_svg(curve_picture(points), "a")

    def test_unwritable(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere/curve\.png: cannot be written"):
            save_pictures(curve_picture(build_curve(RECORDS)), tmp_path / "nowhere", "curve")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.links += [value or "" for name, value in attributes if name == "xlink:href"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return render_page(study(), build_curve(RECORDS), RECORDS, subtitle="tadtr-small on toys")


class TestPage:
    def test_self_contained(self, page):
        parser = _Page()
        parser.feed(page)
        assert all(link.startswith("#") for link in parser.links)
        assert not {"script", "link", "img", "iframe"} & set(parser.tags)
        assert parser.tags.count("svg") == 2
        assert "@import" not in page
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))

    def test_content(self, page):
        parser = _Page()
        parser.feed(page)
        text = " ".join(parser.text.split())
        assert "How much data does tadtr-small need?" in text
        assert "30.00 ± 26.46" in text
        assert "tal-fast study run --data toys --out here" in text
        assert "jump & <throw>" in text
        assert "A <fast> one" in text
        assert "4 trials in 1 min 15 s, 2 at a time with 1 thread each" in text
        assert "epochs: 16" in text
        assert "repetition differs by training seed only" in text
        assert "asked for are complete" not in text

    def test_light_dark_print_phone(self, page):
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert 'name="viewport"' in page
        # The drawings follow the page's colours.
        assert "var(--ink)" in page
        assert "#1a1c20" not in page.split("</style>")[1]

    def test_unfinished_study_says_so(self):
        page = render_page(
            study(request={**study()["request"], "trials": 9}, runs=[]),
            build_curve(RECORDS),
            RECORDS,
            subtitle="x",
        )
        assert "4 of the 9 trials asked for are complete" in page
        assert "time of all trials" in page

    def test_no_remark_on_full_samples_without_one(self):
        page = render_page(study(), build_curve(RECORDS[1:]), RECORDS[1:], subtitle="x")
        assert "training seed only" not in page

    def test_coverage(self):
        rows = dict(coverage_rows(RECORDS, [0.1, 1.0]))
        assert rows == {
            "run": [1.0, 1.0],
            "jump & <throw>": [pytest.approx(2 / 3), 1.0],
            "sit": [pytest.approx(1 / 3), 1.0],
        }


def test_command_can_be_pasted(tmp_path):
    spec = StudySpec(
        data=tmp_path / "my data",
        out=tmp_path / "out",
        fractions=(0.1, 1.0),
        overrides=("training.epochs=3",),
        config=tmp_path / "c.yaml",
        jobs=2,
        threads=1,
    )
    command = spec.command()
    assert "--data '" in command
    assert "--fractions 0.1,1 --repetitions 5 --split data --seed 0" in command
    assert "--set training.epochs=3 --jobs 2 --threads 1 --out" in command
