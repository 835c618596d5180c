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
            '<path d="M0 0L0 9M5 0L5 9" style="stroke:var(--grid)" /><text>1</text>',
        ),
    ],
)
def test_rules(before, after):
    assert small(before) == after


def line(points: np.ndarray) -> str:
    return "M " + " L ".join(f"{x:.6f} {y:.6f}" for x, y in points)


def test_thinned_lines_stay_where_they_were():
    x = np.linspace(0, 300, 400)
    curve = np.stack([x, 80 + 60 * np.sin(x / 20)], 1)
    kept = re.search(r'd="M([^"]*)"', small(f'<path d="{line(curve)}" />'))
    points = np.array([pair.split() for pair in kept[1].split("L")], float)
    assert 20 < len(points) < 150
    assert points[0] == pytest.approx(curve[0], abs=0.006)
    assert points[-1] == pytest.approx(curve[-1], abs=0.006)
    assert (
        np.abs(np.interp(x, points[:, 0], points[:, 1]) - curve[:, 1]).max() < 0.35
    )  # 0.1 across a slope of 3
    assert set(np.round(curve, 2)[:, 0]) >= set(points[:, 0])


def test_a_corner_and_a_closed_ring_stay():
    ring = np.concatenate([np.linspace(a, b, 40) for a, b in zip(
        [(0, 0), (9, 0), (9, 9), (0, 9)], [(9, 0), (9, 9), (0, 9), (0, 0)], strict=True
    )])  # fmt: skip
    assert small(f'<path d="{line(ring)} z" />') == '<path d="M0 0L9 0L9 9L0 9L0 0z" />'


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
