# SPDX-License-Identifier: Apache-2.0
"""Makes drawings of matplotlib small, so that a page can hold dozens of them.

What is seen stays the same: positions are rounded to a hundredth of a point, lines of many points
keep those that lie more than a tenth of a point off the others, straight lines of one style are
one path, written in the shortest way, and ids, styles and groups that repeat themselves are written
once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

__all__ = ["slim", "text_of"]

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_LINE = re.compile(r"M(?:[-\d. ]+L){29,}[-\d. ]+z?")  # of 30 points or more, straight in between
_STRAIGHT = re.compile(r"(?:M-?[\d.]+ -?[\d.]+(?:L-?[\d.]+ -?[\d.]+)*z?)+")
_STEP = re.compile(r"([ML])(-?[\d.]+) (-?[\d.]+)|z")
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
    _lines_for_marks(drawings)
    for root in drawings:
        _fewer_groups(root)
        for path in root.iter(f"{_SVG}path"):
            path.set("d", _shortest(path.get("d", "")))
    _short_ids(drawings, name)
    _classes(drawings, name)


def text_of(drawing: ElementTree.Element) -> str:
    """Returns the text of a drawing; between the attributes and the end of a tag is no space."""
    return ElementTree.tostring(drawing, encoding="unicode").replace(" />", "/>")


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


def _path(commands: str) -> str:
    commands = re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(commands.split()))
    return _LINE.sub(_thinned, commands)


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
        if len(kept) or kept.tag not in (f"{_SVG}defs", f"{_SVG}g")
    ]
    _one_path_of_lines(parent)
    if parent.tag == f"{_SVG}g" and len(parent) > 1:
        for key in ("style", "clip-path"):
            values = {child.get(key, "") for child in parent}
            (value, *others) = values
            inherited = key != "style" or all(r.startswith(_INHERITED) for r in value.split(";"))
            if value and not others and inherited and key not in parent.attrib:
                parent.set(key, value)
                for child in parent:
                    del child.attrib[key]


def _style_of(element: ElementTree.Element) -> dict[str, str]:
    pairs = (rule.partition(":") for rule in element.get("style", "").split(";") if rule)
    return {key: value for key, _, value in pairs}


def _lines_for_marks(drawings: Sequence[ElementTree.Element]) -> None:
    """Draws marks that are a straight line, as those of ticks, where they are used."""
    uses = [use for root in drawings for use in root.iter(f"{_SVG}use")]
    turned = {use.get("href", "")[1:] for use in uses if "transform" in use.attrib}
    lines = {
        path.attrib["id"]: path
        for root in drawings
        for path in root.iter(f"{_SVG}path")
        if "id" in path.attrib
        and path.attrib["id"] not in turned
        and set(path.attrib) <= {"id", "d", "style"}
        and _is_a_line(path.get("d", ""))
    }
    for use in uses:
        line = lines.get(use.get("href", "")[1:])
        if line is not None:
            left, top = (_hundredths(use.attrib.pop(key, "0")) for key in "xy")
            del use.attrib["href"]
            use.tag = f"{_SVG}path"
            use.set(
                "d",
                "".join(
                    f"{verb}{_number(left + _hundredths(x))} {_number(top + _hundredths(y))}"
                    for verb, x, y in _STEP.findall(line.get("d", ""))
                ),
            )
            style = _style_of(use) | _style_of(line)
            if style:
                use.set("style", ";".join(f"{key}:{value}" for key, value in style.items()))
    for root in drawings:
        for definitions in root.iter(f"{_SVG}defs"):
            for path in list(definitions):
                if path.get("id") in lines:
                    definitions.remove(path)


def _one_path_of_lines(parent: ElementTree.Element) -> None:
    """Joins straight lines of one style between which nothing is drawn but others, and texts."""
    first: dict[tuple[str, str], ElementTree.Element] = {}
    for child in list(parent):
        style = child.get("style", "")
        if (
            child.tag == f"{_SVG}path"
            and set(child.attrib) <= {"d", "style", "clip-path"}
            and _is_a_line(child.get("d", ""))
            and "opacity" not in style  # where two cross, one path shows through once
        ):
            joined = first.setdefault((style, child.get("clip-path", "")), child)
            if joined is not child:
                joined.set("d", joined.attrib["d"] + child.attrib["d"])
                parent.remove(child)
        elif child.tag not in (f"{_SVG}text", f"{_SVG}defs"):
            first.clear()


def _is_a_line(path: str) -> bool:
    """Whether a path goes from one point straight to another, and ends."""
    return _STRAIGHT.fullmatch(path) is not None and len(_STEP.findall(path)) == 2


def _hundredths(digits: str) -> int:
    return round(float(digits) * 100)


def _number(hundredths: int) -> str:
    text = f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def _pair(x: int, y: int) -> str:
    return _number(x) + ("" if y < 0 else " ") + _number(y)


def _shortest(path: str) -> str:
    """Writes straight lines from point to point or from step to step, whichever is shorter."""
    if not _STRAIGHT.fullmatch(path):
        return path
    text, verb = "", ""
    x = y = first_x = first_y = 0
    for match in _STEP.finditer(path):
        if match[0] == "z":
            text, verb, x, y = text + "z", "z", first_x, first_y
            continue
        new_x, new_y = _hundredths(match[2]), _hundredths(match[3])
        if match[1] == "M":
            text, verb, first_x, first_y = text + "M" + _pair(new_x, new_y), "M", new_x, new_y
        else:
            if new_y == y:
                ways = ["H" + _number(new_x), "h" + _number(new_x - x)]
            elif new_x == x:
                ways = ["V" + _number(new_y), "v" + _number(new_y - y)]
            else:
                ways = ["L" + _pair(new_x, new_y), "l" + _pair(new_x - x, new_y - y)]
            # A letter that is repeated need not be written.
            ways = [
                (" " if way[1] != "-" else "") + way[1:] if way[0] == verb else way for way in ways
            ]
            short = min(ways, key=len)
            if short[0].isalpha():
                verb = short[0]
            text += short
        x, y = new_x, new_y
    return text


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
