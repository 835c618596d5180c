# SPDX-License-Identifier: Apache-2.0
"""Drawings on pages are small, and look as before."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tal_fast.curves.figures import blank_figure, draw_svg, page_svg
from tal_fast.curves.slim_svg import slim

SVG = "http://www.w3.org/2000/svg"


def small(inside: str, ids: str = "a") -> str:
    """An ``<svg>`` with this inside, made small; without the tag around it."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(f'<svg xmlns="{SVG}">{inside}</svg>')
    slim([root], ids)
    text = ElementTree.tostring(root, encoding="unicode")
    return text[text.index(">") + 1 : text.rindex("<")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<path d="M 1.006 2.0  L -0.001 3.999  z " />', '<path d="M1.01 2L0 4z" />'),
        ("<g>\n <g>\n  <rect />\n </g>\n</g>", "<rect />"),
        ('<text transform="rotate(-0 3 4)" x="1.234">a  b</text>', '<text x="1.23">a  b</text>'),
        (
            '<text transform="rotate(-90 3 4)">a</text>',
            '<text transform="rotate(-90 3 4)">a</text>',
        ),
        (
            '<g id="b"><rect style="fill: red" /><rect style="fill: red" /></g><use href="#b" />',
            '<g id="ai0" style="fill:red"><rect /><rect /></g><use href="#ai0" />',
        ),
        # Opacity is not inherited: that of a group is another thing.
        (
            '<g id="b"><rect style="opacity: 0.5" /><rect style="opacity: 0.5" /></g>',
            '<g id="ai0"><rect style="opacity:0.5" /><rect style="opacity:0.5" /></g>',
        ),
        (
            '<rect style="opacity: 1" /><rect style="opacity: 1" /><rect style="opacity: 1" />',
            '<style>.as0{opacity:1}</style><rect class="as0" /><rect class="as0" />'
            '<rect class="as0" />',
        ),
        (
            '<path d="M 0 0 L 0 9" style="stroke: var(--grid)" /><text>1</text>'
            '<path d="M 5 0 L 5 9" style="stroke: var(--grid)" />',
            '<path d="M0 0V9M5 0V9" style="stroke:var(--grid)" /><text>1</text>',
        ),
    ],
)
def test_rules(before, after):
    assert small(before) == after


def line(points: np.ndarray) -> str:
    return "M " + " L ".join(f"{x:.6f} {y:.6f}" for x, y in points)


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every path, as a browser reads its steps."""
    found = []
    for path in re.findall(r' d="([^"]*)"', svg):
        points: list[tuple[float, float]] = []
        first = x = y = 0.0
        for verb, rest in re.findall(r"([MLlHhVvz])([^MLlHhVvz]*)", path):
            numbers = [float(n) for n in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", rest)]
            for a, b in zip(*[iter(numbers)] * 2, strict=True) if verb in "MLl" else ():
                x, y = (x + a, y + b) if verb == "l" else (a, b)
                points.append((x, y))
                first = (x, y) if verb == "M" else first
            for a in numbers if verb in "HhVv" else ():
                x = {"H": a, "h": x + a}.get(verb, x)
                y = {"V": a, "v": y + a}.get(verb, y)
                points.append((x, y))
            if verb == "z":
                x, y = first
                points.append(first)
        found.append(points)
    return found


def test_shorter_paths_go_through_the_same_points():
    rng = np.random.default_rng(3)
    for _ in range(300):
        steps = rng.integers(1, 12)
        points = np.round(
            rng.choice([0.0, 0.4, -0.05, 7.25, 300.0, *rng.normal(0, 99, 3)], (steps, 2)), 2
        )
        verbs = ["M", *rng.choice(["M", "L", "L", "L", "zM"], steps - 1)]
        path = "".join(f"{verb}{x} {y}" for verb, (x, y) in zip(verbs, points, strict=True))
        (after,) = points_of(small(f'<path d="{path}" />'))
        (before,) = points_of(f' d="{path}"')
        np.testing.assert_allclose(after, before, atol=1e-9)


MARK = '<defs><path id="m" d="M 0 0 L 0 3.5" style="stroke: red" /></defs>'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            f'{MARK}<use x="1" y="9" href="#m" style="fill: red" /><text>1</text>'
            '<use x="5" y="9" href="#m" style="fill: red" />',
            '<path style="fill:red;stroke:red" d="M1 9v3.5M5 9v3.5" /><text>1</text>',
        ),
        (  # What lies between two lies between them still.
            f'{MARK}<use x="1" y="9" href="#m" /><rect /><use x="5" y="9" href="#m" />',
            '<path d="M1 9v3.5" style="stroke:red" /><rect />'
            '<path d="M5 9v3.5" style="stroke:red" />',
        ),
        (  # Two that cross are seen through each other.
            f'{MARK}<use x="1" y="9" href="#m" style="opacity: 0.5" />'
            '<use x="1" y="9" href="#m" style="opacity: 0.5" />',
            2 * '<path style="opacity:0.5;stroke:red" d="M1 9v3.5" />',
        ),
        (
            f'{MARK}<use x="1" y="9" href="#m" transform="rotate(45 1 9)" />',
            '<defs><path id="ai0" d="M0 0V3.5" style="stroke:red" /></defs>'
            '<use x="1" y="9" href="#ai0" transform="rotate(45 1 9)" />',
        ),
    ],
)
def test_marks_that_are_lines(before, after):
    assert small(before) == after


def test_thinned_lines_stay_where_they_were():
    x = np.linspace(0, 300, 400)
    curve = np.stack([x, 80 + 60 * np.sin(x / 20)], 1)
    points = np.array(points_of(small(f'<path d="{line(curve)}" />'))[0])
    assert 20 < len(points) < 150
    assert points[0] == pytest.approx(curve[0], abs=0.006)
    assert points[-1] == pytest.approx(curve[-1], abs=0.006)
    assert (
        np.abs(np.interp(x, points[:, 0], points[:, 1]) - curve[:, 1]).max() < 0.35
    )  # 0.1 across a slope of 3
    assert set(np.round(curve, 2)[:, 0]) >= set(np.round(points[:, 0], 2))


def test_a_corner_and_a_closed_ring_stay():
    ring = np.concatenate([np.linspace(a, b, 40) for a, b in zip(
        [(0, 0), (9, 0), (9, 9), (0, 9)], [(9, 0), (9, 9), (0, 9), (0, 0)], strict=True
    )])  # fmt: skip
    assert small(f'<path d="{line(ring)} z" />') == '<path d="M0 0H9V9H0V0z" />'


def test_a_figure_is_much_smaller_and_refers_to_itself():
    figure, (axes,) = blank_figure()
    for shift in range(4):
        axes.plot(np.linspace(1, 100, 300), np.linspace(1, 9, 300) ** 0.5 + shift, marker="o")
    svg = draw_svg(figure, "a")
    page = page_svg(svg, "figure-a", ids="x")
    assert len(page) < 0.5 * len(svg)
    said = set(re.findall(r' id="([^"]+)"', page))
    assert said
    assert all(name.startswith("xi") for name in said)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= said
    assert page == page_svg(svg, "figure-a", ids="x")
