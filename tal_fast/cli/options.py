# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, each declared once; and classes of options that go together.

A parameter of a command whose type is such a dataclass stands for its fields: ``command`` of
:mod:`tal_fast.cli.app` shows them as options of their own and hands the command the dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

__all__ = [
    "MACHINE",
    "MOST_THREADS",
    "OUTPUT",
    "SETTINGS",
    "STANDARD_OUTPUT",
    "Data",
    "Jobs",
    "JsonOut",
    "MachineOptions",
    "Model",
    "ModelOfConfig",
    "Out",
    "Overwrite",
    "SettingOptions",
    "Threads",
    "TrainVideos",
    "TrustTimes",
    "directory_to_write",
    "file_to_write",
    "flattened",
]

# Titles of groups of options that several commands have.
SETTINGS = "Settings"
MACHINE = "Machine"
OUTPUT = "Files to write"

# More than any machine's cores: a slip of the keyboard should not ask the system for so many.
MOST_THREADS = 4096

# As a file to write.
STANDARD_OUTPUT = Path("-")


def _ready(path: Path) -> None:
    """Makes the directory of a file to write, and finds out whether it can be written."""
    from tal_fast.data.files import check_writable
    from tal_fast.errors import DataError

    try:
        check_writable(path.absolute().parent)
    except DataError as error:
        raise typer.BadParameter(str(error)) from None


def _can_be_written(path: Path | None) -> Path | None:
    """Finds out before the work whether its result can be written after it."""
    if path is not None and path != STANDARD_OUTPUT:
        file_to_write(path)
        _ready(path)
    return path


def file_to_write(given: Any) -> Any:
    """Refuses a directory where a file is to be written, before the work."""
    for path in _several(given):
        if not path.name:
            raise typer.BadParameter("expected the name of a file, got none")
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            raise typer.BadParameter(f"{path}: expected a file, found a directory")
    return given


def directory_to_write(given: Any) -> Any:
    """Refuses a file where a directory is to be made, before the work."""
    for path in _several(given):
        places = ((place, _mode(place)) for place in (path, *path.absolute().parents))
        there, mode = next((place, mode) for place, mode in places if mode is not None)
        if not stat.S_ISDIR(mode):
            where = "" if there == path else f": {there}"
            raise typer.BadParameter(f"{path}: expected a directory, found a file{where}")
    return given


def _mode(path: Path) -> int | None:
    """Returns what is at a path to write, None for nothing; refuses what the system refuses."""
    from tal_fast.errors import os_reason

    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # too long, or not to be entered: it cannot be written either
        raise typer.BadParameter(f"{path}: cannot be written: {os_reason(error)}") from None


def _several(given: Any) -> list[Path]:
    return given if isinstance(given, list) else [] if given is None else [given]


Data = Annotated[Path, typer.Option("--data", help="Prepared data directory.")]
Out = Annotated[
    Path, typer.Option("--out", help="Directory to write.", callback=directory_to_write)
]
_MODEL = "Preset, such as tadtr-small; or your own, module:Class or file.py:Class."
Model = Annotated[str, typer.Option("--model", help=_MODEL)]
ModelOfConfig = Annotated[
    str | None,
    typer.Option(
        "--model", help=f"{_MODEL} Default: the model that --config names, else tadtr-small."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_THREADS, help="Torch threads.", rich_help_panel=MACHINE
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Trials at a time, one process each.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
TrainVideos = Annotated[
    str,
    typer.Option("--videos", help="Videos to train on: a split of the data (train, ...) or all."),
]
TrustTimes = Annotated[
    bool,
    typer.Option(
        "--trust-times",
        help="Continue although feature files have a new size or time: their content is the same.",
        rich_help_panel=MACHINE,
    ),
]


JsonOut = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write this file; - is standard output, and all else goes to standard error.",
        callback=_can_be_written,
        rich_help_panel=OUTPUT,
    ),
]


@dataclass(frozen=True)
class SettingOptions:
    """Settings over those of the model."""

    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML file of settings over the preset.", rich_help_panel=SETTINGS
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.FIELD=VALUE",
            help="One setting; may be repeated.",
            rich_help_panel=SETTINGS,
        ),
    ] = None


@dataclass(frozen=True)
class MachineOptions:
    """How a training runs, which decides nothing of what it gives."""

    threads: Threads = None
    trust_times: TrustTimes = False


def flattened(function: Callable[..., None]) -> Callable[..., None]:
    """Returns a command whose parameters are those of the dataclasses of options that it takes.

    Where such a parameter has a default, its fields are the defaults of the options.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    classes: dict[str, tuple[Any, list[str]]] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(_parameter(parameter.name, kind, parameter.default))
            continue
        annotations = get_type_hints(kind, include_extras=True)
        names = [field.name for field in dataclasses.fields(kind)]
        classes[parameter.name] = kind, names
        for field in dataclasses.fields(kind):
            default = field.default
            if parameter.default is not inspect.Parameter.empty:
                default = getattr(parameter.default, field.name)
            parameters.append(_parameter(field.name, annotations[field.name], default))

    def run(**given: Any) -> None:
        for name, (kind, names) in classes.items():
            given[name] = kind(**{field: given.pop(field) for field in names})
        function(**given)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__module__ = function.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
