# SPDX-License-Identifier: Apache-2.0
"""The tables that compare models are those of the studies' trials."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import four_models  # noqa: E402
import model_choice  # noqa: E402
import model_studies  # noqa: E402
import poster_claims  # noqa: E402

SHARES = (0.1, 0.3, 1.0)
PAGES = [ROOT / "docs" / name for name in ("data-efficiency.md", "four-models.md")]
RESULTS = ROOT / "docs/results/four-models"


def write_study(folder: Path, curve: dict[tuple[str, str], tuple[float, ...]], shift: float = 0.0):
    """Writes trials: a curve per budget and average, three draws 1 point apart."""
    folder.mkdir(parents=True)
    lines = ["sampling,budget,ema,p,repetition,training,average_map,steps,videos"]
    for (budget, ema), values in curve.items():
        for p, value in zip(SHARES, values, strict=True):
            for repetition in range(3):
                points = (value + shift + repetition) / 100
                lines.append(f"video,{budget},{ema},{p},{repetition},0,{points},80,{round(40 * p)}")
    lines.append("window,epochs,off,0.1,0,0,0.99,80,40")  # not what is compared
    (folder / "trials.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def studies(tmp_path):
    concave, bent = (40.0, 60.0, 80.0), (2.0, 50.0, 79.0)
    for model, shift in (("tadtr", 0.0), ("tridet", 5.0)):
        write_study(
            tmp_path / f"hapt-{model}",
            {("epochs", "off"): concave, ("epochs", "plain"): bent, ("steps", "off"): concave},
            shift,
        )
    return model_studies.read_studies(tmp_path)


def test_intervals_are_those_of_student():
    values = [1.0, 2.0, 4.0]
    found = model_studies.mean_of(values)
    assert found.value == pytest.approx(7 / 3)
    assert found.half == pytest.approx(2.919986 * statistics.stdev(values) / math.sqrt(3), rel=1e-5)
    assert found.is_clear == (found.value > found.half)
    assert not model_studies.mean_of([5.0]).is_clear


def test_only_drawn_videos_and_first_trainings_are_read(studies):
    tadtr, tridet = studies
    assert (tadtr.model, tridet.model) == ("tadtr", "tridet")
    assert tadtr.draws("epochs", "off", 0.1) == pytest.approx({0: 40.0, 1: 41.0, 2: 42.0})
    assert tridet.shares("steps") == [0.1, 0.3, 1.0]


def test_shapes(studies):
    found = four_models.shape_of(studies[0], "epochs", "off")
    assert found.word == "concave"
    assert (found.first, found.steepest) == pytest.approx((41.0, 10.0))
    assert found.where == (0.1, 0.3)
    found = four_models.shape_of(studies[0], "epochs", "plain")
    assert found.word == "S"
    assert found.excess.value == pytest.approx(24.0 - 3.0)
    assert four_models.shape_of(studies[0], "steps", "plain") is None


def test_tables_pair_draws(studies):
    made = dict(four_models.blocks(studies))
    assert set(made) == {
        f"{name}-hapt" for name in ("curves", "shapes", "effects", "order", "claims", "early")
    }
    assert "| TadTR | epochs | plain | 3.0 ± 1.0 | 51.0 ± 1.0 | 80.0 ± 1.0 |" in made["curves-hapt"]
    effect = "| TadTR | plain average, epochs | -38.0 ± 0.0 | -10.0 ± 0.0 | -1.0 ± 0.0 |"
    assert effect in made["effects-hapt"]
    assert "| steps | off | TriDet | **46.0** | **66.0** | **86.0** |" in made["order-hapt"]
    behind = "| steps | off | TadTR | -5.0 ± 0.0 | -5.0 ± 0.0 | -5.0 ± 0.0 |"
    assert behind in made["order-hapt"]
    assert re.match(
        r"Told apart at 100 %, steps: TriDet over TadTR \(9\d %\)\.\n", made["early-hapt"]
    )
    # Five points apart at every share, draws one point apart: seldom wrong, and less with more.
    cells = re.search(r"\| steps \| 10 % \|(.*)\|\n", made["early-hapt"])[1].split("|")
    chances = [int(cell.strip(" %")) for cell in cells]
    assert chances == sorted(chances, reverse=True)
    assert 0 < chances[-1] < chances[0] < 20


def test_claims(tmp_path):
    concave, bent = (40.0, 60.0, 80.0), (2.0, 50.0, 79.0)
    for model, shift in (("tadtr", 0.0), ("temporalmaxer", 5.0)):
        curve = {(budget, ema): concave for budget in ("epochs", "steps") for ema in ("off",)}
        write_study(tmp_path / f"hapt-{model}", curve | {("epochs", "plain"): bent}, shift)
    gain = {"times_largest_p": 3.0, "gain": 2.0, "gain_interval": [1.0, 4.0]}
    curves = [{"name": "video, steps, EMA off", "extrapolation": gain},
              {"name": "window, steps, EMA off", "extrapolation": {**gain, "gain": 50.0}},
              {"name": "epochs, EMA off", "extrapolation": None}]  # fmt: skip
    (tmp_path / "hapt-tadtr/fits.json").write_text(json.dumps({"curves": curves}))
    studies = model_studies.read_studies(tmp_path)
    assert studies[0].gains == {("steps", "off"): (2.0, 1.0, 4.0)}

    def answers(studies):
        found = poster_claims.claims(studies, four_models.word_of)
        return [(one.verdict, one.numbers) for one in found]

    shape, data, same, more, nine, little, little_equal = answers(studies)
    # As published TadTR has no average: concave; TemporalMaxer's plain average makes the S.
    assert shape[0] == "holds in part"
    assert "TadTR concave, TemporalMaxer S" in shape[1]
    assert (data[0], same[0]) == ("does not hold", "does not hold")
    assert more == ("holds", "from 30 to 100 %, equal steps: TadTR +20.0 ± 0.0, "
                             "TemporalMaxer +20.0 ± 0.0")  # fmt: skip
    assert nine[0] == "does not hold"
    assert "TadTR +2.0 (+1.0 to +4.0)" in nine[1]
    assert little[0] == "does not hold"
    assert "10 % TadTR -33.0 ± 0.0" in little[1]
    assert little_equal[0] == "holds"
    # A single draw says nothing.
    few = [
        replace(one, points={key: value for key, value in one.points.items() if key[3] == 0})
        for one in studies
    ]
    assert {verdict for verdict, _ in answers(few)} == {"open", "does not hold"}  # the fit's stays
    # Nor is one shape common to all while that of a model is undecided.
    assert [answers(pair)[2][0] for pair in ([few[0], studies[1]], [studies[1]])] == [
        "open",
        "holds",
    ]


def test_a_page_is_filled_and_names_what_it_cannot_fill(studies):
    page = "a\n<!-- four models: shapes-hapt -->\nold\n<!-- end -->\nb\n"
    new = four_models.update_page(page, studies)
    assert "old" not in new
    assert "| TriDet | epochs | plain |" in new
    assert new.startswith("a\n")
    assert new.endswith("<!-- end -->\nb\n")
    assert four_models.update_page(new, studies) == new
    with pytest.raises(ValueError, match="block 'shapes-moon'"):
        four_models.update_page(page.replace("shapes-hapt", "shapes-moon"), studies)


def test_which_model_for_how_many_seconds(studies):
    step_ms = {"tadtr": 100.0, "tridet": 200.0}  # 80 steps: 8 and 16 seconds
    options = model_choice.choices(studies, step_ms, 0.3)
    assert {(one.study.model, one.budget, one.seconds) for one in options} == {
        (model, budget, seconds)
        for model, seconds in (("tadtr", 8.0), ("tridet", 16.0))
        for budget in ("epochs", "steps")
    }
    assert model_choice.best_within(options, 5.0) is None
    best, points, margin = model_choice.best_within(options, 10.0)
    assert (best.study.model, margin) == ("tadtr", None)
    assert points == pytest.approx(61.0)
    best, points, margin = model_choice.best_within(options, 20.0)
    assert best.study.model == "tridet"
    assert margin.value == pytest.approx(5.0)
    # The value is of all its draws, and the margin of those that the next model has, too.
    fewer = [
        replace(one, draws={0: one.draws[0]}) if one.study.model == "tadtr" else one
        for one in options
    ]
    best, points, margin = model_choice.best_within(fewer, 20.0)
    assert (best.study.model, margin.count) == ("tridet", 1)
    assert len(best.draws) > 1
    assert points == pytest.approx(sum(best.draws.values()) / len(best.draws))
    assert margin.value == pytest.approx(best.draws[0] - fewer[0].draws[0])
    text = model_choice.which(studies, step_ms)
    assert "| a training of | 4 videos | 12 videos | 40 videos |" in text
    assert "| 10 s | TadTR 41.0 | TadTR 61.0 | TadTR 81.0 |" in text
    assert "| 20 s | TriDet 46.0, +5.0 ± 0.0 |" in text


def test_trainings_planned_for_a_short_time_are_choices_too(tmp_path, studies):
    curve = {("steps", "off"): (30.0, 50.0, 70.0)}
    write_study(tmp_path / "short/hapt-tridet-20epochs", curve)
    table = tmp_path / "short/hapt-tridet-20epochs/trials.csv"
    lines = table.read_text().splitlines()
    kept = [line.replace(",80,", ",40,") for line in lines if "off,0.3," not in line]
    table.write_text("\n".join(kept) + "\n")
    (short,) = model_studies.read_short_studies(tmp_path)
    assert (short.data, short.model, short.shares("steps")) == ("hapt", "tridet", [0.1, 1.0])
    # Of long trainings TadTR alone takes 4 s, and it is ahead of a short TriDet after 8.
    text = model_choice.which(studies, {"tadtr": 50.0, "tridet": 200.0}, [short])
    assert "| a training of | 4 videos | 40 videos |" in text  # shares that the short ones have
    assert "| 10 s | TadTR 41.0, +10.0 ± 0.0 | TadTR 81.0, +10.0 ± 0.0 |" in text
    text = model_choice.which(studies, {"tadtr": 400.0, "tridet": 200.0}, [short])
    assert "| 10 s | TriDet 31.0 | TriDet 71.0 |" in text
    # What no time is enough for, and what more time does not change, is no row.
    text = model_choice.which(studies, {"tadtr": 100.0, "tridet": 200.0})
    assert [row.split(" |")[0] for row in text.splitlines()[2:]] == ["| 10 s", "| 20 s"]
    made = dict(four_models.blocks(studies, {"hapt": {"tadtr": 50.0, "tridet": 200.0}}, [short]))
    assert {"which-hapt", "which-short-hapt"} <= set(made)


def test_no_study_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no <data>-<model>/trials\.csv"):
        model_studies.read_studies(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_the_committed_studies(page):
    text = page.read_text("utf-8")
    studies = model_studies.read_studies(RESULTS)
    times = four_models.read_step_times(RESULTS)
    short = model_studies.read_short_studies(RESULTS)
    assert four_models.update_page(text, studies, times, short) == text, (
        f"run: python benchmarks/four_models.py --page docs/{page.name}"
    )
