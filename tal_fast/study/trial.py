# SPDX-License-Identifier: Apache-2.0
"""A trial is one training of a study: what it is, what a process needs to run it, what it gave."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tal_fast.averaging import Scores
from tal_fast.curves.learning_curve import percent
from tal_fast.data.plain_fields import (
    FINITE,
    LINE,
    MAPPING,
    NUMBER,
    SHARE,
    TEXTS,
    WHOLE,
    FieldKind,
    check_fields,
)
from tal_fast.errors import DataError
from tal_fast.study.sampling import Sample

__all__ = ["BUDGETS", "EXPERIMENT", "KEEPS", "Trial", "TrialRecord", "TrialTask"]

EXPERIMENT = "tal_fast.training.experiment:run_experiment"
"""What a trial runs, ``"module:function"``."""

BUDGETS = ("epochs", "steps", "wall-clock", "convergence")
"""What may end the trainings of a study, ``training.budget``, in the order in which it is shown."""

KEEPS = ("metrics", "predictions", "all")
"""What may stay on disk of finished trials (:mod:`tal_fast.study.execution.run_trial`)."""

_FORMAT = 1
# Predicting the test videos and evaluating costs about this share of a trial at p = 1.
_TEST_SHARE = 0.1


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        model: name of the model preset.
        fraction: of the training data, in (0, 1].
        repetition: which draw of this share, counted from 0.
        seed: training seed.
        sampling: how the sample is drawn (:data:`~tal_fast.study.sampling.SAMPLINGS`).
        budget: what ends the training (``training.budget``).
        training: which training on this draw, counted from 0.
        options: settings of the training besides the study's, ``section.field`` -> value.
    """

    model: str
    fraction: float
    repetition: int
    seed: int
    sampling: str = "video"
    budget: str = "epochs"
    training: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """Name of the trial's directory.

        ``p010_r0`` is p = 10 %, repetition 0, of videos, under a number of epochs. What differs
        from that is named: ``window.steps.p010_r0_s1`` is the second training of that draw.
        """
        words = [self.sampling] if self.sampling != "video" else []
        words += [self.budget] if self.budget != "epochs" else []
        share = f"{percent(self.fraction):.4f}".rstrip("0").rstrip(".")
        whole, dot, rest = share.partition(".")
        last = f"p{whole:0>3}{dot}{rest}_r{self.repetition}"
        return ".".join([*words, last + (f"_s{self.training}" if self.training else "")])

    @property
    def share(self) -> float:
        """P in percent."""
        return round(percent(self.fraction), 9)

    @property
    def cost(self) -> float:
        """About what it costs, in units of a trial on all data: under epochs its share."""
        return (self.fraction if self.budget == "epochs" else 1.0) + _TEST_SHARE


