# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for ``run_experiment``: quick, deterministic, and misbehaving on request.

Trials name them, ``"fake_experiment:function"``, so that the pool's processes find them too. Every
call appends a line to ``calls.jsonl`` beside the study, which tells what really ran.

A process that was started for these needs no torch, whose import takes longer than all its trials:
there the settings are those of the study's file, and the models that check them stay away. The real
ones are read where tests run trials in their own process, and in test_side_by_side.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from processes import HANG

from tal_fast import study
from tal_fast.study import StudyResult, StudySpec, trial
from tal_fast.study.execution import run_trial
from tal_fast.study.trial import TrialTask

STEPS = 40


@dataclass
class Result:
    average_map: float
    map_per_threshold: dict[str, float]
    epochs: int
    steps: int
    windows: int

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def run_study(spec: StudySpec, *, experiment: Any, console: Any = None) -> StudyResult:
    """``run_study`` with a stand-in, also in the processes that it starts."""
    before = trial.EXPERIMENT
    trial.EXPERIMENT = (
        experiment if isinstance(experiment, str) else f"{__name__}:{experiment.__name__}"
    )
    try:
        return study.run_study(spec, console=console)
    finally:
        trial.EXPERIMENT = before


def _settings_of(task: TrialTask) -> SimpleNamespace:
    training = yaml.safe_load(Path(task.config).read_text("utf-8")).get("training", {})
    training |= {"seed": task.trial.seed, "budget": task.trial.budget}
    for name, value in task.trial.options.items():
        section, _, key = name.partition(".")
        assert section == "training", name
        training[key] = value
    return SimpleNamespace(training=SimpleNamespace(**training))


if "torch" not in sys.modules and "pytest" not in sys.modules:
    run_trial._trial_config = _settings_of


def log_of(study: Path) -> Path:
    return study.parent / f"{study.name}.calls.jsonl"


def read_calls(study: Path) -> list[dict[str, Any]]:
    path = log_of(study)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _log(out: Path, **fields: Any) -> None:
    # out is STUDY/trials/.p010_r0.partial
    node = {"node": os.environ["FAKE_NODE"]} if "FAKE_NODE" in os.environ else {}
    line = json.dumps({"trial": out.name.strip(".").removesuffix(".partial"), **node, **fields})
    with open(log_of(out.parent.parent), "a") as file:
        file.write(line + "\n")


def score(seed: int, videos: int) -> float:
    return round(videos / (videos + 5) - (seed % 1000) / 20_000, 6)


def _finish(config: Any, train_videos: Any, out: Path) -> Result:
    value = score(config.training.seed, len(train_videos))
    result = Result(value, {"0.3": value * 1.1, "0.5": value, "0.7": value * 0.9}, 2, 8, 64)
    (out / "metrics.json").write_text(json.dumps(result.to_dict()))
    return result


def learn(config, data, *, train_videos, test_videos, out, resume, progress, threads):
    """Learns at once."""
    assert data.annotations.num_instances > 0
    assert not set(train_videos) & set(test_videos)
    _log(out, seed=config.training.seed, pid=os.getpid(), threads=threads, first=0)
    for stage in ("train", "predict", "evaluate"):
        progress(SimpleNamespace(stage=stage, step=1, total_steps=1, epoch=1, epochs=1))
    return _finish(config, train_videos, out)


def learn_where(config, data, *, train_videos, out, **rest):
    """Learns at once and tells which GPU it would see."""
    _log(out, gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), first=0)
    return _finish(config, train_videos, out)


def learn_under_averages(config, data, *, train_videos, out, positions=None, progress, **rest):
    """Learns at once, tells what it was given, and scores every mode of averaging."""
    _log(
        out,
        seed=config.training.seed,
        budget=config.training.budget,
        steps=config.training.steps,
        holdout=config.training.holdout,
        videos=len(train_videos),
        positions=positions,
        first=0,
    )
    result = _finish(config, train_videos, out)
    result.ema = {
        mode: {
            "average_map": result.average_map - 0.01 * index,
            "map_per_threshold": {
                key: value - 0.01 * index for key, value in result.map_per_threshold.items()
            },
        }
        for index, mode in enumerate(config.training.ema)
    }
    return result


