# SPDX-License-Identifier: Apache-2.0
"""The command that a command ends with works as it stands, and is about the same thing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import fake_experiment
import pytest

from tal_fast import cli
from tal_fast.cli.next_steps import free_place, given_options
from tal_fast.cli.options import MachineOptions, SettingOptions
from tal_fast.data import open_dataset
from tal_fast.study import trial


def next_of(capsys: pytest.CaptureFixture[str], *command: object) -> list[str]:
    """Runs a command and returns the one that it ends with."""
    status = cli.main([str(word) for word in command])
    errors = capsys.readouterr().err
    assert status == 0, errors
    last = errors.splitlines()[-1]
    assert last.startswith("next: "), errors
    return shlex.split(last.removeprefix("next: "))


@pytest.fixture
def learns(monkeypatch) -> None:
    monkeypatch.setattr(trial, "EXPERIMENT", "fake_experiment:learn")


STUDY = ("--fractions", "0.1,0.2,0.5,1", "--model", "tridet-small", "--threads", 1)


def test_after_a_study_of_one_repetition_comes_one_of_more(
    capsys, learns, no_pictures, tiny_data, tmp_path
):
    out = tmp_path / "s"
    given = ("--data", tiny_data, "--out", out, *STUDY)
    more = next_of(capsys, "study", "run", *given, "--repetitions", 1)
    assert more[:3] == ["tal-fast", "study", "run"]
    assert more[more.index("--model") + 1] == "tridet-small", "that of this run"
    assert more[more.index("--repetitions") + 1] == "3"
    extrapolate = next_of(capsys, *more[1:])
    assert len(fake_experiment.read_calls(out)) == 12, "the first trials were there already"
    assert extrapolate == [*("tal-fast", "study", "extrapolate", "--study", str(out)),
                           *("--times", "3")]  # fmt: skip
    plan = next_of(capsys, *extrapolate[1:], "--draws", 50)
    assert plan[1:3] == ["study", "plan"]
    assert plan[-2:] == ["--draws", "50"]
    draw = next_of(capsys, *plan[1:])
    assert draw[1:3] == ["study", "draw"]
    end = next_of(capsys, *draw[1:-1], tmp_path / "curve.svg")
    assert end[0] == "open", "the last step leads back to none"


def test_after_a_score_the_study_that_is_there_goes_on(
    capsys, learns, no_pictures, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "found.json"
    dataset = open_dataset(tiny_data)
    found = {"segment": [0.0, 1.0], "label": dataset.classes[0], "score": 0.5}

    def predicted_by(**model):
        videos = {dataset.splits["test"][0]: [found]}
        results.write_text(json.dumps({**model, "results": videos}))

    predicted_by(model="tridet-small")
    score = ("evaluate", "--annotations", tiny_data, "--predictions", results)
    first = next_of(capsys, *score)
    assert first[1:3] == ["study", "run"]
    assert first[-4:] == ["--model", "tridet-small", "--out", "results/first"]
    given = ("--data", tiny_data, "--out", "results/mine", *STUDY, "--repetitions", 2)
    next_of(capsys, "study", "run", *given)
    again = next_of(capsys, *score)
    assert again[again.index("--out") + 1] == "results/mine"
    next_of(capsys, *again[1:])
    assert len(fake_experiment.read_calls(Path("results/mine"))) == 8, "nothing was trained again"
    predicted_by(model="actionformer-small")  # of which there is no study yet
    other = next_of(capsys, *score)
    assert other[-4:] == ["--model", "actionformer-small", "--out", "results/first"]
    predicted_by()  # by another code, which no study trains
    page = next_of(capsys, *score, "--split", "test")
    assert page[1] == "evaluate"
    assert page[page.index("--split") + 1] == "test"
    assert page[-2:] == ["--report", "report"]
    end = next_of(capsys, *page[1:])
    assert end[0] == "open"


def test_a_study_without_repetitions_names_commands_that_take_what_it_advises(
    capsys, learns, no_pictures, tiny_data, tmp_path
):
    given = ("--data", tiny_data, "--out", tmp_path / "s", *STUDY, "--repetitions", 1)
    assert cli.main([str(word) for word in ("study", "run", *given)]) == 0
    note = next(line for line in capsys.readouterr().err.splitlines() if "--deviation" in line)
    assert "to extrapolate or plan: --deviation POINTS" in note


def test_several_curves_are_told_apart(capsys, learns, no_pictures, tiny_data, tmp_path):
    given = ("--data", tiny_data, "--out", tmp_path / "s", *STUDY, "--repetitions", 2)
    extrapolate = next_of(capsys, "study", "run", *given, "--budget", "epochs,convergence")
    assert "--curve" in extrapolate
    next_of(capsys, *extrapolate[1:], "--draws", 20)


def test_shares_that_do_not_reach_far_are_asked_about_nearer(
    capsys, learns, no_pictures, tiny_data, tmp_path
):
    given = ("--data", tiny_data, "--out", tmp_path / "s", "--fractions", "0.1,0.2,0.3")
    extrapolate = next_of(capsys, "study", "run", *given, "--repetitions", 2)
    assert extrapolate[-2:] == ["--times", "1.5"]
    next_of(capsys, *extrapolate[1:], "--draws", 20)


def test_two_shares_lead_to_no_fit(capsys, learns, no_pictures, tiny_data, tmp_path):
    given = ("--data", tiny_data, "--out", tmp_path / "s", "--fractions", "0.5,1")
    assert next_of(capsys, "study", "run", *given, "--repetitions", 2)[0] == "read"
    status = cli.main(["study", "report", "--study", str(tmp_path / "s")])
    assert status == 0
    assert "cannot be said yet" in capsys.readouterr().err


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("p (%),mAP (%)\n10,20\n20,30\n40,38\n70,43\n100,45\n")
    return path


def test_a_table_without_repetitions_is_drawn_and_not_extrapolated(capsys, table, tmp_path):
    draw = next_of(capsys, "study", "fit", "--study", table, "--repetitions", 1, "--draws", 20)
    assert draw[1:3] == ["study", "draw"]
    assert draw[draw.index("--repetitions") + 1] == "1"
    after = next_of(capsys, *draw[1:-1], tmp_path / "curve.png")
    assert after[0] == "open"


def test_what_was_said_of_a_table_is_said_again(capsys, table):
    given = ("--study", table, "--repetitions", 3, "--deviation", 1.5, "--draws", 20)
    plan = next_of(capsys, "study", "extrapolate", *given, "--times", 2, "--families", "pow3,exp3")
    assert plan[plan.index("--deviation") + 1] == "1.5"
    assert plan[plan.index("--families") + 1] == "pow3,exp3"
    next_of(capsys, *plan[1:])


def test_directories_that_are_free(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert free_place("runs/first") == Path("runs/first")
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first-2").mkdir()
    assert free_place("runs/first") == Path("runs/first-3")


def test_options_given_again():
    settings = SettingOptions(config=Path("c.yaml"), settings=["a.b=1", "c.d=x"])
    assert given_options(settings, MachineOptions(threads=2, trust_times=True)) == [
        *("--config", "c.yaml", "--set", "a.b=1", "--set", "c.d=x"),
        *("--threads", "2", "--trust-times"),
    ]
    assert given_options(SettingOptions(), MachineOptions()) == []


def test_a_profile_of_sizes_goes_on_with_those(capsys):
    given = ("--model", "tridet-small", "--channels", 8, "--classes", 3, "--lengths", "64,96")
    predict = next_of(
        capsys, "profile", "model", *given, "--set", "model.width=32", "--stride", 2, "--fps", 30
    )
    for words in ("--channels 8", "--classes 3", "--lengths 64,96", "--set model.width=32",
                  "--stride 2", "--fps 30", "--model tridet-small"):  # fmt: skip
        assert words in " ".join(predict)
