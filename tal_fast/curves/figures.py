# SPDX-License-Identifier: Apache-2.0
"""The style of a study's pictures, and how they become files and parts of a page."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tal_fast.curves.slim_svg import slim, text_of
from tal_fast.data.files import write_bytes_atomically
from tal_fast.errors import MissingExtraError

__all__ = [
    "GRID",
    "INK",
    "LEVEL_COLOURS",
    "LINE",
    "PAPER",
    "SERIES",
    "blank_figure",
    "draw_svg",
    "label_panel",
    "legend",
    "page_svg",
    "page_svgs",
    "panel_figure",
    "save_pictures",
]

# The figures are drawn in these colours; `page_svg` turns them into CSS variables, so that the
# page shows the same drawing in light and dark.
INK, GRID, PAPER = "#1a1c20", "#d5d8dd", "#fefefe"
LINE = "#1f5fbf"
LEVEL_COLOURS = ("#16307a", "#1f5fbf", "#1f9e9a", "#5aa02c", "#c77d0a", "#b5402a", "#7a3b8f")
_VARIABLES = {INK: "--ink", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--line{index}" for index, colour in enumerate(LEVEL_COLOURS)
}

#: Colour, dashes and marker of the lines that one panel compares. The dashes and markers alone tell
#: them apart, in grey print and to colour-blind eyes.
SERIES: tuple[tuple[str, Any, str], ...] = (
    ("#1f5fbf", "-", "o"),
    ("#b5402a", (0, (5, 2)), "s"),
    ("#1f9e9a", (0, (1.2, 1.2)), "^"),
    ("#c77d0a", (0, (6, 1.5, 1.2, 1.5)), "D"),
    ("#7a3b8f", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#16307a", (0, (2.5, 1.2)), "P"),
)

_SIZE = (5.6, 3.9)  # inches; small, so that the text stays legible on a phone's width
_PANEL = (4.6, 3.4)  # inches, without the legend
_LEGEND_ROW = 0.2  # inches
_MARGINS = (0.62, 0.12, 0.55, 0.42)  # left, right, bottom, top of a panel, in inches
_LIGHTLY = {"compress_level": 2}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)')


def _new_figure(size: tuple[float, float], **arguments: Any) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "the curve picture") from error
    figure = Figure(figsize=size, facecolor=PAPER, **arguments)
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Any, size: float) -> None:
    axes.set_facecolor(PAPER)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=size)


def blank_figure(panels: int = 1, *, size: tuple[float, float] = _SIZE) -> tuple[Any, list[Any]]:
    """Returns an empty figure in the style of the studies, and its panels side by side.

    Args:
        panels: number of panels.
        size: width and height in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _new_figure(size, layout="constrained")
    row = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
    for axes in row:
        _style(axes, 11.5)
    return figure, row


def panel_figure(panels: int, *, lines: int, columns: int = 2) -> tuple[Any, list[Any]]:
    """Returns a figure of equal panels, row by row, which :func:`page_svgs` can take apart.

    Args:
        panels: number of panels.
        lines: the most entries that the legend of one of them has; it gets room above the panel,
            where it hides nothing.
        columns: panels in a row; fewer where there are fewer.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = min(columns, panels)
    rows = -(-panels // columns)
    wide, high = _PANEL
    left, right, bottom, top = _MARGINS
    room = _LEGEND_ROW * -(-lines // 2)
    high, top = high + room, top + room
    figure = _new_figure((columns * wide, rows * high))
    artists = []
    for index in range(panels):
        row, column = divmod(index, columns)
        axes = figure.add_axes(
            (
                (column * wide + left) / (columns * wide),
                ((rows - 1 - row) * high + bottom) / (rows * high),
                (wide - left - right) / (columns * wide),
                (high - bottom - top) / (rows * high),
            )
        )
        axes.set_gid(f"panel{index}")
        _style(axes, 10.5)
        artists.append(axes)
    return figure, artists


def label_panel(axes: Any, title: str, x: str, y: str) -> None:
    """Writes title and legend above a panel, and the names of its axes."""
    _, names = axes.get_legend_handles_labels()
    legend(
        axes,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        borderpad=0.1,
        borderaxespad=0.2,
        labelspacing=0.25,
        handlelength=2.6,
        fontsize=9.5,
    )
    rows = -(-len(names) // 2)
    # With y given, nothing is drawn only to find out where the title is out of the way.
    pad = 5 + 72 * _LEGEND_ROW * rows
    axes.set_title(title, color=INK, fontsize=11, loc="left", y=1.0, pad=pad)
    axes.set_xlabel(x, color=INK, fontsize=11)
    axes.set_ylabel(y, color=INK, fontsize=11)


def legend(axes: Any, **where: Any) -> None:
    """Draws the legend of a panel, if anything in it has a name."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            facecolor=PAPER,
            edgecolor="none",
            framealpha=0.85,
            labelcolor=INK,
            **{"fontsize": 9.5, "loc": "lower right", **where},
        )


