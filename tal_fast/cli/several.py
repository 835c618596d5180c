# SPDX-License-Identifier: Apache-2.0
"""What commands on several curves or files check first: none is taken for another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tal_fast.curves import LearningCurve

__all__ = ["check_compared", "check_outputs", "told_apart"]

_TABLES = ("trials.csv", "curve.csv")  # of a study


def check_outputs(outputs: Mapping[str, Iterable[Path | None]], inputs: Iterable[Path]) -> None:
    """Checks before the work that no file is written over another, or over what is read.

    Raises:
        ConfigError: one is; the message names option and file.
    """
    from tal_fast.errors import ConfigError

    known: dict[Path, str] = {}
    for path in inputs:
        tables = [path / name for name in _TABLES] if os.path.isdir(path) else [path]
        known |= dict.fromkeys((table.resolve() for table in tables), "--study")
    for option, files in outputs.items():
        for file in files:
            if file is None or (file.exists() and not (file.is_file() or file.is_dir())):
                continue  # a pipe or device
            place = file.resolve()
            if place in known:
                raise ConfigError(
                    f"{option}: expected another file than that of {known[place]}, got {file}"
                )
            known[place] = option


def told_apart(studies: Sequence[tuple[Path, Sequence[LearningCurve]]]) -> list[LearningCurve]:
    """Returns the curves of several studies, those of one name with that of their study."""
    from dataclasses import replace

    stems = [study.stem for study in dict.fromkeys(study for study, _ in studies)]
    names = [curve.name for _, curves in studies for curve in curves]
    return [
        replace(curve, name=f"{study.stem if stems.count(study.stem) < 2 else study}: {curve.name}")
        if names.count(curve.name) > 1
        else curve
        for study, curves in studies
        for curve in curves
    ]


def _listed(thresholds: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in thresholds)


def check_compared(
    named: Sequence[tuple[Path, str | None]], curves: Sequence[LearningCurve]
) -> None:
    """Checks that no curve is compared with itself, or with one of other tIoU thresholds.

    Raises:
        ConfigError: one is.
    """
    from tal_fast.curves.curve_files import study_thresholds
    from tal_fast.errors import ConfigError

    several = named if len(named) > 1 else ()
    told = [(path, thresholds) for path, _ in several if (thresholds := study_thresholds(path))]
    for path, thresholds in told[1:]:
        first, wanted = told[0]
        if thresholds != wanted:
            raise ConfigError(
                f"--compare: expected the tIoU thresholds of {first} ({_listed(wanted)}), got "
                f"{_listed(thresholds)} of {path}: their averages are not of one kind"
            )

    known = set()
    for (path, _), curve in zip(named, curves, strict=True):
        place = path.resolve()  # a study's tables are the study
        identity = (
            place if os.path.isdir(path) or place.name not in _TABLES else place.parent,
            curve.name,
        )
        if identity in known:
            raise ConfigError(
                f"--compare: expected each curve once, got {path}, {curve.name}, again"
            )
        known.add(identity)
