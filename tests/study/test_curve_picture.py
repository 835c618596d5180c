# SPDX-License-Identifier: Apache-2.0
"""The pictures of curves: what is in them, and how they come into files and pages."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from made_records import BUDGETS, RECORDS, trial

from tal_fast.curves.figures import SERIES, draw_svg, page_svg, page_svgs, save_pictures
from tal_fast.errors import DataError
from tal_fast.study.report.pictures import (
    curve_panels,
    curve_picture,
    curves_picture,
    shown_dots,
    shows_all_dots,
    tiou_picture,
)
from tal_fast.study.results import build_curves


def crossed(samplings=("video",), budgets=("epochs",), modes=("off",)):
    """Curves over everything, of two levels."""
    return build_curves(
        trial(fraction, 0, dict.fromkeys(modes, fraction / 2), sampling=sampling, budget=budget)
        for fraction in (0.1, 1.0)
        for sampling in samplings
        for budget in budgets
    )


MODES = ("off", "plain", "warmup", "corrected")


class TestOneCurve:
    def test_files(self, tmp_path):
        paths = save_pictures(curve_picture(build_curves(RECORDS)[0].points), tmp_path, "curve")
        assert [path.name for path in paths] == ["curve.png", "curve.svg"]
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "curve.svg"]

    def test_every_trial_is_a_dot(self):
        (axes,) = curve_picture(build_curves(RECORDS)[0].points).axes
        dots = next(line for line in axes.lines if line.get_label() == "one trial")
        assert sorted(dots.get_ydata()) == pytest.approx([10, 20, 60, 80])
        mean = next(line for line in axes.lines if line.get_label() == "mean")
        assert list(mean.get_ydata()) == pytest.approx([30, 80])
        assert axes.get_ylim()[0] == 0

    def test_a_name_that_looks_like_a_formula(self):
        svg = draw_svg(curve_picture(build_curves(RECORDS)[0].points, model=r"$\frac{1}$"), "x")
        assert r"$\frac{1}$" in svg

    def test_one_point(self):
        (axes,) = curve_picture(build_curves(RECORDS[:1])[0].points).axes
        assert not axes.collections  # no band
        assert len(tiou_picture(build_curves(RECORDS[:1])[0].points).axes) == 1

    def test_same_numbers_same_file(self):
        points = build_curves(RECORDS)[0].points
        assert page_svg(draw_svg(curve_picture(points), "a"), "a") == page_svg(
            draw_svg(curve_picture(points), "a"), "a"
        )

    def test_drawing_twice_changes_nothing(self):
        figure = curve_picture(build_curves(RECORDS)[0].points)
        assert draw_svg(figure, "a") == draw_svg(figure, "a")

    def test_unwritable(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere/curve\.png: cannot be written"):
            save_pictures(
                curve_picture(build_curves(RECORDS)[0].points), tmp_path / "nowhere", "curve"
            )


class TestDots:
    def test_few_are_all_there(self):
        curves = build_curves(RECORDS)
        assert shows_all_dots(curves)
        assert len(shown_dots(curves[0].points)) == 4

    def test_many_keep_their_extremes_and_density(self):
        values = [(0.5 * index / 3000) ** 2 for index in range(3000)]
        (curve,) = build_curves(trial(0.5, index, value) for index, value in enumerate(values))
        dots = shown_dots(curve.points)
        assert not shows_all_dots([curve])
        assert len(dots) == 1500
        shown = [value / 100 for _, value in dots]
        assert (min(shown), max(shown)) == pytest.approx((values[0], values[-1]))
        assert sorted(shown)[750] == pytest.approx(values[1500], rel=0.01)

    def test_curves_share_them(self):
        records = [trial(0.5, index, 0.001 * index) for index in range(400)]
        (curve,) = build_curves(records)
        assert shows_all_dots([curve])
        assert not shows_all_dots([curve] * 16)
        assert len(shown_dots(curve.points, 16)) == 1500 // 16


class TestPanels:
    @pytest.mark.parametrize(
        ("curves", "panels"),
        [
            (crossed(budgets=("epochs", "steps")), {"": 2}),
            (crossed(budgets=("epochs", "steps"), modes=("off", "plain")), {"": 4}),
            (crossed(budgets=("epochs", "steps"), modes=MODES), {"epochs": 4, "steps": 4}),
            (
                crossed(("video", "window"), ("epochs", "steps"), ("off", "plain")),
                {"video, epochs": 2, "video, steps": 2, "window, epochs": 2, "window, steps": 2},
            ),
            (
                crossed(("video", "window", "nested-video"), ("epochs", "steps")),
                {"video": 2, "window": 2, "nested-video": 2},
            ),
        ],
    )
    def test_which_curves_share_one(self, curves, panels):
        assert {name: len(group) for name, group in curve_panels(curves)} == panels

    def test_lines_are_told_apart_without_colour(self):
        styles = [(str(dashes), marker) for _, dashes, marker in SERIES]
        assert len({dashes for dashes, _ in styles}) == len({marker for _, marker in styles})
        assert len(set(styles)) == len(SERIES)
        figure, _ = curves_picture(crossed(budgets=("epochs", "steps"), modes=MODES))
        for axes in figure.axes:
            lines = [line for line in axes.lines if not line.get_label().startswith("_")]
            assert [line.get_label() for line in lines] == [f"EMA {mode}" for mode in MODES]
            assert len({line.get_marker() for line in lines}) == 4

    def test_one_scale(self):
        figure, _ = curves_picture(crossed(("video", "window"), ("epochs", "steps"), MODES))
        assert len({axes.get_ylim() for axes in figure.axes}) == 1

    def test_legend_hides_nothing(self):
        figure, _ = curves_picture(build_curves(BUDGETS))
        figure.canvas.draw()
        (axes,) = figure.axes
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1

    def test_texts_stay_in_their_panel(self):
        curves = crossed(("nested-stratified", "nested-window"), ("epochs", "convergence"), MODES)
        figure, _ = curves_picture(curves, model="x")
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        for index, axes in enumerate(figure.axes):
            row, column = divmod(index, 2)
            box = axes.get_tightbbox()
            assert box.x0 >= column * width / 2 - 1
            assert box.x1 <= (column + 1) * width / 2 + 1
            assert box.y1 <= (2 - row) * height / 2 + 1
            assert box.y0 >= (1 - row) * height / 2 - 1

    def test_taken_apart_for_a_page(self):
        figure, titles = curves_picture(crossed(budgets=("epochs", "steps"), modes=MODES))
        svgs = page_svgs(draw_svg(figure, "curve"), "figure-curve", titles)
        assert len(svgs) == 2
        boxes = [ElementTree.fromstring(svg).get("viewBox") for svg in svgs]
        assert boxes[0].split()[2:] == boxes[1].split()[2:]
        assert float(boxes[1].split()[0]) == float(boxes[0].split()[2])
        together = "".join(svgs)
        for name in ("epochs", "steps"):
            assert together.count(f">{name}<") == 1
        ids = re.findall(r' id="([^"]+)"', together)
        assert len(ids) == len(set(ids))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', together)
        assert used
        assert set(used) <= set(ids)
