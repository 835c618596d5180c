# SPDX-License-Identifier: Apache-2.0
"""Makes drawings of matplotlib small, so that a page can hold dozens of them.

What is seen stays the same: positions are rounded to a hundredth of a point, lines of many points
keep those that lie more than a tenth of a point off the others, and ids, styles and groups that
repeat themselves are written once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

__all__ = ["slim"]

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_LINE = re.compile(r"M(?:[-\d. ]+L){29,}[-\d. ]+z?")  # of 30 points or more, straight in between
_NOT_TURNED = re.compile(r"rotate\(-?0(?:\.0*)? [^)]*\)")
_TOLERANCE = 0.1  # points; a screen shows a point as one to three pixels
_ENOUGH = 3  # elements of one style, from which on a class is shorter
# What the children of a group take over from it.
_INHERITED = ("fill", "stroke", "text-anchor", "font")


def slim(drawings: Sequence[ElementTree.Element], name: str) -> None:
    """Makes ``<svg>`` elements smaller, in place.

    Args:
        drawings: those that refer to each other's definitions; the first has the definitions.
        name: begins their ids and classes, which share the page with those of other drawings.
    """
    for root in drawings:
        for element in root.iter():
            if not (element.text or "").strip():
                element.text = None
            if not (element.tail or "").strip():
                element.tail = None
            _slim_attributes(element)
        _one_font(root)
        _fewer_groups(root)
    _short_ids(drawings, name)
    _classes(drawings, name)


def _slim_attributes(element: ElementTree.Element) -> None:
    if _XLINK in element.attrib:
        element.set("href", element.attrib.pop(_XLINK))
    for key in ("d", "x", "y", "width", "height", "transform", "points"):
        value = element.get(key)
        if value is not None:
            value = _NUMBER.sub(_rounded, value)
            element.set(key, _path(value) if key == "d" else value)
    if _NOT_TURNED.fullmatch(element.get("transform", "")):
        del element.attrib["transform"]
    if "style" in element.attrib:
        element.set("style", re.sub(r"([:;]) ", r"\1", element.attrib["style"]))


def _rounded(match: re.Match[str]) -> str:
    shortened = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if shortened == "-0" else shortened


def _path(text: str) -> str:
    text = re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(text.split()))
    return _LINE.sub(_thinned, text)


def _thinned(match: re.Match[str]) -> str:
    """Returns a line without the points that lie on the way between their neighbours."""
    closed = match[0].endswith("z")
    points = [
        (float(x), float(y)) for x, y in (p.split() for p in match[0][1:].rstrip("z").split("L"))
    ]
    kept = {0, len(points) - 1}
    waiting = [(0, len(points) - 1)]
    while waiting:  # Ramer 1972, Douglas and Peucker 1973
        first, last = waiting.pop()
        (x0, y0), (x1, y1) = points[first], points[last]
        length = math.hypot(x1 - x0, y1 - y0)
        farthest, distance = first, _TOLERANCE
        for index in range(first + 1, last):
            x, y = points[index]
            if length > 0:
                away = abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length
            else:
                away = math.hypot(x - x0, y - y0)
            if away > distance:
                farthest, distance = index, away
        if farthest != first:
            kept.add(farthest)
            waiting += [(first, farthest), (farthest, last)]
    return "M" + "L".join(f"{points[i][0]:g} {points[i][1]:g}" for i in sorted(kept)) + "z" * closed


def _one_font(root: ElementTree.Element) -> None:
    """Gives the drawing the family that all its texts have."""
    font = re.compile(r"font-family:([^;]*);?")
    texts = [e for e in root.iter(f"{_SVG}text") if font.search(e.get("style", ""))]
    if len({font.findall(e.attrib["style"])[0] for e in texts}) != 1:
        return
    # matplotlib's list ends with families that hardly any machine has.
    root.set("font-family", "DejaVu Sans, system-ui, sans-serif")
    for element in texts:
        element.set("style", font.sub("", element.attrib["style"]).strip(";"))


def _fewer_groups(parent: ElementTree.Element) -> None:
    """Gives a group what all its children have, and takes out groups that say nothing."""
    for child in parent:
        _fewer_groups(child)
    parent[:] = [
        kept
        for child in parent
        for kept in (list(child) if child.tag == f"{_SVG}g" and not child.attrib else [child])
    ]
    _one_path_of_grid(parent)
    if parent.tag == f"{_SVG}g" and len(parent) > 1:
        for key in ("style", "clip-path"):
            values = {child.get(key, "") for child in parent}
            (value, *others) = values
            inherited = key != "style" or all(r.startswith(_INHERITED) for r in value.split(";"))
            if value and not others and inherited and key not in parent.attrib:
                parent.set(key, value)
                for child in parent:
                    del child.attrib[key]


def _one_path_of_grid(parent: ElementTree.Element) -> None:
    """Joins the lines of a grid, between which lie only marks and numbers beside the panel."""
    first: dict[tuple[str, str], ElementTree.Element] = {}
    for child in list(parent):
        style, d = child.get("style", ""), child.get("d", "")
        if child.tag != f"{_SVG}path" or "stroke:var(--grid)" not in style or d.count("L") != 1:
            continue
        line = first.setdefault((style, child.get("clip-path", "")), child)
        if line is not child:
            line.set("d", line.attrib["d"] + d)
            parent.remove(child)


def _short_ids(drawings: Sequence[ElementTree.Element], name: str) -> None:
    """Numbers the ids that are referred to."""
    elements = [element for root in drawings for element in root.iter()]
    ids = [element.attrib["id"] for element in elements if "id" in element.attrib]
    numbers = {identifier: f"{name}i{number}" for number, identifier in enumerate(ids)}
    for element in elements:
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, numbers[value])
            elif key == "href":
                element.set(key, "#" + numbers.get(value[1:], value[1:]))
            elif value.startswith("url(#"):
                element.set(key, f"url(#{numbers.get(value[5:-1], value[5:-1])})")


def _classes(drawings: Sequence[ElementTree.Element], name: str) -> None:
    """Writes a style that many elements have once, as a class of the page."""
    elements = [element for root in drawings for element in root.iter()]
    counts = Counter(element.attrib["style"] for element in elements if "style" in element.attrib)
    classes = {
        style: f"{name}s{number}"
        for number, (style, times) in enumerate(counts.items())
        if times >= _ENOUGH
    }
    if not classes:
        return
    for element in elements:
        if element.get("style") in classes:
            element.set("class", classes[element.attrib.pop("style")])
    rules = ElementTree.Element(f"{_SVG}style")
    rules.text = "".join(f".{number}{{{style}}}" for style, number in classes.items())
    drawings[0].insert(0, rules)
