# SPDX-License-Identifier: Apache-2.0
"""What a study is asked to do, and ``study.yaml``, which keeps results of different settings apart.

Only what decides a trial's outcome enters the hash of the settings. Fractions, repetitions,
trainings per draw, samplings and budgets do not: a study may be extended by any of them, and every
trial names its own. Nor do jobs, threads or where the data lies. The modes of weight averaging do,
since one training is tested under all of them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tal_fast.data.files import write_text_atomically
from tal_fast.data.fingerprint import changed_annotations, changed_features, data_fingerprint
from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError, DataError

__all__ = [
    "BUDGETS",
    "StudySpec",
    "check_same_data",
    "check_same_settings",
    "hash_settings",
    "read_data_facts",
    "read_study",
    "study_settings",
    "write_data_facts",
    "write_study",
]

STUDY_FILE = "study.yaml"
DATA_FILE = "data.json"
BUDGETS = ("epochs", "steps", "wall-clock", "convergence")
"""What may end the trainings of a study, ``training.budget``, in the order in which it is shown."""
_FORMAT = 2
_SHOWN = 5
# Settings that a trial sets itself, or that change its speed and not its outcome.
_NOT_THE_STUDYS = (
    ("training", "seed"),
    ("training", "budget"),
    ("training", "tensorboard"),
    ("data", "threads"),
)


@dataclass(frozen=True)
class StudySpec:
    """A request: run these trials of this model on this data.

    Attributes:
        data: prepared data directory.
        out: directory of the study.
        model: name of the preset.
        fractions: shares p of the training data, in (0, 1], rising.
        repetitions: draws per share.
        seeds: trainings per draw, which tell the spread of trainings from that of draws.
        samplings: how the samples are drawn (:data:`~tal_fast.study.sampling.draws.SAMPLINGS`).
        budgets: what ends the trainings; None takes ``training.budget``.
        ema: modes of weight averaging to test, all after one training; None takes
            ``training.ema``.
        split: ``"data"`` for the data's own split, ``"random"`` for the 80/20 draw of Algorithm 1.
        seed: decides the random split, the samples and the trials' seeds.
        config: YAML file of settings, or None.
        overrides: ``section.field=value`` each, over preset and file.
        jobs: trials at a time; None is 1, or as many as a cluster holds.
        threads: torch threads per trial; None shares the cores fairly, and is 1 on a cluster.
        ray: address of a Ray cluster to run on
            (:class:`~tal_fast.study.execution.ray_cluster.RayCluster`); None runs on this machine.
        gpus_per_trial: GPUs of each trial on a Ray cluster; below 1 that many share one.
        trust_times: go on with an earlier study although feature files have another size or time
            than then, since they hold the same.
    """

    data: Path
    out: Path
    model: str = "tadtr-small"
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    repetitions: int = 5
    seeds: int = 1
    samplings: tuple[str, ...] = ("video",)
    budgets: tuple[str, ...] | None = None
    ema: tuple[str, ...] | None = None
    split: str = "data"
    seed: int = 0
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None
    gpus_per_trial: float | None = None
    trust_times: bool = False

    def command(self) -> str:
        """Returns the command line that asks for this study."""
        words = ["tal-fast", "study", "run", "--data", str(self.data), "--model", self.model]
        words += ["--fractions", ",".join(f"{fraction:g}" for fraction in self.fractions)]
        words += ["--repetitions", str(self.repetitions)]
        if self.seeds != 1:
            words += ["--seeds", str(self.seeds)]
        if self.samplings != ("video",):
            words += ["--sampling", ",".join(self.samplings)]
        if self.budgets is not None:
            words += ["--budget", ",".join(self.budgets)]
        if self.ema is not None:
            words += ["--ema", ",".join(self.ema)]
        words += ["--split", self.split]
        words += ["--seed", str(self.seed)]
        if self.config is not None:
            words += ["--config", str(self.config)]
        for override in self.overrides:
            words += ["--set", override]
        if self.ray is not None:
            words += ["--ray", self.ray]
        if self.gpus_per_trial is not None:
            words += ["--gpus-per-trial", f"{self.gpus_per_trial:g}"]
        if self.jobs is not None:
            words += ["--jobs", str(self.jobs)]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        return shlex.join([*words, "--out", str(self.out)])


def study_settings(
    spec: StudySpec, config: Mapping[str, Any], dataset: Any, *, train: int, test: int
) -> dict[str, Any]:
    """Returns what decides the trials' outcomes.

    Args:
        spec: the request.
        config: the resolved configuration as nested dicts.
        dataset: the opened data set.
        train: number of training videos.
        test: number of test videos.
    """
    resolved = json.loads(json.dumps(config))
    for section, key in _NOT_THE_STUDYS:
        if isinstance(resolved.get(section), dict):
            resolved[section].pop(key, None)
    return {
        "model": spec.model,
        "data": {
            "name": dataset.name,
            "fingerprint": data_fingerprint(dataset),
            "classes": len(dataset.annotations.classes),
            "train_videos": train,
            "test_videos": test,
        },
        "split": spec.split,
        "seed": spec.seed,
        "config": resolved,
    }


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Returns the hash that every trial of a study with these settings carries."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def check_same_settings(out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a study's directory holds the settings that are asked for.

    Raises:
        ConfigError: they differ; the message names the first few.
    """
    if hash_settings(found) == hash_settings(wanted):
        return
    there, here = dict(_flat(found)), dict(_flat(wanted))
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    shown = "; ".join(
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys[:_SHOWN]
    )
    more = f" (and {len(keys) - _SHOWN} more)" if len(keys) > _SHOWN else ""
    raise ConfigError(
        f"{out}: holds a study with other settings: {shown}{more}; "
        "results are never mixed: use another --out"
    )


