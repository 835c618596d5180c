# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the program, its groups, common options, errors, progress."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.waiting import wait_briefly

__all__ = [
    "Config",
    "Data",
    "Jobs",
    "JsonOut",
    "Model",
    "Out",
    "Overwrite",
    "Settings",
    "Threads",
    "TrainVideos",
    "TrustTimes",
    "app",
    "bar",
    "command",
    "main",
    "prepare_app",
    "profile_app",
    "say",
    "study_app",
    "videos_of",
]

if TYPE_CHECKING:
    from tal_fast.data import TALDataset

_Command = TypeVar("_Command", bound=Callable[..., None])
_OPTIONS = {
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "rich_markup_mode": None,  # plain help needs no rich, whose import is half of what -h may take
    "add_completion": False,
    "no_args_is_help": True,
}

app = typer.Typer(
    name="tal-fast",
    help="Fast temporal action localization, and how much data it needs.",
    epilog="Example: tal-fast study demo --out results/demo",
    **_OPTIONS,  # type: ignore[arg-type]
)
prepare_app = typer.Typer(
    help="Make a data directory.",
    epilog="Example: tal-fast prepare synthetic --out data/demo",
    **_OPTIONS,  # type: ignore[arg-type]
)
study_app = typer.Typer(
    help="Train on growing shares of the data and draw the curve.",
    epilog="Example: tal-fast study run --data data/hapt --out results/hapt",
    **_OPTIONS,  # type: ignore[arg-type]
)
profile_app = typer.Typer(
    help="Say what a model costs, and what a training spends its time on.",
    epilog="Example: tal-fast profile model --model tadtr --channels 2048 --classes 20",
    **_OPTIONS,  # type: ignore[arg-type]
)
app.add_typer(prepare_app, name="prepare")
app.add_typer(study_app, name="study")
app.add_typer(profile_app, name="profile")

Data = Annotated[Path, typer.Option("--data", help="Prepared data directory.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to write.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Preset, such as tadtr-small; or your own, module:Class or file.py:Class."
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", help="YAML file of settings over the preset.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="One setting; may be repeated."),
]
# More than any machine's cores: a slip of the keyboard should not ask the system for so many.
MOST_THREADS = 4096
_PROFILED_STEPS = "50"
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=MOST_THREADS, help="Torch threads.")
]


def _can_be_written(path: Path | None) -> Path | None:
    """Finds out before the work whether its result can be written after it."""
    if path is not None:
        from tal_fast.data.files import check_writable
        from tal_fast.errors import DataError

        try:
            check_writable(path.absolute().parent)
        except DataError as error:
            raise typer.BadParameter(str(error)) from None
        if path.is_dir():
            raise typer.BadParameter(f"{path}: expected a file, found a directory")
    return path


JsonOut = Annotated[
    Path | None,
    typer.Option("--json", help="Also write this file.", callback=_can_be_written),
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
        help="Go on although feature files have another size or time: they hold what they held.",
    ),
]


def say(message: str) -> None:
    """Prints beside the results: notes and errors."""
    typer.echo(message, err=True)


def videos_of(data: TALDataset, which: str, option: str) -> list[str]:
    """Returns the videos of a split, or all.

    Args:
        data: the data set.
        which: a split, or ``all``.
        option: that gave it.
    """
    from tal_fast.errors import nearest

    if which == "all":
        return sorted(data.annotations.videos)
    if which not in data.splits:
        known = [*data.splits, "all"]
        raise ConfigError(
            f"{option}: expected one of {', '.join(known)}, got {which!r}{nearest(which, known)}"
        )
    return list(data.splits[which])


def _of_several() -> tuple[int, int] | None:
    """Returns number and count of the processes that torchrun started; None for a single one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _no_memory(error: BaseException) -> bool:
    """Tells whether memory ran out; torch has a type for that on a GPU alone."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (type(error) is RuntimeError and "can't allocate memory" in str(error))
    )


def _guarded(function: _Command, name: str, several: bool) -> _Command:
    """Turns expected errors into one line and an exit status; bugs keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        place = _of_several()
        try:
            if place is not None and not several:
                raise ConfigError(f"{name} runs in one process: start it without torchrun")
            function(*args, **kwargs)
        except KeyboardInterrupt:
            if place is None or place[0] == 0:
                say("interrupted")
            raise typer.Exit(130) from None
        except (TalFastError, OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, (TalFastError, OSError)) and not _no_memory(error):
                raise
            if os.environ.get("TAL_FAST_TRACEBACK", "0") not in ("", "0"):
                raise
            if isinstance(error, BrokenPipeError):  # `tal-fast ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            text = str(error)
            if _no_memory(error):
                text = f"memory does not suffice: {text.partition(chr(10))[0]}"
            elif isinstance(error, OSError) and not isinstance(error, TalFastError):
                text = f"{error.filename or 'system'}: {error.strerror or error}"
            who = "" if place is None else f"process {place[0]} of {place[1]}: "
            say(f"{who}error: {text}")
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None

    return run  # type: ignore[return-value]


def command(
    group: typer.Typer, name: str, example: str, *, several: bool = False
) -> Callable[[_Command], _Command]:
    """Adds a function to a group as a command whose help ends in an example.

    Only a command that knows of ``several`` processes may be started by torchrun.
    """

    def register(function: _Command) -> _Command:
        guarded = _guarded(function, name, several)
        group.command(name, epilog=f"Example: {example}")(guarded)
        return guarded

    return register


@contextlib.contextmanager
def bar(description: str, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows progress on a terminal, nothing elsewhere; yields update(done, total, note)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:g}/{task.total:g}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not (shown and console.is_terminal),
    ) as progress:
        task = progress.add_task(description, total=1, note="")

        def update(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=max(1, total), note=note)

        yield update


@command(app, "info", "tal-fast info")
def info() -> None:
    """Show versions, instruction sets, threads, and why CUDA is off if it is."""
    import yaml

    from tal_fast.info import collect

    typer.echo(yaml.safe_dump(collect(), sort_keys=False).rstrip())


def _with_steps(arguments: list[str]) -> list[str]:
    """Gives `train --profile` its number where there is none: typer has no optional values."""
    if arguments[:1] != ["train"] or "--profile" not in arguments:
        return arguments
    at = arguments.index("--profile") + 1
    given = at < len(arguments) and not arguments[at].startswith("-")
    return arguments if given else [*arguments[:at], _PROFILED_STEPS, *arguments[at:]]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    wait_briefly()
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None and given[:2] == ["study", "report"]:
        # The process ends with the report. Searching its thousands of records and drawings for
        # cycles, afterwards and once more at the end, took an eighth of its time.
        gc.disable()
        atexit.register(gc.freeze)
    try:
        app(args=_with_steps(given), prog_name="tal-fast")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # while a command was still being imported
        return 130
    return 0