def learn_slowly(config, data, *, train_videos, out, resume, progress, stays=None, **rest):
    """Learns in steps of 20 ms, with a checkpoint after each, from which it goes on."""
    checkpoint = out / "step.txt"
    first = int(checkpoint.read_text()) if resume and checkpoint.exists() else 0
    _log(out, pid=os.getpid(), first=first)

    def report(step):
        progress(SimpleNamespace(stage="train", step=step, total_steps=STEPS, epoch=1, epochs=1))

    for step in range(first, STEPS):
        time.sleep(0.02)
        temporary = out / "step.tmp"
        temporary.write_text(str(step + 1))
        temporary.replace(checkpoint)
        report(step + 1)
    end = time.monotonic() + HANG
    while stays is not None and not first and stays(out.parent.parent):
        assert time.monotonic() < end, "nobody told this trial to go on"
        time.sleep(0.02)
        report(STEPS)
    _log(out, pid=os.getpid(), finished=True)
    return _finish(config, train_videos, out)


def _telling(study: Path) -> Path:
    return study.parent / f"{study.name}.told"


def tell(study: Path) -> None:
    """Lets go on what waits for it in the two below."""
    _telling(study).touch()


def _untold(study: Path) -> bool:
    return not _telling(study).exists()


def learn_until_told(*arguments, **rest):
    """As learn_slowly, but stays at its last step until it is told to go on, or is resumed."""
    return learn_slowly(*arguments, stays=_untold, **rest)


def learn_two_until_told(*arguments, **rest):
    """As learn_slowly for the first two trials that finish, for the others as learn_until_told."""

    def stays(study: Path) -> bool:
        return _untold(study) and sum("finished" in call for call in read_calls(study)) >= 2

    return learn_slowly(*arguments, stays=stays, **rest)


def stuck(config, data, *, train_videos, test_videos, out, resume, progress, threads):
    """Goes on for ever, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _log(out, pid=os.getpid(), first=0)
    while True:
        time.sleep(0.05)


def fail_at_half(config, data, *, train_videos, out, **rest):
    """Fails for p = 50 %, as on a bug."""
    if out.name.startswith(".p050"):
        (out / "left.txt").write_text("half")
        raise ZeroDivisionError("no windows")
    return learn(config, data, train_videos=train_videos, out=out, **rest)


def fail(config, data, *, out, **rest):
    """Fails always."""
    _log(out, first=0)
    raise RuntimeError("nothing works")


def full_disk(config, data, *, train_videos, out, **rest):
    """Finds the disk full at p = 50 %."""
    if out.name.startswith(".p050"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "checkpoint.pt"))
    return learn(config, data, train_videos=train_videos, out=out, **rest)


def leave(config, data, **rest):
    """Leaves the process as a script does."""
    raise SystemExit(3)


def poisoned(config, data, *, train_videos, out, **rest):
    """Fails on what a killed run left behind, but not from scratch."""
    if (out / "step.txt").exists():
        raise RuntimeError("checkpoint is broken")
    return learn(config, data, train_videos=train_videos, out=out, **rest)


def die_once(config, data, *, train_videos, out, **rest):
    """Is killed from outside the first time that p = 50 % is tried."""
    mark = log_of(out.parent.parent).with_suffix(".died")
    if out.name.startswith(".p050") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(config, data, train_videos=train_videos, out=out, **rest)


def die_always(config, data, *, out, **rest):
    """Is killed from outside whenever it is tried."""
    _log(out, first=0)
    os.kill(os.getpid(), signal.SIGKILL)


def chatty(config, data, *, train_videos, out, **rest):
    """Prints to standard output, from Python and below it."""
    print('{"done": "not a message"}', flush=True)
    os.write(1, b"{broken\n")
    return learn(config, data, train_videos=train_videos, out=out, **rest)


def rating(seed: int) -> float:
    """What held-out videos say of a training: not what the test videos say."""
    return round(seed * 7919 % 1000 / 1000, 3)


def learn_with_files(config, data, *, train_videos, out, **rest):
    """Learns at once and writes the large files of a real training, for every mode of averaging."""
    _log(out, first=0)
    result = _finish(config, train_videos, out)
    result.ema = {}
    for index, mode in enumerate(config.training.ema):
        ending = f"_{mode}" if index else ""
        (out / f"checkpoint{ending}.pt").write_text(mode)
        (out / f"predictions{ending}.json").write_text(mode)
        result.ema[mode] = {
            "average_map": result.average_map,
            "map_per_threshold": result.map_per_threshold,
        }
        if config.training.holdout:
            result.ema[mode]["held_out"] = rating(config.training.seed + index)
    return result
