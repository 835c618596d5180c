# SPDX-License-Identifier: Apache-2.0
"""Curves drawn for print: the numbers in the picture, its text, its bytes, and the command."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from made_curves import HAPT, LEVELS, curve
from matplotlib.collections import PolyCollection

from tal_fast import cli
from tal_fast.curves import draw, read_curve
from tal_fast.curves.drawing import MOST, text_for
from tal_fast.curves.drawn import drawn_curves
from tal_fast.curves.ensemble import build_ensemble
from tal_fast.curves.extrapolation import extrapolate
from tal_fast.curves.fit import fit_curve
from tal_fast.errors import ConfigError


def rising(x, top=60.0):
    return top - (top + 5) * np.exp(-0.3 * np.asarray(x) ** 0.6)


def several(count):
    return [curve(rising(LEVELS, 50.0 + 5 * i), name=f"model_{i} 100 %") for i in range(count)]


class TestNumbers:
    def test_line_and_interval_are_those_of_extrapolate(self):
        known = read_curve(HAPT)
        (drawn,) = drawn_curves([known], times=2, draws=50)
        found = extrapolate(known, 2, replicates=50)
        assert drawn.x[-1] == pytest.approx(200)
        assert drawn.y[-1] == pytest.approx(found.value)
        assert (drawn.low[-1], drawn.high[-1]) == pytest.approx(found.interval)
        assert np.isnan(drawn.low[drawn.x < 99.99]).all()
        assert np.isfinite(drawn.low[drawn.x >= 100]).all()

    def test_the_picture_holds_them(self):
        known = read_curve(HAPT)
        (drawn,) = drawn_curves([known], times=2, draws=50)
        (axes,) = draw(known, times=2, draws=50).axes
        solid, dashed, points = axes.lines[:3]
        assert solid.get_linestyle() == "-"
        assert dashed.get_linestyle() == "--"
        x = np.concatenate((solid.get_xdata(), dashed.get_xdata()[1:]))
        y = np.concatenate((solid.get_ydata(), dashed.get_ydata()[1:]))
        assert x.tolist() == drawn.x.tolist()
        assert y.tolist() == drawn.y.tolist()
        assert solid.get_xdata()[-1] == dashed.get_xdata()[0] == pytest.approx(100)
        assert points.get_xdata().tolist() == known.share.tolist()
        assert points.get_ydata().tolist() == known.mean.tolist()
        (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].max() == pytest.approx(np.nanmax(drawn.high))
        assert corners[:, 0].min() == pytest.approx(100)

    @pytest.mark.parametrize(("bars", "scale"), [("sd", 1.0), ("se", 5**-0.5)])
    def test_bars(self, bars, scale):
        figure = draw(curve(rising(LEVELS), deviation=2.0), bars=bars, draws=5)
        (axes,) = figure.axes
        segments = axes.containers[0].lines[2][0].get_segments()
        assert segments[0][:, 1] == pytest.approx(rising(10.0) + np.array([-2, 2]) * scale)
        (legend,) = figure.legends
        said = [text.get_text() for text in legend.get_texts()]
        assert said == ["toy", "± standard deviation" if bars == "sd" else "± standard error"]

    def test_without_times_nothing_is_said_beyond(self):
        (drawn,) = drawn_curves([curve(rising(LEVELS))], draws=5)
        assert drawn.x[-1] == pytest.approx(100)
        figure = draw(curve(rising(LEVELS)), draws=5)
        assert not any(isinstance(c, PolyCollection) for c in figure.axes[0].collections)

    def test_without_repetitions_one_family_and_no_interval(self):
        once = curve(rising(LEVELS), deviation=math.nan, repetitions=1)
        (drawn,) = drawn_curves([once], times=2, draws=5)
        best = next(n for n, _ in fit_curve(once).backtest.ranking() if n != "last1")
        assert drawn.family == best
        assert np.isnan(drawn.high).all()
        assert f"the line is {best} alone" in " ".join(drawn.notes)

    def test_two_levels_are_points(self):
        short = curve([20.0, 40.0], [10.0, 100.0], name="short")
        (drawn,) = drawn_curves([short], draws=5)
        assert np.isnan(drawn.y).all()
        assert "no line: short: expected at least 3 levels" in drawn.notes[0]
        (axes,) = draw([short, curve(rising(LEVELS))], times=2, draws=5).axes
        assert axes.lines[2].get_ydata().tolist() == [20, 40] or any(
            line.get_ydata().tolist() == [20, 40] for line in axes.lines if len(line.get_xdata())
        )


class TestLook:
    @pytest.mark.parametrize("width", [3.5, 7.2])
    def test_size_and_legend_fit(self, width):
        figure = draw(several(4), times=2, draws=5, width=width, font_size=7)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == width
        (legend,) = figure.legends
        box, panel = legend.get_window_extent(), figure.axes[0].get_window_extent()
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert box.y0 >= panel.y1 - 1
        assert {text.get_fontsize() for text in legend.get_texts()} == {7}

    def test_styles_differ_in_grey(self):
        (axes,) = draw(several(MOST), times=2, draws=5).axes
        marks = [c.lines[0].get_marker() for c in axes.containers]
        assert len(set(marks)) == MOST

    def test_readers_settings_are_respected(self):
        with mpl.rc_context({"font.family": "serif"}):
            figure = draw(curve(rising(LEVELS)), draws=5)
        assert figure.axes[0].xaxis.label.get_fontfamily() == ["serif"]
        figure = draw(curve(rising(LEVELS)), draws=5, font="monospace")
        assert figure.axes[0].xaxis.label.get_fontfamily() == ["monospace"]

    def test_text_for_latex(self):
        assert text_for(True, "50 % of_a & ±") == r"50 \% of\_a \& $\pm$"
        assert text_for(False, "50 % of_a & ±") == "50 % of_a & ±"
        with mpl.rc_context({"text.usetex": True}):
            axes = draw_unrendered()
        assert axes.get_xlabel() == r"training data (\% of the full set)"

    def test_a_dollar_in_a_name_is_no_formula(self, tmp_path):
        file = tmp_path / "a.svg"
        draw(curve(rising(LEVELS), name="a $x$ b_c"), file, draws=5)
        assert "a $x$ b_c" in texts(file)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"bars": "sem"}, "bars: expected one of sd, se, none, got 'sem'; did you mean 'se'"),
            ({"width": 350}, "width: expected 1 to 40 inches, got 350"),
            ({"font_size": 0}, "font_size: expected 3 to 40 points, got 0"),
            ({"times": 9}, "beyond 5 times no interval"),
            ({"times": math.nan}, "--times: expected a positive number"),
            ({"confidence": 90}, "between 0 and 1, got 90"),
            ({"file": "a.jpg"}, "expected a file ending in .svg, .pdf, .png, got 'a.jpg'"),
        ],
    )
    def test_refused(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            draw(curve(rising(LEVELS)), draws=5, **settings)

    def test_too_many_and_none(self):
        with pytest.raises(ConfigError, match=r"at most 7 in one picture.*got 8"):
            draw(several(8), draws=1)
        with pytest.raises(ConfigError, match="at least one"):
            draw([])


def draw_unrendered():
    """A picture whose text is never set: there may be no LaTeX."""
    from tal_fast.curves import drawing

    original, drawing._legend = drawing._legend, lambda *_: None
    try:
        return draw(curve(rising(LEVELS)), draws=5).axes[0]
    finally:
        drawing._legend = original


def texts(file) -> list[str]:
    root = ElementTree.fromstring(file.read_text("utf-8"))
    return ["".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")]


class TestFiles:
    def test_text_stays_text_and_bytes_are_the_same(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            for kind in ("svg", "pdf", "png"):
                draw(several(2), tmp_path / folder / f"c.{kind}", times=2, draws=5)
        for kind in ("svg", "pdf", "png"):
            first, again = (tmp_path / folder / f"c.{kind}" for folder in ("a", "b"))
            assert first.read_bytes() == again.read_bytes()
        found = texts(tmp_path / "a/c.svg")
        assert {"model_0 100 %", "training data (% of the full set)", "90 % interval"} <= set(found)
        assert (tmp_path / "a/c.pdf").read_bytes().startswith(b"%PDF")
        assert b"/FontFile2" in (tmp_path / "a/c.pdf").read_bytes()  # TrueType, not Type 3


class TestCommand:
    @pytest.mark.parametrize(
        ("command", "outputs", "message"),
        [
            ("draw", ["--picture", "c.svg", "--json", "./c.svg"], "--json: .* of --picture, got"),
            ("draw", ["--picture", "c.svg", "--picture", "c.svg"], "--picture: .* of --picture"),
            ("draw", ["--picture", "c.svg", "--json", "t.csv"], "--json: .* of --study, got"),
            ("fit", ["--picture", "c.png", "--json", "c.svg"], "--json: .* of --picture, got"),
            ("fit", ["--json", "t.csv"], "--json: .* of --study, got t.csv"),
        ],
    )
    def test_no_file_goes_over_another(
        self, tmp_path, capsys, monkeypatch, command, outputs, message
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t.csv").write_text("p (%),mAP (%)\n10,5\n50,20\n100,30\n")
        assert cli.main(["study", command, "--study", "t.csv", *outputs]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]

    def test_draws_several_studies(self, tmp_path, capsys):
        table = tmp_path / "other.csv"
        rows = [
            f"tadtr-small,{p:g},{v:.2f},1,5" for p, v in zip(LEVELS, rising(LEVELS), strict=True)
        ]
        table.write_text("\n".join(["model,p (%),mAP (%),std,n", *rows]))
        arguments = ["study", "draw", "--study", HAPT, "--study", table, "--times", 2]
        arguments += [
            "--draws",
            5,
            "--picture",
            tmp_path / "c.svg",
            "--picture",
            tmp_path / "c.pdf",
        ]
        arguments += ["--json", tmp_path / "c.json", "--bars", "se", "--font-size", 7, "--log"]
        assert cli.main([str(a) for a in arguments]) == 0
        assert "c.pdf" in capsys.readouterr().out
        assert {"hapt: tadtr-small", "other: tadtr-small", "± standard error"} <= set(
            texts(tmp_path / "c.svg")
        )
        content = json.loads((tmp_path / "c.json").read_text())
        first = content["curves"][0]
        expected = build_ensemble(read_curve(HAPT), replicates=5).quantiles(
            np.array([200.0]), (0.05, 0.5, 0.95)
        )[:, 0]
        assert [first[k][-1] for k in ("low", "y", "high")] == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("arguments", "status", "message"),
        [
            (["--picture", "a.gif"], 2, "expected a file ending in .svg, .pdf, .png, got 'a.gif'"),
            (["--picture", "a.svg", "--curve", "tadtr"], 2, "did you mean 'tadtr-small'"),
            (["--picture", "a.svg", "--bars", "x"], 2, "bars: expected one of"),
        ],
    )
    def test_errors(self, capsys, tmp_path, monkeypatch, arguments, status, message):
        monkeypatch.chdir(tmp_path)
        given = ["study", "draw", "--study", str(HAPT), "--draws", "5", *arguments]
        assert cli.main(given) == status
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