@dataclass(frozen=True)
class TrialTask:
    """Everything a process needs to run a trial; survives JSON, so that any executor can send it.

    Attributes:
        trial: what to run.
        root: directory that holds the trials.
        settings: hash of the study's settings.
        data: the prepared data directory.
        config: YAML file of the resolved configuration.
        train_videos: the drawn training videos; all of them where windows are drawn.
        test_videos: the test videos.
        sample: what was drawn.
        threads: torch threads for this trial.
        keep: what stays on disk of it, one of :data:`KEEPS`.
        experiment: ``"module:function"`` with the interface of ``run_experiment``.
    """

    trial: Trial
    root: str
    settings: str
    data: str
    config: str
    train_videos: tuple[str, ...]
    test_videos: tuple[str, ...]
    sample: Sample
    threads: int
    keep: str = "all"
    experiment: str = EXPERIMENT

    def to_json(self) -> str:
        """Returns the task as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> TrialTask:
        """Returns the task that :meth:`to_json` wrote."""
        fields = json.loads(line)
        fields["trial"] = Trial(**fields["trial"])
        fields["sample"] = Sample.from_dict(fields["sample"])
        fields["train_videos"] = tuple(fields["train_videos"])
        fields["test_videos"] = tuple(fields["test_videos"])
        return cls(**fields)


@dataclass(frozen=True)
class TrialRecord:
    """What a finished trial gave; ``trial.json``.

    Attributes:
        trial: what was run.
        settings: hash of the study's settings.
        sample: what the sample covered.
        result: what the experiment returned, as plain values.
        seconds: wall-clock time of the trial; None, as below, where an early version kept none.
        threads: torch threads.
        started: when, in UTC.
        keep: what was to stay on disk (:data:`KEEPS`); early versions kept all.
        more: what is kept for people: versions, number of test videos, whether it was continued.
    """

    trial: Trial
    settings: str
    sample: Sample
    result: Mapping[str, Any]
    seconds: float | None = None
    threads: int | None = None
    started: str | None = None
    keep: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the trial."""
        return self.trial.name

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """The scores by mode of averaging.

        A result that does not tell its modes is that of plain weights, ``off``.
        """
        modes = self.result.get("ema") or {"off": self.result}
        return {
            mode: Scores(
                float(scored["average_map"]), scored["map_per_threshold"], scored.get("held_out")
            )
            for mode, scored in modes.items()
        }

    def told(self, name: str) -> float | None:
        """Returns a number of the result, as ``steps``; None where it does not tell it."""
        value = self.result.get(name)
        return None if value is None else float(value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values."""
        known = {key: getattr(self, key) for key in _IF_KNOWN}
        return {
            "format": _FORMAT,
            "trial": self.name,
            **dataclasses.asdict(self.trial),
            "settings": self.settings,
            "sample": self.sample.to_dict(),
            **self.more,
            **{key: value for key, value in known.items() if value is not None},
            "result": dict(self.result),
        }

    @classmethod
    def from_dict(cls, content: Any, where: str) -> TrialRecord:
        """Returns the record that :meth:`to_dict` took apart.

        Args:
            content: what a file holds.
            where: the file, for the errors.

        Raises:
            DataError: a field is missing, or of another type.
        """
        if not isinstance(content, dict):
            content = {}
        missing = next((key for key in _NEEDED if key not in content), None)
        if missing is not None:
            raise DataError(f"{where}: expected the fields of a trial, {missing!r} is missing")
        check_fields(where, content, _KINDS, optional=_OPTIONAL)
        result = content["result"]
        told = {key: NUMBER for key in result if key in _TOLD}
        check_fields(where, result, told, within="result.", optional=told)
        check_fields(where, result, {"ema": MAPPING}, within="result.", optional=("ema",))
        for mode, one in (("", result), *(result.get("ema") or {}).items()):
            place = f"result.ema.{mode}" if mode else "result"
            check_fields(where, {place: one}, {place: MAPPING})
            check_fields(where, one, _OF_SCORES, within=f"{place}.", optional=("held_out",))
        check_fields(where, content["sample"], _OF_SAMPLE, within="sample.", optional=("windows",))
        sample = Sample.from_dict(content["sample"])
        fields = {key: content[key] for key in _OF_TRIAL if key in content}
        return cls(
            trial=Trial(**{"model": "", **fields}),
            settings=content["settings"],
            sample=sample,
            result=result,
            **{key: content.get(key) for key in _IF_KNOWN},
            more={key: value for key, value in content.items() if key not in _TAKEN},
        )


_OF_TRIAL = tuple(one.name for one in dataclasses.fields(Trial))
_NEEDED = (
    *("trial", "settings", "fraction", "repetition", "seed", "sampling", "budget", "training"),
    *("sample", "result"),
)
_IF_KNOWN = ("seconds", "threads", "started", "keep")
_KINDS: dict[str, FieldKind] = {
    **dict.fromkeys(("trial", "model", "settings", "sampling", "budget", "started", "keep"), LINE),
    **dict.fromkeys(("repetition", "seed", "training", "threads"), WHOLE),
    "fraction": SHARE,
    "seconds": FINITE,
    **dict.fromkeys(("options", "sample", "result"), MAPPING),
}
_OPTIONAL = (*_IF_KNOWN, "model", "options")
_OF_SAMPLE: dict[str, FieldKind] = {
    "videos": TEXTS,
    "instances": WHOLE,
    "classes": TEXTS,
    "missing_classes": TEXTS,
    "windows": WHOLE,
}


def _are_scores(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    try:
        return all(math.isfinite(float(key)) and NUMBER[1](one) for key, one in value.items())
    except (TypeError, ValueError):
        return False


_OF_SCORES: dict[str, FieldKind] = {
    "average_map": NUMBER,
    "map_per_threshold": ("numbers by tIoU threshold", _are_scores),
    "held_out": NUMBER,
}
# Numbers that tables and pages ask a result for (:meth:`TrialRecord.told`).
_TOLD = ("epochs", "steps", "windows", "train_seconds", "total_seconds", "peak_memory_mib")
_TAKEN = {*_OF_TRIAL, *_NEEDED, *_IF_KNOWN, "format"}