def _render(figure: Any, kind: str, name: str) -> bytes:
    import matplotlib
    from matplotlib.text import Text

    buffer = io.BytesIO()
    # A fixed salt and no date make the file a function of the numbers.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        # The numbers at the axes hold no formulas: looking for some takes a fifth of the time.
        "text.parse_math": False,
    }
    # Nor do names, whatever they hold; what was written before the setting keeps its own.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context(settings):
        # Line drawings become hardly smaller by more work.
        more: Any = {"metadata": {"Date": None}} if kind == "svg" else {"pil_kwargs": _LIGHTLY}
        figure.savefig(buffer, format=kind, dpi=200, **more)
    # Where everything lies is known now. With an engine, even one that moves nothing, each further
    # file would be drawn twice.
    figure.set_layout_engine(None)
    return buffer.getvalue()


def draw_svg(figure: Any, name: str) -> str:
    """Returns a figure as the content of an SVG file.

    Args:
        figure: from matplotlib.
        name: what its ids are made from; the same name and numbers give the same text.
    """
    return _render(figure, "svg", name).decode()


def _for_page(svg: str) -> ElementTree.Element:
    """Returns a drawing as an element: colours as variables, no idle ids, no size, no notes."""
    markup = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        markup = markup.replace(colour, f"var({variable})")
    used = {word for match in _REFERENCE.findall(markup) for word in match if word}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(markup)
    for element in root.iter():
        identifier = element.get("id")
        if identifier is not None and not identifier.startswith("panel") and identifier not in used:
            del element.attrib["id"]
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    return root


def page_svg(svg: str, name: str, *, ids: str | None = None) -> str:
    """Returns a drawing as an ``<svg>`` element for a page, its colours as CSS variables.

    The page sets the size; the view box keeps the proportions.

    Args:
        svg: from :func:`draw_svg`.
        name: id of its caption.
        ids: begins the drawing's ids, so that those of several in one page differ; the name by
            default.
    """
    root = _for_page(svg)
    root.set("aria-labelledby", name)
    for element in root.iter():
        if element.get("id", "").startswith("panel"):
            del element.attrib["id"]
    slim([root], name if ids is None else ids)
    return text_of(root)


def page_svgs(svg: str, ids: str, titles: Sequence[str], *, columns: int = 2) -> list[str]:
    """Returns each panel of a drawing as an ``<svg>`` element, so that a page can rearrange them.

    Args:
        svg: from :func:`draw_svg` of a :func:`panel_figure`.
        ids: begins the drawing's ids, so that those of several in one page differ.
        titles: what each panel shows, for those who hear the page.
        columns: as given to :func:`panel_figure`.
    """
    root = _for_page(svg)
    panels: dict[str, ElementTree.Element] = {}
    for parent in list(root.iter()):
        for element in list(parent):
            identifier = element.get("id", "")
            if identifier.startswith("panel"):
                panels[identifier] = element
                del element.attrib["id"]
                parent.remove(element)
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    wide, high = (width - left) / columns, (height - top) / rows
    shared = [child for child in root if child.tag == f"{{{_SVG}}}defs"]
    svgs = []
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        box = f"{column * wide:g} {row * high:g} {wide:g} {high:g}"
        part = ElementTree.Element(
            f"{{{_SVG}}}svg", {"viewBox": box, "role": "img", "aria-label": title}
        )
        if index == 0:
            part.extend(shared)
        part.append(panels[f"panel{index}"])
        svgs.append(part)
    slim(svgs, ids)
    return [text_of(part) for part in svgs]


def save_pictures(
    figure: Any, directory: Path, name: str, *, svg: str | None = None, png: bool = True
) -> list[Path]:
    """Writes ``name.png`` and ``name.svg``.

    Args:
        figure: from matplotlib.
        directory: where to write.
        name: of the files.
        svg: from :func:`draw_svg`, where it was drawn already.
        png: whether to write the PNG, which takes longest.

    Returns:
        Their paths.

    Raises:
        DataError: they cannot be written.
    """
    contents = {"png": _render(figure, "png", name)} if png else {}
    contents["svg"] = (draw_svg(figure, name) if svg is None else svg).encode()
    return [
        write_bytes_atomically(directory / f"{name}.{kind}", picture)
        for kind, picture in contents.items()
    ]
