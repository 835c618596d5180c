# SPDX-License-Identifier: Apache-2.0
"""docs/dialects.md: every number of its table, again."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from tal_fast.errors import DataError
from tal_fast.evaluation import DIALECTS, EvaluationWarning, evaluate

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "dialects.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `--dialect (.*?)` \| (.*?) \|$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize(("flags", "cells"), ROWS, ids=[flags for flags, _ in ROWS])
def test_row(flags, cells):
    name, *options = flags.split()
    options = {"strict": "--strict" in options, "ties": "numpy" if "numpy" in options else None}
    files = DOCS / "dialects/annotations.json", DOCS / "dialects/predictions.json"
    shown = [cell.strip(" *") for cell in cells.split("|")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)
        if shown[0] == "stops":
            with pytest.raises(DataError, match="stops here"):
                evaluate(*files, subset="test", dialect=name, **options)
            return
        result = evaluate(*files, subset="test", dialect=name, **options)
    # Ties that are left to numpy depend on the processor.
    rules = (DIALECTS[name].score_ties, DIALECTS[name].tiou_ties, options["ties"])
    tolerance = 0.7 if "numpy" in rules else 0.0051
    got = 100 * np.array([*result.map_per_threshold, result.average_map])
    np.testing.assert_allclose(got, [float(x) for x in shown[:6]], rtol=0, atol=tolerance)


def test_every_dialect_has_a_row():
    assert {flags.split()[0] for flags, _ in ROWS} == set(DIALECTS)


def test_the_table_of_rules_names_every_dialect():
    head = next(line for line in TEXT.splitlines() if line.startswith("| rule |"))
    assert [cell.strip() for cell in head.strip("|").split("|")][1:] == list(DIALECTS)
