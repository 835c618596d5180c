# SPDX-License-Identifier: Apache-2.0
"""A ranking of models as terminal tables, in words, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tal_fast.curves.tables import band_name, number, plain, share_cell, table_of
from tal_fast.errors import counted
from tal_fast.progress import duration

if TYPE_CHECKING:
    from tal_fast.curves.ranking import Pair, Ranking

__all__ = ["ranking_dict", "ranking_lines", "ranking_tables"]

_SHOWN = (1, 2, 3, 5, 10)  # draws per model whose chances are columns


def ranking_tables(ranking: Ranking) -> list[Table]:
    """Returns the order at 100 %, every two models, and what smaller studies would say."""
    order = table_of(
        "order at p = 100 %, mAP in points",
        ["model"],
        ["mAP", band_name(ranking.confidence), "from"],
    )
    for standing in ranking.standings:
        low, high = standing.interval
        source = (
            f"{counted(standing.trainings, 'training')}"
            if standing.trainings
            else f"forecast, p <= {standing.reach:g} %"
        )
        order.add_row(standing.name, number(standing.value), f"{low:.2f} to {high:.2f}", source)
    pairs = table_of(
        "every two of them",
        ["better", "worse"],
        ["difference", "s.e.", "certain", ""],
    )
    for pair in ranking.pairs:
        verdict = "" if pair.told else "cannot be told apart"
        pairs.add_row(
            pair.better, pair.worse, f"{pair.difference:+.2f}", number(pair.error),
            share_cell(pair.certainty), verdict,
        )  # fmt: skip
    if not any(level.wrong for level in ranking.levels):
        return [order, pairs]
    levels = table_of(
        "chance that a study at p ranks otherwise than 100 %, by draws per model",
        [],
        ["p", *map(str, _SHOWN), "fewest draws", "time"],
        f"fewest: from there on at most {1.0 - ranking.confidence:.0%} wrong",
    )
    for level in ranking.levels:
        levels.add_row(
            f"{level.share:g} %",
            *(share_cell(level.wrong[count - 1]) for count in _SHOWN),
            "-" if level.trainings is None else str(level.trainings),
            "-" if level.seconds is None else duration(level.seconds),
        )
    return [order, pairs, levels]


def _tie(pair: Pair) -> str:
    return (
        f"{pair.better} and {pair.worse} cannot be told apart at 100 %: {pair.difference:.2f} ± "
        f"{pair.error:.2f} (s.e.), the right order with {pair.certainty:.0%}"
    )


def _draws(count: int | None) -> str:
    assert count is not None  # `enough` and `cheapest` are levels that rank right
    return f"{counted(count, 'training')} per model"


def ranking_lines(ranking: Ranking) -> list[str]:
    """Returns the answer in words: the order, what cannot be told apart, the smallest study."""
    told = [pair for pair in ranking.pairs if pair.told]
    lines = [_tie(pair) for pair in ranking.pairs if not pair.told]
    if not told:
        return lines
    if not lines:
        lines.append("at 100 %: " + " > ".join(standing.name for standing in ranking.standings))
    small, cheap = ranking.enough, ranking.cheapest
    what = "this order" if len(told) == len(ranking.pairs) else "the order of the others"
    if small is None or cheap is None:
        return [*lines, f"no measured p finds {what} with {ranking.confidence:.0%}"]
    wrong = small.wrong[(small.trainings or 1) - 1]
    lines.append(
        f"the smallest p that finds {what} is {small.share:g} %, with {_draws(small.trainings)}: "
        f"wrong in {wrong:.0%}, and every larger p finds it too"
    )
    if cheap.share != small.share:
        lines.append(f"the cheapest is p = {cheap.share:g} % with {_draws(cheap.trainings)}")
    return lines


def ranking_dict(ranking: Ranking) -> dict[str, Any]:
    """Returns a ranking for JSON."""
    return plain(asdict(ranking))
