# SPDX-License-Identifier: Apache-2.0
"""Commands that are interrupted: they say what is kept, and how to go on, and end by the signal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HANG

from tal_fast import cli
from tal_fast.data.synthetic import make_synthetic
from tal_fast.interrupts import TerminatedError, sigterm_as_interrupt

BOTH = (signal.SIGINT, signal.SIGTERM)
SMALL = (
    "model.d_model=32", "model.num_heads=4", "model.encoder_layers=1", "model.decoder_layers=2",
    "model.feedforward=32", "model.num_queries=8", "model.roi_bins=4", "training.epochs=2",
    "training.batch_size=4", "training.amp=float32", "training.tensorboard=never",
)  # fmt: skip

# The command, which sends itself a signal at the third call of a function with this argument.
PROGRAM = """
import importlib, os, signal, sys
from tal_fast import cli

number, place, skipped = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module, _, name = place.partition(":")
owner = importlib.import_module(module)
*outer, name = name.split(".")
for part in outer:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), []

def interrupted(*args, **kwargs):
    calls.append(args)
    if len(calls) == skipped + 1:
        os.kill(os.getpid(), number)
    return real(*args, **kwargs)

setattr(owner, name, interrupted)
sys.exit(cli.main(sys.argv[4:]))
"""
STEP = ("tal_fast.training.trainer:Trainer._report", 2)
START = ("tal_fast.training.trainer:Trainer._start", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("my data") / "a set"  # to be quoted
    make_synthetic(folder, size="demo", train_videos=20, test_videos=6, channels=8)
    return folder


def interrupted(number: int, where: tuple[str, int], *words: object) -> tuple[int, str, list[str]]:
    """Runs a command that gets a signal; returns its status, what it said, and what is next."""
    given = [str(word) for word in (number, *where, *words)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=HANG
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "interrupted: " in done.stderr, f"status {done.returncode}: {done.stderr}"
    said, following = done.stderr.rstrip().splitlines()[-2:]
    assert said.startswith("interrupted: "), done.stderr
    program, *again = shlex.split(following.removeprefix("next: "))
    assert program == "tal-fast"
    return done.returncode, said, again


def status_of(number: int) -> int:
    return 130 if number == signal.SIGINT else -number  # 143 in a shell


def train(data: Path, out: Path, *more: str) -> list[str]:
    settings = [word for item in SMALL for word in ("--set", item)]
    model = ["--model", "tadtr-small"]
    return ["train", "--data", str(data), *model, "--out", str(out), *settings, *more]


@pytest.mark.parametrize("number", BOTH)
def test_a_training_goes_on_with_the_command_that_is_told(data, tmp_path, number, capsys):
    out = tmp_path / "the run"
    words = train(data, out)
    status, said, again = interrupted(number, STEP, *words)
    assert status == status_of(number)
    assert said == (
        f"interrupted: the training is saved in {out / 'resume.pt'}, the same command goes on from "
        "there"
    )
    assert again == words
    assert cli.main(again) == 0
    assert (out / "checkpoint.pt").exists()
    capsys.readouterr()


def test_a_training_that_began_anew_goes_on_without_that_option(data, tmp_path):
    out = tmp_path / "out"
    interrupted(signal.SIGINT, STEP, *train(data, out))
    words = train(data, out, "--no-resume")
    # The state of the one before is none of this one, which has not begun.
    _, said, again = interrupted(signal.SIGINT, START, *words)
    assert said == "interrupted: nothing is kept, the same command starts over"
    assert again == words
    _, said, again = interrupted(signal.SIGINT, STEP, *words)
    assert "is saved in" in said
    assert again == words[:-1]


@pytest.mark.parametrize("number", BOTH)
def test_a_study_goes_on(data, tmp_path, number):
    out = tmp_path / "out"
    settings = [word for item in SMALL for word in ("--set", item)]
    words = ["study", "run", "--data", str(data), "--model", "tadtr-small", "--out", str(out)]
    words += ["--fractions", "0.5,1", "--repetitions", "1", "--jobs", "2", *settings]
    where = ("tal_fast.study.display:StudyDisplay.progress", 3)
    status, said, again = interrupted(number, where, *words)
    assert status == status_of(number)
    assert said == (
        f"interrupted: finished trials and the saved states of running ones are in {out / 'trials'}"
        ", the same command goes on from there"
    )
    assert again == words


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_commands_that_keep_nothing_start_over(data, tmp_path, number, command):
    results = tmp_path / "results.json"
    results.write_text("{}")
    if command == "predict":
        words = ["--checkpoint", "run 1", "--data", data, "--out", results]
        where = ("tal_fast.api:predict", 0)
    else:
        words = ["--annotations", data, "--predictions", results]
        where = ("tal_fast.api:evaluate", 0)
    status, said, again = interrupted(number, where, command, *words)
    assert status == status_of(number)
    assert said == "interrupted: nothing is kept, the same command starts over"
    assert again == [command, *map(str, words)]
    assert results.read_text() == "{}"


def test_a_second_sigterm_is_not_held_back():
    before = signal.getsignal(signal.SIGTERM)
    passed = []
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with contextlib.suppress(ZeroDivisionError), sigterm_as_interrupt():
            with pytest.raises(TerminatedError):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            signal.signal(signal.SIGTERM, lambda *_: passed.append("the second"))
            os.kill(os.getpid(), signal.SIGTERM)
            assert passed == ["the second"]
            signal.raise_signal = lambda number, real=signal.raise_signal: (
                passed.append(number),
                setattr(signal, "raise_signal", real),
            )
        assert passed == ["the second", signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_handlers_that_are_set_are_left_alone(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with sigterm_as_interrupt():
            assert signal.getsignal(signal.SIGTERM) == handler
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)
