# SPDX-License-Identifier: Apache-2.0
"""Which cases of a grid ``make test`` runs.

A test with three parameters or more, the device among them, has a case for every combination of
their values; some have hundreds. ``make test`` runs a sample in which every pair of values of two
parameters occurs, and with it every value: what fails for a data type, a shape or a layout, or for
two of them together, fails in the sample. Tests with one or two parameters run whole. The seed,
``TAL_FAST_TEST_SAMPLE``, is printed below the tests; with ``TAL_FAST_ISA`` it decides which cases
show the pairs. Without a seed, as in ``make test-all``, every case runs.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

import pytest

VARIABLE = "TAL_FAST_TEST_SAMPLE"


def seed() -> str | None:
    """The seed of the sample; None where every case is to run."""
    return os.environ.get(VARIABLE) or None


def summary() -> str:
    """A line for the end of pytest's output."""
    if seed() is None:
        return "grids of cases: whole"
    return f"grids of cases: a sample of all pairs, {VARIABLE}={seed()}; without it every case"


def covering(rows: Sequence[tuple[Hashable, ...]], seed: str) -> list[int]:
    """Chooses rows so that two values which share a row share a chosen row too.

    Args:
        rows: one case each; what stands for its value of every parameter.
        seed: decides between rows that show equally many new pairs.

    Returns:
        The numbers of the chosen rows, ascending. All rows where there are fewer than three
        parameters; of parameters that always move together, one counts.
    """
    columns = list(dict.fromkeys(zip(*rows, strict=True)))
    if sum(len(set(column)) > 1 for column in columns) < 3:
        return list(range(len(rows)))
    pairs = [set(itertools.combinations(enumerate(row), 2)) for row in zip(*columns, strict=True)]
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    # The row with most new pairs comes next. What a row shows anew only shrinks, so the count that
    # a row had earlier is good enough to pass it over.
    heap = [(-len(pairs[row]), place, row) for place, row in enumerate(order)]
    heapq.heapify(heap)
    shown: set[object] = set()
    chosen = []
    while heap:
        _, place, row = heapq.heappop(heap)
        new = len(pairs[row] - shown)
        if heap and (-new, place) > heap[0][:2]:
            heapq.heappush(heap, (-new, place, row))
        elif new:
            chosen.append(row)
            shown |= pairs[row]
    return sorted(chosen)


def _values(case: pytest.Function) -> tuple[Hashable, ...]:
    """The value of every parameter of a case; what one ``parametrize`` names together is one."""
    given = case.callspec.params
    together = [
        names.replace(",", " ").split() if isinstance(names, str) else names
        for names in (mark.args[0] for mark in case.iter_markers("parametrize"))
    ]
    alone = [[name] for name in given if not any(name in names for names in together)]
    # By identity: the cases of a test share the objects, and not all of them can be compared.
    groups = sorted(sorted(names) for names in (*together, *alone))
    return tuple(tuple(id(given[name]) for name in names) for names in groups)


def thin_out(items: list[pytest.Item], seed: str) -> list[pytest.Item]:
    """Takes what is not in the sample out of ``items`` and returns it."""
    grids: defaultdict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            grids[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    seed = f"{seed} {os.environ.get('TAL_FAST_ISA', '')}"
    for name, cases in grids.items():
        kept = covering([_values(case) for case in cases], f"{seed} {name}")
        left_out |= set(cases) - {cases[number] for number in kept}
    gone = [item for item in items if item in left_out]
    items[:] = [item for item in items if item not in left_out]
    return gone
