# SPDX-License-Identifier: Apache-2.0
"""What a study is asked to do, checked as a whole, and the trials that follow from it.

Only what decides a trial's outcome enters the hash of the settings. Fractions, repetitions,
trainings per draw, samplings and budgets do not: a study may be extended by any of them, and every
trial names its own. Nor do jobs, threads, where the data lies or what is kept. The modes of weight
averaging do, since one training is tested under all of them.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tal_fast.data.fingerprint import data_fingerprint
from tal_fast.errors import ConfigError, DataError, argument, nearest
from tal_fast.study import trial as trials
from tal_fast.study.adaptive.targets import AdaptiveRequest
from tal_fast.study.execution.local import threads_per_job
from tal_fast.study.execution.store import TRIALS, hash_settings
from tal_fast.study.sampling import draw_sample, parse_samplings, trial_seed
from tal_fast.study.shares import parse_fractions
from tal_fast.study.splits import Split, split_videos
from tal_fast.study.trial import BUDGETS, KEEPS, Trial, TrialTask

if TYPE_CHECKING:
    from tal_fast.data.clips import ClipSet
    from tal_fast.training import ExperimentConfig

__all__ = ["CONFIG", "StudyPlan", "StudySpec", "demo_spec", "plan_study", "prepare_demo_data"]

CONFIG = "config.yaml"
# Settings that a trial sets itself, or that change its speed and not its outcome.
_NOT_THE_STUDYS = (
    ("training", "seed"),
    ("training", "budget"),
    ("training", "tensorboard"),
    ("data", "threads"),
)
# Convergence needs held-out videos; where the settings keep none back, its trials keep this share.
_HOLDOUT = 0.2


@dataclass(frozen=True)
class StudySpec:
    """A request: run these trials of this model on this data.

    Attributes:
        data: prepared data directory.
        out: directory of the study.
        model: name of the preset.
        fractions: of the training data, in (0, 1], rising.
        repetitions: draws per share.
        seeds: trainings per draw, which tell the spread of trainings from that of draws.
        samplings: how the samples are drawn (:data:`~tal_fast.study.sampling.SAMPLINGS`).
        budgets: what ends the trainings; None takes ``training.budget``.
        ema: modes of weight averaging to test, all after one training; None takes
            ``training.ema``.
        split: ``"data"`` for the data's own split, ``"random"`` for the 80/20 draw of Algorithm 1.
        seed: decides the random split, the samples and the trials' seeds.
        config: YAML file of settings, or None.
        overrides: ``section.field`` -> value, over preset and file.
        jobs: trials at a time; None is 1, or as many as a cluster holds.
        threads: torch threads per trial; None shares the cores fairly, and is 1 on a cluster.
        ray: address of a Ray cluster to run on
            (:class:`~tal_fast.study.execution.ray.cluster.RayCluster`); None runs on this machine.
        gpus_per_trial: GPUs of each trial on a Ray cluster; below 1 that many share one.
        trust_times: go on with an earlier study although feature files have another size or time
            than then, since they hold the same.
        keep: what stays on disk of the trials that this request runs
            (:mod:`tal_fast.study.execution.run_trial`).
        adaptive: what to find out with as few of the trials as do; None runs all of them.
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
    overrides: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None
    gpus_per_trial: float | None = None
    trust_times: bool = False
    keep: str = "predictions"
    adaptive: AdaptiveRequest | None = None

    def command(self) -> str:
        """Returns the command line that asks for this study."""
        options: list[tuple[str, object]] = [
            ("data", self.data),
            ("model", self.model),
            ("fractions", ",".join(f"{fraction:g}" for fraction in self.fractions)),
            ("repetitions", self.repetitions),
            ("seeds", None if self.seeds == 1 else self.seeds),
            ("sampling", None if self.samplings == ("video",) else ",".join(self.samplings)),
            ("budget", None if self.budgets is None else ",".join(self.budgets)),
            ("ema", None if self.ema is None else ",".join(self.ema)),
            ("split", self.split),
            ("seed", self.seed),
            ("config", self.config),
            *(("set", f"{key}={_text(value)}") for key, value in self.overrides.items()),
            ("ray", self.ray),
            ("gpus-per-trial", None if self.gpus_per_trial is None else f"{self.gpus_per_trial:g}"),
            ("jobs", self.jobs),
            ("threads", self.threads),
            ("keep", None if self.keep == "predictions" else self.keep),
            *(() if self.adaptive is None else self.adaptive.options()),
            ("out", self.out),
        ]
        words = ["tal-fast", "study", "run"]
        for name, value in options:
            if value is not None:
                words += [f"--{name}", *([str(value)] if value != "" else [])]
        return shlex.join(words)

    def check(self) -> None:
        """Checks what can be told without the data.

        Raises:
            ConfigError: the request makes no sense.
        """
        parse_fractions(self.fractions)
        parse_samplings(self.samplings)
        for name, least in (("seeds", 1), ("repetitions", 1), ("threads", 1), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: expected at least {least}, got {value}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {self.seed}")
        if self.split not in ("data", "random"):
            raise ConfigError(f"split: expected 'data' or 'random', got {self.split!r}")
        if self.keep not in KEEPS:
            raise ConfigError(
                f"keep: expected one of {', '.join(KEEPS)}, got {self.keep!r}"
                f"{nearest(self.keep, KEEPS)}"
            )
        if self.ray is None and self.gpus_per_trial is not None:
            raise ConfigError(
                f"{argument('gpus_per_trial')}: only a study on a Ray cluster has it; "
                f"give its address with {argument('ray')}"
            )
        if self.adaptive is not None:
            self.adaptive.check()
            known = {self.out.resolve()}
            for path in self.adaptive.compare_with:
                # Its table is the study as well.
                table = os.path.isfile(path) and os.path.isdir(path.parent / TRIALS)
                study = (path.parent if table else path).resolve()
                if study in known:
                    raise ConfigError(
                        f"--compare-with: expected studies of other models, each once, got {path} "
                        f"{'again' if study != self.out.resolve() else 'which is --out'}"
                    )
                known.add(study)
            for name, several in (("sampling", self.samplings), ("budget", self.budgets or ())):
                if len(several) > 1:
                    raise ConfigError(
                        f"--adaptive: expected one {name}, got {', '.join(several)}: what is asked "
                        "is asked of one curve"
                    )
        if "training.seed" in self.overrides:
            raise ConfigError(
                "training.seed: a study gives every trial its own seed; that of the study is "
                f"{argument('seed')}"
            )


def _text(value: Any) -> str:
    """Returns a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class StudyPlan:
    """A request that makes sense on its data.

    Attributes:
        spec: the request.
        dataset: the opened data set.
        split: the videos that train and test.
        clips: the clips of all training videos, as the model takes them.
        notes: what of the data is left out, or never learned.
        budgets: what ends the trainings.
        holdout: share of the sample that the settings keep back.
        settings: what decides the outcomes.
        config_text: the resolved configuration as YAML.
        threads: torch threads of a trial.
    """

    spec: StudySpec
    dataset: Any
    split: Split
    clips: ClipSet
    notes: tuple[str, ...]
    budgets: tuple[str, ...]
    holdout: float
    settings: dict[str, Any]
    config_text: str
    threads: int

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the settings, which every trial carries."""
        return hash_settings(self.settings)

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """All trials asked for, in the order in which to run them.

        Repetition by repetition, so that whole curves are there early, and long trials before short
        ones, so that at the end no process waits long for the last one.
        """
        spec = self.spec
        ordered = []
        for repetition in range(spec.repetitions):
            for training in range(spec.seeds):
                some = [
                    Trial(
                        model=spec.model,
                        fraction=fraction,
                        repetition=repetition,
                        seed=trial_seed(spec.seed, repetition, fraction, training),
                        sampling=sampling,
                        budget=budget,
                        training=training,
                        options=self._options(budget),
                    )
                    for fraction in spec.fractions
                    for sampling in spec.samplings
                    for budget in self.budgets
                ]
                ordered += sorted(some, key=lambda trial: trial.cost, reverse=True)
        return ordered

    def _options(self, budget: str) -> dict[str, Any]:
        missing = budget == "convergence" and self.holdout == 0.0
        return {"training.holdout": _HOLDOUT} if missing else {}

    def task(self, trial: Trial) -> TrialTask:
        """Draws the sample of a trial and returns all that a process needs to run it."""
        spec, annotations = self.spec, self.dataset.annotations
        sample = draw_sample(
            trial.sampling,
            self.split.train,
            annotations.videos,
            annotations.classes,
            fraction=trial.fraction,
            repetition=trial.repetition,
            seed=spec.seed,
            clips=self.clips,
        )
        return TrialTask(
            trial=trial,
            root=str(spec.out / TRIALS),
            settings=self.hash,
            data=str(spec.data),
            config=str(spec.out / CONFIG),
            train_videos=sample.videos if sample.positions is None else self.split.train,
            test_videos=self.split.test,
            sample=sample,
            threads=self.threads,
            keep=spec.keep,
            experiment=trials.EXPERIMENT,  # looked up late: a benchmark may put a stand-in there
        )

    def request(self) -> dict[str, Any]:
        """Returns what ``study.yaml`` keeps of the request."""
        spec = self.spec
        return {
            "fractions": list(spec.fractions),
            "repetitions": spec.repetitions,
            "seeds": spec.seeds,
            "samplings": list(spec.samplings),
            "budgets": list(self.budgets),
            # An adaptive study asks for no certain number: whatever is there is all of it.
            "trials": 0 if spec.adaptive is not None else len(self.trials),
            **({} if spec.adaptive is None else {"target": spec.adaptive.target}),
        }


def plan_study(spec: StudySpec) -> StudyPlan:
    """Checks a whole request before anything is written or trained.

    Raises:
        ConfigError: the request makes no sense.
        DataError: the data is faulty.
    """
    from tal_fast.data import open_dataset, require_learnable
    from tal_fast.data.windows import windows_of
    from tal_fast.models import detector_of
    from tal_fast.models.called import clip_set_of
    from tal_fast.training import config_to_dict, load_config

    spec.check()
    ema = {} if spec.ema is None else {"training.ema": list(spec.ema)}
    config = load_config(spec.config, preset=spec.model, overrides={**spec.overrides, **ema})
    budgets = _budgets(spec, config)
    dataset = open_dataset(spec.data)
    split = split_videos(dataset, spec.split, spec.seed)
    if spec.split == "data":
        # Samples and random splits may miss classes, which is recorded; the data's own may not.
        dataset.require_every_class(split.train, "training")
    detector = detector_of(config.name)
    clips = clip_set_of(detector, config.detector, dataset, split.train, training=True)
    if any(sampling.endswith("window") for sampling in spec.samplings):
        windows_of(clips)  # an error where there are none
    asked = () if spec.adaptive is None else spec.adaptive.notes()
    notes = (*asked, *dataset.notes(), *require_learnable(clips))
    resolved = config_to_dict(config)
    # Always written out, so that a study of epochs can be extended by one of steps.
    resolved["training"]["steps"] = config.training.steps or config.training.epochs * max(
        1, len(clips) // config.training.batch_size
    )
    settings = _settings(spec, resolved, dataset, train=len(split.train), test=len(split.test))
    # Machines of a cluster differ in size; one thread per trial is what fills all of them.
    fair = 1 if spec.ray is not None else threads_per_job(spec.jobs or 1)
    return StudyPlan(
        spec=spec,
        dataset=dataset,
        split=split,
        clips=clips,
        notes=notes,
        budgets=budgets,
        holdout=config.training.holdout,
        settings=settings,
        config_text=yaml.safe_dump(resolved, sort_keys=False),
        threads=spec.threads or fair,
    )


def _settings(
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
    from tal_fast.models import code_of
    from tal_fast.training.config import deciding

    resolved = json.loads(json.dumps(deciding(config)))
    for section, key in _NOT_THE_STUDYS:
        if isinstance(resolved.get(section), dict):
            resolved[section].pop(key, None)
    code = code_of(str(config["name"]))
    return {
        "model": spec.model,
        # Only where there is one, so that studies of the library's models keep their hash.
        **({} if code is None else {"code": code}),
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


def _budgets(spec: StudySpec, config: ExperimentConfig) -> tuple[str, ...]:
    """Returns the budgets to cross, which must make sense with settings and samplings."""
    budgets = (config.training.budget,) if spec.budgets is None else spec.budgets
    if not budgets:
        raise ConfigError("budget: expected at least one, got none")
    for position, budget in enumerate(budgets):
        if budget not in BUDGETS:
            raise ConfigError(
                f"budget: expected one of {', '.join(BUDGETS)}, got {budget!r}"
                f"{nearest(budget, BUDGETS)}"
            )
        if budget in budgets[:position]:
            raise ConfigError(f"budget: expected each once, got {budget!r} more than once")
    if "wall-clock" in budgets and config.training.seconds is None:
        raise ConfigError(
            "budget wall-clock: expected the time of a training; give it with "
            f"{argument('settings', {'training.seconds': 'SECONDS'}, option='--set')}"
        )
    windows = [sampling for sampling in spec.samplings if sampling.endswith("window")]
    if windows and ("convergence" in budgets or config.training.holdout > 0.0):
        raise ConfigError(
            f"sampling {windows[0]}: cannot be crossed with held-out videos (training.holdout, "
            "budget convergence): a sample of windows has no whole video to keep back"
        )
    return budgets


def prepare_demo_data(out: Path) -> Path:
    """Makes the data of ``tal-fast study demo`` under ``out`` unless it is there; returns where.

    Raises:
        DataError: what is there is no whole data set, or it cannot be written.
    """
    from tal_fast.data import open_dataset
    from tal_fast.data.synthetic import make_synthetic

    data = out / "data"
    if os.path.exists(data):
        try:
            open_dataset(data)
        except DataError as error:
            raise DataError(f"{error}; remove {data} to make the demo data again") from error
        return data
    return make_synthetic(data, size="demo", seed=0)


def demo_spec(out: Path, *, jobs: int = 2) -> StudySpec:
    """Returns the demo's study in ``out``: small enough to watch, large enough to rise."""
    return StudySpec(
        data=out / "data",
        out=out,
        fractions=(0.1, 0.2, 0.4, 0.7, 1.0),
        repetitions=3,
        # Half the usual batch: at a tenth of these few videos there would be a step per epoch.
        overrides={"training.batch_size": 8},
        jobs=jobs,
    )
