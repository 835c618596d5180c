# SPDX-License-Identifier: Apache-2.0
"""The benchmark table: from stored rows to text, and into the page of benchmarks.

``python benchmarks/results_table.py --page docs/benchmarks.md`` puts the newest results between the
page's two markers; ``make bench`` does so at its end.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["markdown_table", "newest", "text_table", "update_page"]

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_HEAD = ("op", "case", "peer", "1 thread", "2 threads", "AVX2, 1 thread", "must", "aim")
_NARROW = "avx2"


def _ratio(row: Mapping[str, Any] | None) -> str:
    """One cell: the ratio, marked where it stays below what is promised."""
    if row is None:
        return ""
    if row["ratio"] is None:
        ms = row["ours_ms"]
        return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.3g} ms"
    ratio, must = row["ratio"], row["must"]
    text = f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x"
    if must is not None and row["at_most"] and must < 1.1:  # an overhead: its decimals count
        text = f"{ratio:.3f}x"
    missed = must is not None and (ratio > must if row["at_most"] else ratio < must)
    return f"{text} (missed)" if missed else text


def _bound(value: float | None, at_most: bool) -> str:
    if value is None:
        return ""
    return f"{'≤ ' if at_most else ''}{value:g}x"


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["op"], row["case"], row["peer"]


def _lines(
    rows: Sequence[Mapping[str, Any]], narrow: Sequence[Mapping[str, Any]] = ()
) -> list[tuple[str, ...]]:
    """One line per comparison: both numbers of threads, then one thread of the narrower kernels."""
    grouped: dict[tuple[str, str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(_key(row), {})[row["threads"]] = row
    narrower = {_key(row): row for row in narrow if row["threads"] == 1}
    lines = []
    for (op, case, peer), cells in grouped.items():
        any_row = next(iter(cells.values()))
        name = f"{peer} (stand-in)" if any_row["stand_in"] else peer
        lines.append(
            (
                op,
                case,
                "" if peer == "none" else name,
                _ratio(cells.get(1)),
                _ratio(cells.get(2)),
                _ratio(narrower.get((op, case, peer))),
                _bound(any_row["must"], any_row["at_most"]),
                _bound(any_row["aim"], any_row["at_most"]),
            )
        )
    return lines


def text_table(rows: Sequence[Mapping[str, Any]], narrow: Sequence[Mapping[str, Any]] = ()) -> str:
    """Returns the table with aligned columns.

    Args:
        rows: of the results.
        narrow: of :func:`with_avx2`.
    """
    cells = [_HEAD, *_lines(rows, narrow)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def markdown_table(
    rows: Sequence[Mapping[str, Any]], narrow: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Returns the table in Markdown; an op's name is shown once.

    Args:
        rows: of the results.
        narrow: of :func:`with_avx2`.
    """
    out = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    before = ""
    for op, *rest in _lines(rows, narrow):
        shown = "" if op == before else f"`{op}`"
        before = op
        out.append(f"| {' | '.join((shown, *rest))} |")
    return "\n".join(out)


def newest() -> Path:
    """Returns the newest stored results of all benchmarks that this harness wrote.

    Those of some benchmarks alone are kept under the same name with a word behind it.

    Raises:
        FileNotFoundError: there are none.
    """
    for path in sorted((*RESULTS.glob("*-core.json"), *RESULTS.glob("*-cores.json")), reverse=True):
        rows = json.loads(path.read_text(encoding="utf-8")).get("rows", [])
        if rows and "peer" in rows[0]:
            return path
    raise FileNotFoundError(f"no results of the harness in {RESULTS}")


def with_avx2(results: Path) -> Path | None:
    """Returns the newest results of the AVX2 kernels beside some others, if there are any.

    Args:
        results: the others, of a processor that has more.
    """
    found = sorted(results.parent.glob(f"*-{_NARROW}.json"), reverse=True)
    return found[0] if found else None


def _rows(path: Path | None) -> list[dict[str, Any]]:
    return [] if path is None else json.loads(path.read_text(encoding="utf-8"))["rows"]


def update_page(page: Path, results: Path) -> None:
    """Replaces what stands between the markers.

    Args:
        page: with the markers; links in it lead from its folder to the rows.
        results: rows, as :func:`newest` finds them.

    Raises:
        ValueError: the markers are missing.
    """
    content = json.loads(results.read_text(encoding="utf-8"))
    facts = content["machine"]
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page}: expected the markers {BEGIN} and {END}")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    where = Path(os.path.relpath(results, page.resolve().parent))
    rounds = [row["repetitions"] for row in content["rows"]]
    narrow, told = with_avx2(results), ""
    if narrow is not None:
        theirs = json.loads(narrow.read_text(encoding="utf-8"))["machine"]
        told = (
            f" AVX2: `TAL_FAST_ISA=avx2 ATEN_CPU_CAPABILITY=avx2` on {theirs['cores']} cores of an "
            f"{theirs['cpu']}, {theirs['date'][:10]} ([rows]({where.with_name(narrow.name)}))."
        )
    block = (
        f"{BEGIN}\n{facts['cores']} cores of an {facts['cpu']} ({facts['isa']}), torch "
        f"{facts['torch']}, {facts['date'][:10]}; medians of {min(rounds)} to {max(rounds)} "
        f"rounds, in turn, each peer's result verified first ([rows]({where})).{told}\n\n"
        f"{markdown_table(content['rows'], _rows(narrow))}\n"
    )
    page.write_text(head + block + END + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument("results", nargs="?", type=Path, help="rows; the newest when omitted")
    arguments = parser.parse_args()
    results = (arguments.results or newest()).resolve()
    print(text_table(_rows(results), _rows(with_avx2(results))))
    if arguments.page is not None:
        update_page(arguments.page, results)


if __name__ == "__main__":
    main()
