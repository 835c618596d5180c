# SPDX-License-Identifier: Apache-2.0
"""What a study asks for, checked as a whole, and the trials that follow from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tal_fast.errors import ConfigError, nearest
from tal_fast.study.display import trial_cost
from tal_fast.study.execution.executors import threads_per_job
from tal_fast.study.execution.trials import Trial, TrialTask, load_experiment
from tal_fast.study.sampling.draws import (
    Split,
    draw_sample,
    parse_fractions,
    parse_samplings,
    split_videos,
    trial_seed,
)
from tal_fast.study.settings import BUDGETS, StudySpec, hash_settings, study_settings

if TYPE_CHECKING:
    from tal_fast.data.clips import ClipSet
    from tal_fast.training import ExperimentConfig

__all__ = ["CONFIG", "TRIALS", "Request", "check_request"]

CONFIG = "config.yaml"
TRIALS = "trials"
# Convergence needs held-out videos; where the settings keep none back, its trials keep this share.
_HOLDOUT = 0.2


@dataclass(frozen=True)
class Request:
    """A study that makes sense on its data.

    Attributes:
        spec: what was asked for.
        dataset: the opened data set.
        split: the videos that train and test.
        clips: the clips of all training videos, as the model takes them.
        notes: what of the data is left out, or never learned.
        budgets: what ends the trainings.
        holdout: share of the sample that the settings keep back.
        settings: what decides the outcomes.
        config_text: the resolved configuration as YAML.
        door: ``"module:function"`` of the experiment.
        function: that function.
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
    door: str
    function: Callable[..., Any]
    threads: int

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the settings, which every trial carries."""
        return hash_settings(self.settings)

    def trials(self) -> list[Trial]:
        """Returns all trials asked for, in the order in which to run them.

        Repetition by repetition, so that whole curves are there early, and long trials before short
        ones, so that at the end no process waits long for the last one.
        """
        spec = self.spec
        found = []
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
                found += sorted(some, key=trial_cost, reverse=True)
        return found

    def _options(self, budget: str) -> dict[str, Any]:
        missing = budget == "convergence" and self.holdout == 0.0
        return {"training.holdout": _HOLDOUT} if missing else {}

    def task(self, trial: Trial) -> TrialTask:
        """Draws the sample of a trial and returns all that a process needs to run it."""
        spec = self.spec
        sample = draw_sample(
            trial.sampling,
            self.split.train,
            self.dataset.annotations.videos,
            self.dataset.annotations.classes,
            fraction=trial.fraction,
            repetition=trial.repetition,
            seed=spec.seed,
            clips=self.clips,
        )
        coverage: dict[str, Any] = {
            "videos": list(sample.videos),
            "instances": sample.instances,
            "classes": list(sample.classes),
            "missing_classes": list(sample.missing_classes),
        }
        if sample.windows is not None:
            coverage["windows"] = len(sample.windows)
        return TrialTask(
            trial=trial,
            root=str(spec.out / TRIALS),
            settings=self.hash,
            data=str(spec.data),
            config=str(spec.out / CONFIG),
            train_videos=sample.videos if sample.windows is None else self.split.train,
            test_videos=self.split.test,
            coverage=coverage,
            threads=self.threads,
            experiment=self.door,
            positions=sample.windows,
        )


def _door(experiment: str | Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
    if isinstance(experiment, str):
        return experiment, load_experiment(experiment)
    return f"{experiment.__module__}:{getattr(experiment, '__qualname__', '')}", experiment


def check_request(spec: StudySpec, experiment: str | Callable[..., Any]) -> Request:
    """Checks a whole request before anything is written or trained.

    Args:
        spec: the request.
        experiment: ``"module:function"`` or a function with the interface of ``run_experiment``.

    Raises:
        ConfigError: the request makes no sense.
        DataError: the data is faulty.
    """
    from tal_fast.data import open_dataset, require_learnable
    from tal_fast.data.windows import windows_of
    from tal_fast.models import detector_of
    from tal_fast.training import config_to_dict, load_config

    parse_fractions(spec.fractions)
    parse_samplings(spec.samplings)
    if spec.seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {spec.seeds}")
    if spec.repetitions < 1:
        raise ConfigError(f"repetitions: expected at least 1, got {spec.repetitions}")
    if spec.seed < 0:
        raise ConfigError(f"seed: expected 0 or more, got {spec.seed}")
    if spec.split not in ("data", "random"):
        raise ConfigError(f"split: expected 'data' or 'random', got {spec.split!r}")
    if spec.threads is not None and spec.threads < 1:
        raise ConfigError(f"threads: expected at least 1, got {spec.threads}")
    # Machines of a cluster differ in size; one thread per trial is what fills all of them.
    fair = 1 if spec.ray is not None else threads_per_job(1 if spec.jobs is None else spec.jobs)
    if spec.ray is None and spec.gpus_per_trial is not None:
        raise ConfigError("gpus per trial: is for a study on a Ray cluster (--ray)")
    for override in spec.overrides:
        if override.partition("=")[0].strip() == "training.seed":
            raise ConfigError(
                "training.seed: a study gives every trial its own seed; use --seed for the study's"
            )
    overrides = spec.overrides
    if spec.ema is not None:
        overrides = (*overrides, f"training.ema={','.join(spec.ema)}")
    config = load_config(spec.config, preset=spec.model, overrides=overrides)
    budgets = _budgets(spec, config)
    door, function = _door(experiment)
    dataset = open_dataset(spec.data)
    split = split_videos(dataset, spec.split, spec.seed)
    if spec.split == "data":
        # Samples and random splits may miss classes, which is recorded; the data's own may not.
        dataset.require_every_class(split.train, "training")
    clips = detector_of(config.name).clips(config.detector, dataset, split.train, training=True)
    if any(sampling.endswith("window") for sampling in spec.samplings):
        windows_of(clips)  # an error where there are none
    notes = (*dataset.notes(), *require_learnable(clips))
    resolved = config_to_dict(config)
    # Always written out, so that a study of epochs can be extended by one of steps.
    resolved["training"]["steps"] = config.training.steps or config.training.epochs * max(
        1, len(clips) // config.training.batch_size
    )
    settings = study_settings(spec, resolved, dataset, train=len(split.train), test=len(split.test))
    return Request(
        spec=spec,
        dataset=dataset,
        split=split,
        clips=clips,
        notes=notes,
        budgets=budgets,
        holdout=config.training.holdout,
        settings=settings,
        config_text=yaml.safe_dump(resolved, sort_keys=False),
        door=door,
        function=function,
        threads=spec.threads or fair,
    )


def _budgets(spec: StudySpec, config: ExperimentConfig) -> tuple[str, ...]:
    """Returns the budgets to cross, which must make sense with settings and samplings."""
    budgets = (config.training.budget,) if spec.budgets is None else tuple(spec.budgets)
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
            "--set training.seconds=SECONDS"
        )
    windows = [sampling for sampling in spec.samplings if sampling.endswith("window")]
    if windows and ("convergence" in budgets or config.training.holdout > 0.0):
        raise ConfigError(
            f"sampling {windows[0]}: cannot be crossed with held-out videos (training.holdout, "
            "budget convergence): a sample of windows has no whole video to keep back"
        )
    return budgets
