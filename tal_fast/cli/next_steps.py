# SPDX-License-Identifier: Apache-2.0
"""What to run next: a command that works as it stands, with the arguments of the one before it."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from tal_fast.cli.app import say, say_next

if TYPE_CHECKING:
    from tal_fast.curves import LearningCurve

__all__ = [
    "free_place",
    "given_options",
    "say_after_curves",
    "say_after_prediction",
    "say_after_study",
    "say_draw",
    "say_open",
    "say_study",
]

_TIMES = 3.0  # the full training set, which a first extrapolation asks about
_REPETITIONS = 3


def free_place(place: str | Path) -> Path:
    """Returns a path like ``runs/first`` or ``results.json`` that is not there yet."""
    path, attempt = Path(place), 2
    while path.exists():
        path = Path(place).with_stem(f"{Path(place).stem}-{attempt}")
        attempt += 1
    return path


def say_study(data: Path, model: str) -> None:
    """Ends a command with a study of a model: one that is there goes on, else a new one begins.

    Args:
        data: the data directory.
        model: its name. A study of another model on this data is none to go on with.
    """
    for path in sorted(Path("results").glob("*/study.yaml")):
        command = _command_of(path.parent)
        if "--data" in command[:-1]:
            studied = Path(command[command.index("--data") + 1])
            if studied.resolve() == data.resolve() and _model_of(command) == model:
                say_next(*command)
                return
    say_next("tal-fast", "study", "run", "--data", data, "--model", model,
             "--out", free_place("results/first"))  # fmt: skip


def _model_of(command: Sequence[str]) -> str | None:
    """Returns the model of a study's command line; None where its settings are not readable."""
    from tal_fast.errors import ConfigError
    from tal_fast.study import StudySpec
    from tal_fast.training.config import named_model

    options = dict(itertools.pairwise(command))
    try:
        config = named_model(options.get("--config"))
    except ConfigError:
        return None
    return options.get("--model") or config or StudySpec.model


def _command_of(study: Path) -> list[str]:
    """Returns the command line that ran a study last; empty where its settings are not readable."""
    from tal_fast.errors import TalFastError
    from tal_fast.study.execution.store import read_study

    try:
        settings = read_study(study)
        return shlex.split(str((settings or {}).get("command", "")))
    except (TalFastError, ValueError):
        return []


def say_open(page: Path) -> None:
    """Ends a command with a page to read."""
    say(f"next: open {page} in a browser")


def say_draw(study: Path, options: Sequence[str]) -> None:
    """Ends a command with the picture of its curves; before it, with what that needs."""
    from importlib.util import find_spec

    from tal_fast.errors import install

    if find_spec("matplotlib") is None:
        say(f"next: {install('report')}")
    else:
        say_next("tal-fast", "study", "draw", "--study", study, *options, "--picture", "curve.pdf")


def given_options(*options: Any) -> list[str]:
    """Returns the words that give options again, of those that are not as by default.

    Args:
        options: dataclasses of options (:func:`tal_fast.cli.options.flattened`).
    """
    words: list[str] = []
    for group in options:
        hints = get_type_hints(type(group), include_extras=True)
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value != field.default:
                words += _words(_option_name(field.name, hints[field.name]), value)
    return words


def _option_name(name: str, hint: Any) -> str:
    """Returns the option of a parameter, as typer calls it."""
    if get_origin(hint) is Annotated:
        for about in get_args(hint)[1:]:
            # The first name of an option stands where its default would, without Annotated.
            first = getattr(about, "default", None)
            if isinstance(first, str) and first.startswith("--"):
                return first.partition("/")[0]
    return f"--{name.replace('_', '-')}"


def _words(option: str, value: Any) -> list[str]:
    if value is True:
        return [option]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [word for item in values for word in (option, _word(item))]


def _word(value: Any) -> str:
    # Every digit of a number, and 3 for 3.0, as people write it.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _reason(curve: LearningCurve) -> str | None:
    """Says why nothing can be said of more data than a curve has seen; None where something can."""
    from tal_fast.curves.ensemble import require_spread
    from tal_fast.errors import DataError

    try:
        curve.require_rising()
        require_spread(curve)
    except DataError as error:
        return str(error)
    return None


def _times(curve: LearningCurve) -> float:
    """Returns an amount of data that can be asked about."""
    from tal_fast.curves.extrapolation import LIMIT

    reach = LIMIT * float(curve.share[-1]) / 100.0
    return _TIMES if reach >= _TIMES else reach


def _named(curves: Sequence[LearningCurve], chosen: LearningCurve) -> Iterator[str]:
    """Yields the option that names a curve, where there are several."""
    if len(curves) > 1:
        yield from ("--curve", chosen.name)


def say_after_curves(
    study: Path, curves: Sequence[LearningCurve], options: Sequence[str] = ()
) -> bool:
    """Ends a command on curves with their extrapolation, if one of the curves allows it.

    Args:
        study: where the curves were read.
        curves: all curves that are there.
        options: of the command before, to give again.

    Returns:
        Whether one does; nothing is said else.
    """
    for curve in curves:
        if len(curve) and _reason(curve) is None:
            say_next(
                *("tal-fast", "study", "extrapolate", "--study", study), *_named(curves, curve),
                *("--times", f"{_times(curve):g}"), *options,
            )  # fmt: skip
            return True
    return False


def say_after_study(out: Path, page: Path | None) -> None:
    """Ends a study: with its extrapolation, or why there is none, and what would help.

    Args:
        out: directory of the study, whose tables are written.
        page: its page, if there is one.
    """
    from tal_fast.curves import read_curves

    curves = read_curves(out)
    if say_after_curves(out, curves):
        return
    say(f"note: what more data would bring cannot be said yet: {_reason(curves[0])}")
    again = _with_repetitions(out, curves)
    if again is not None:
        say(f"next: {again}")
    elif page is not None:
        say_open(page)
    else:
        say(f"next: read {out / 'curve.csv'}")


def _with_repetitions(out: Path, curves: Sequence[LearningCurve]) -> str | None:
    """Returns the command of a study that ran each share once, with more repetitions.

    None where they would not help.
    """
    from tal_fast.study.execution.store import read_study

    first = curves[0]
    study = read_study(out) if len(first) >= 3 else None
    words = shlex.split(str((study or {}).get("command", "")))
    if "--repetitions" not in words or "--adaptive" in words or int(first.repetitions.max()) > 1:
        return None
    words[words.index("--repetitions") + 1] = str(_REPETITIONS)
    return shlex.join(words)


def say_after_prediction(out: Path) -> None:
    """Ends a profile with a comparison where there is another of its kind beside it."""
    others = (path for path in sorted(out.resolve().parent.iterdir()) if path != out.resolve())
    other = next((path for path in others if _is_of_lengths(path)), None)
    if other is not None:
        say_next("tal-fast", "profile", "compare", out, out.parent / other.name)
    elif (out / "index.html").is_file():
        say_open(out / "index.html")
    else:
        say_next("tal-fast", "profile", "machine")


def _is_of_lengths(folder: Path) -> bool:
    from tal_fast.errors import DataError
    from tal_fast.profiling.report import read_profile

    try:
        return "lengths" in read_profile(folder)
    except DataError:
        return False