def read_data_facts(out: Path) -> dict[str, Any] | None:
    """Reads what a study keeps of its data; None when an earlier version began it.

    Raises:
        DataError: it cannot be read or was written by something else.
    """
    path = out / DATA_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if not isinstance(facts, dict) or not {"classes", "videos"} <= facts.keys():
        raise DataError(f"{path}: expected the keys classes and videos; remove it to begin it anew")
    return facts


def write_data_facts(out: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``data.json``, which tells a later run whether the data has changed."""
    write_text_atomically(out / DATA_FILE, json.dumps(facts, indent=1) + "\n")


def check_same_data(
    out: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, trust_times: bool
) -> None:
    """Checks that a study's trials were run on the data that is there now.

    Args:
        out: directory of the study.
        found: facts of the data then (:func:`~tal_fast.data.fingerprint.data_facts`).
        wanted: facts of the data now.
        trust_times: accept feature files of another size or time.

    Raises:
        ConfigError: they differ; the message names the first video.
    """
    changed = changed_annotations(found, wanted)
    if changed is not None:
        raise ConfigError(
            f"{out}: holds a study of other data: {changed}; "
            "results are never mixed: use another --out"
        )
    changed = changed_features(found, wanted)
    if changed is not None and not trust_times:
        raise ConfigError(
            f"{out}: holds a study of other data: {changed}; results are never mixed: use another "
            "--out or, if the files hold what they held (copied, restored, packed), --trust-times"
        )


def read_study(out: Path) -> dict[str, Any] | None:
    """Reads ``study.yaml``; None when there is none.

    Raises:
        DataError: it cannot be read or was written by something else.
    """
    path = out / STUDY_FILE
    try:
        study = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    keys = ("format", "settings", "hash", "request", "runs")
    if not isinstance(study, dict) or any(key not in study for key in keys):
        raise DataError(f"{path}: expected a study's settings, with the keys {', '.join(keys)}")
    if study["format"] != _FORMAT:
        raise DataError(f"{path}: expected format {_FORMAT}, got {study['format']!r}")
    if study["hash"] != hash_settings(study["settings"]):
        raise DataError(f"{path}: the settings do not match their hash: edited by hand?")
    return study


def write_study(
    out: Path,
    settings: Mapping[str, Any],
    spec: StudySpec,
    runs: list[dict[str, Any]],
    *,
    budgets: Sequence[str],
    trials: int,
) -> None:
    """Writes ``study.yaml``.

    Args:
        out: directory of the study.
        settings: what decides the outcomes.
        spec: the latest request.
        budgets: those of the request.
        trials: how many trials it asks for.
        runs: for each call that ran trials: when, how long, how many, on which machine, and what
            it asked for.
    """
    study = {
        "format": _FORMAT,
        "hash": hash_settings(settings),
        "command": spec.command(),
        "request": {
            "fractions": list(spec.fractions),
            "repetitions": spec.repetitions,
            "seeds": spec.seeds,
            "samplings": list(spec.samplings),
            "budgets": list(budgets),
            "trials": trials,
        },
        "settings": dict(settings),
        "runs": runs,
    }
    write_text_atomically(out / STUDY_FILE, yaml.safe_dump(study, sort_keys=False))
