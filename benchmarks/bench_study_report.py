# SPDX-License-Identifier: Apache-2.0
"""What a study of 5,000 finished trials costs before and after the trainings.

Ten p, 25 draws, five trainings on each, videos and windows, epochs and steps, three averages:
5,000 trainings, 12 curves. Making it up takes a minute or two.
"""

from __future__ import annotations

from typing import Any

import pytest
from made_study import make_study, run_made_up

from tal_fast.study import StudySpec, report_study

SHARES = tuple(round(0.1 * level, 1) for level in range(1, 11))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return make_study(
        tmp_path_factory.mktemp("study"),
        fractions=SHARES,
        repetitions=25,
        seeds=5,
        samplings=("video", "window"),
        budgets=("epochs", "steps"),
        ema=("off", "plain", "corrected"),
        overrides={"training.ema_decay": 0.99},
    )


def _resume(spec: StudySpec) -> None:
    _check(run_made_up(spec))


def _report(spec: StudySpec) -> None:
    _check(report_study(spec.out))


def _report_from_nothing(spec: StudySpec) -> None:
    for path in spec.out.iterdir():
        if path.name not in ("study.yaml", "config.yaml", "trials"):
            path.unlink()
    _report(spec)


def _check(result: Any) -> None:
    assert (result.ran, result.reused, len(result.curves)) == (0, 5000, 12)
    assert result.files["page"].stat().st_size > 100_000


def _nothing(*results: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (_report_from_nothing, "report: tables, four fits, pictures, page"),
        (_report, "report again: tables, pictures, page; fits kept"),
        (_resume, "run again: nothing to do; tables"),
    ],
)
def test_finished_study(compare: Any, finished: StudySpec, call: Any, what: str) -> None:
    compare(
        "study report",
        f"5000 finished trials, 12 curves; {what}",
        lambda: call(finished),
        [],
        check=_nothing,
        verified="all trials found, the page there",
        repetitions=5,
    )
