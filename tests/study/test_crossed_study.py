# SPDX-License-Identifier: Apache-2.0
"""Studies that cross samplings, budgets and averages, and train a draw several times."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import get_args, get_type_hints

import fake_experiment as fake
import pytest
import yaml
from fake_experiment import run_study

from tal_fast.curves import read_curves
from tal_fast.data import WindowSet, open_dataset
from tal_fast.errors import ConfigError, DataError
from tal_fast.study import report_study
from tal_fast.study.results import build_curves
from tal_fast.study.trial import BUDGETS, Trial, TrialRecord
from tal_fast.training.config import TrainingConfig


@pytest.fixture
def crossed(spec):
    return replace(
        spec,
        fractions=(0.2, 1.0),
        repetitions=2,
        samplings=("video", "nested-window"),
        budgets=("epochs", "steps"),
        ema=("off", "plain"),
    )


def learn(spec, quiet, **changes):
    return run_study(replace(spec, **changes), experiment=fake.learn_under_averages, console=quiet)


def calls(spec):
    return {call["trial"]: call for call in fake.read_calls(spec.out)}


def records(spec):
    return [json.loads(path.read_text()) for path in spec.out.glob("trials/*/trial.json")]


def test_budgets_are_those_of_a_training():
    annotation = get_type_hints(TrainingConfig, include_extras=True)["budget"]
    assert get_args(annotation) == BUDGETS


def test_names():
    def trial(**changes):
        return Trial("m", 0.1, 2, 0, **changes).name

    assert trial() == "p010_r2"
    assert trial(training=1) == "p010_r2_s1"
    assert trial(budget="wall-clock") == "wall-clock.p010_r2"
    assert trial(sampling="nested-window", budget="steps", training=3) == (
        "nested-window.steps.p010_r2_s3"
    )


@pytest.mark.usefixtures("no_pictures")
def test_everything_is_crossed(crossed, quiet):
    result = learn(crossed, quiet)
    assert result.ran == 16
    assert [tuple(c.labels.values()) for c in result.curves] == [
        (sampling, budget, ema)
        for sampling in ("video", "nested-window")
        for budget in ("epochs", "steps")
        for ema in ("off", "plain")
    ]
    assert all([point.n for point in curve.points] == [2, 2] for curve in result.curves)
    for off, plain in zip(result.curves[::2], result.curves[1::2], strict=True):
        for a, b in zip(off.points, plain.points, strict=True):
            assert b.mean == pytest.approx(a.mean - 1)
            assert b.per_tiou["0.5"][0] == pytest.approx(a.per_tiou["0.5"][0] - 1)
    # Extending by an axis runs only what is new; other averages are another study.
    more = learn(crossed, quiet, budgets=("epochs", "steps", "convergence"), samplings=("video",))
    assert more.ran == 4
    with pytest.raises(ConfigError, match=r"config\.training\.ema"):
        learn(crossed, quiet, ema=("off",))


@pytest.mark.usefixtures("no_pictures")
def test_trials_of_one_draw_share_sample_and_seed(crossed, quiet):
    learn(crossed, quiet, seeds=2)
    found = calls(crossed)
    assert len(found) == 32
    for budget in ("", "steps."):
        for sampling in ("", "nested-window."):
            assert found[f"{sampling}{budget}p020_r0"]["seed"] == found["p020_r0"]["seed"]
    seeds = {found[f"p020_r{r}{s}"]["seed"] for r in (0, 1) for s in ("", "_s1")}
    assert len(seeds) == 4
    by_name = {record["trial"]: record for record in records(crossed)}
    assert by_name["p020_r0"]["sample"] == by_name["steps.p020_r0_s1"]["sample"]
    assert by_name["p020_r0"]["sample"] != by_name["p020_r1"]["sample"]
    assert found["steps.p020_r0"]["budget"] == "steps"
    assert found["p020_r0"]["budget"] == "epochs"


@pytest.mark.usefixtures("no_pictures")
def test_windows_are_those_that_the_training_cuts(crossed, quiet):
    learn(crossed, quiet)
    data = open_dataset(crossed.data)
    windows = WindowSet(data, data.splits["train"])
    call = calls(crossed)["nested-window.p020_r1"]
    assert call["videos"] == 20, "all videos are handed over, and positions in their windows"
    assert len(call["positions"]) == round(0.2 * len(windows))
    full = calls(crossed)["nested-window.p100_r1"]["positions"]
    assert full == list(range(len(windows)))
    (record,) = (r for r in records(crossed) if r["trial"] == "nested-window.p020_r1")
    touched = {windows.windows[position].video for position in call["positions"]}
    assert set(record["sample"]["videos"]) == touched
    assert record["sample"]["windows"] == len(call["positions"])
    assert calls(crossed)["p020_r1"]["positions"] is None


@pytest.mark.usefixtures("no_pictures")
def test_steps_are_those_of_the_whole_set(crossed, quiet):
    learn(crossed, quiet)
    data = open_dataset(crossed.data)
    windows = len(WindowSet(data, data.splits["train"]))
    assert {call["steps"] for call in calls(crossed).values()} == {16 * (windows // 16)}
    config = yaml.safe_load((crossed.out / "study.yaml").read_text())["settings"]["config"]
    assert config["training"]["steps"] == 16 * (windows // 16)
    assert "budget" not in config["training"]


@pytest.mark.usefixtures("no_pictures")
def test_convergence_keeps_videos_back_and_others_do_not(spec, quiet):
    learn(spec, quiet, budgets=("epochs", "convergence"), fractions=(1.0,), repetitions=1)
    found = calls(spec)
    assert found["p100_r0"]["holdout"] == 0.0
    assert found["convergence.p100_r0"]["holdout"] == 0.2
    own = replace(spec, out=spec.out.parent / "own", overrides={"training.holdout": 0.3})
    learn(own, quiet, budgets=("convergence",), fractions=(1.0,), repetitions=1)
    assert calls(own)["convergence.p100_r0"]["holdout"] == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ("epoch",)}, "expected one of epochs, steps.*did you mean 'epochs'"),
        ({"budgets": ()}, "budget: expected at least one"),
        ({"budgets": ("steps", "steps")}, "'steps' more than once"),
        ({"budgets": ("wall-clock",)}, "give it with --set training.seconds=SECONDS"),
        ({"samplings": ("windows",)}, "sampling: expected one of .*did you mean 'window'"),
        ({"samplings": ("window",), "budgets": ("convergence",)}, "no whole video to keep back"),
        (
            {"samplings": ("window",), "overrides": {"training.holdout": 0.2}},
            "no whole video to keep back",
        ),
        ({"ema": ("off", "plane")}, r"training\.ema"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
    ],
)
def test_requests_that_make_no_sense(spec, quiet, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_study(replace(spec, **changes), experiment=fake.fail, console=quiet)
    assert not spec.out.exists()


@pytest.mark.usefixtures("no_pictures")
def test_tables_name_the_curves(crossed, quiet):
    learn(crossed, quiet, seeds=2)
    with open(crossed.out / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 32
    assert {row["ema"] for row in rows if row["trial"] == "steps.p020_r0_s1"} == {"off", "plain"}
    for path in (crossed.out, crossed.out / "curve.csv"):
        curves = read_curves(path)
        assert len(curves) == 8
        assert all(list(curve.repetitions) == [2, 2] for curve in curves), "draws, not trainings"
    names = {curve.name for curve in read_curves(crossed.out)}
    assert "tadtr-small, nested-window, steps, plain" in names


@pytest.mark.usefixtures("no_pictures")
def test_commands_of_all_runs_are_kept(crossed, quiet):
    learn(crossed, quiet, samplings=("video",))
    learn(crossed, quiet)
    study = yaml.safe_load((crossed.out / "study.yaml").read_text())
    commands = [run["command"] for run in study["runs"]]
    assert len(commands) == 2
    assert "--sampling" not in commands[0]
    assert "--sampling video,nested-window --budget epochs,steps --ema off,plain" in commands[1]
    assert study["command"] == commands[1]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ema: ema["plain"].pop("average_map"), r"expected result\.ema\.plain\.average_map"),
        (
            lambda ema: ema.pop("plain"),
            "p020_r1: expected scores of EMA plain .* found those of off",
        ),
    ],
)
def test_trials_without_the_scores_of_an_average(crossed, quiet, damage, message):
    learn(crossed, quiet, samplings=("video",), budgets=("epochs",))
    path = crossed.out / "trials" / "p020_r1" / "trial.json"
    record = json.loads(path.read_text())
    damage(record["result"]["ema"])
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        report_study(crossed.out)


def values(draws):
    """Records of one fraction, from average mAP per draw and training."""
    sample = {"videos": ["v"], "instances": 1, "classes": ["c"], "missing_classes": []}
    contents = [
        {
            "trial": f"p050_r{draw}_s{training}",
            "settings": "x",
            "seed": 0,
            "fraction": 0.5,
            "repetition": draw,
            "training": training,
            "sampling": "video",
            "budget": "epochs",
            "sample": sample,
            "result": {"average_map": value, "map_per_threshold": {"0.5": value}},
        }
        for draw, some in enumerate(draws)
        for training, value in enumerate(some)
    ]
    return [TrialRecord.from_dict(content, "here") for content in contents]


def test_spread_of_trainings_and_of_draws_by_hand():
    (point,) = build_curves(values([[0.1, 0.3], [0.5, 0.7]]))[0].points
    assert (point.n, len(point.trainings)) == (2, 4)
    assert point.mean == pytest.approx(40)
    # Draws' means 0.2 and 0.6: variance 0.08. Within a draw: variance 0.02 each.
    assert point.deviation == pytest.approx(100 * 0.08**0.5)
    assert point.seed_deviation == pytest.approx(100 * 0.02**0.5)
    assert point.draw_deviation == pytest.approx(100 * (0.08 - 0.01) ** 0.5)
    assert point.trainings == pytest.approx((10, 30, 50, 70))


def test_spread_where_draws_bring_none():
    (point,) = build_curves(values([[0.1, 0.5], [0.1, 0.5]]))[0].points
    assert point.draw_deviation == 0.0
    (one,) = build_curves(values([[0.1, 0.5]]))[0].points
    assert (one.seed_deviation, one.draw_deviation) == (pytest.approx(100 * 0.08**0.5), None)
    (single,) = build_curves(values([[0.1], [0.5]]))[0].points
    assert (single.seed_deviation, single.draw_deviation) == (None, None)


def test_unfinished_draws_weigh_as_draws():
    (point,) = build_curves(values([[0.2, 0.4], [0.9]]))[0].points
    assert point.mean == pytest.approx((30 + 90) / 2)
    (curve,) = build_curves(values([[0.2, 0.4], [0.9]]))
    assert curve.labels == {"sampling": "video", "budget": "epochs", "ema": "off"}
