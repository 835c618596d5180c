# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the program, its groups, common options, errors, progress."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import typer

from tal_fast.cli.grouped_help import GroupedCommand, GroupedGroup
from tal_fast.cli.options import STANDARD_OUTPUT, JsonOut, flattened
from tal_fast.errors import ConfigError, TalFastError, os_reason, printable
from tal_fast.interrupts import sigterm_as_interrupt
from tal_fast.waiting import wait_briefly

__all__ = [
    "DATA",
    "HERE",
    "MODELS",
    "STUDIES",
    "Kept",
    "app",
    "command",
    "main",
    "prepare_app",
    "profile_app",
    "say",
    "show",
    "say_next",
    "study_app",
    "write_json",
    "written_since",
]

_Command = Callable[..., None]
_OPTIONS: dict[str, Any] = {
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "rich_markup_mode": None,  # plain help needs no rich, whose import is half of what -h may take
    "no_args_is_help": True,
}
_PROFILED_STEPS = "50"

# Titles of the groups of commands.
DATA, MODELS, STUDIES, HERE = "Data", "Models", "Studies and costs", "This installation"
# As one needs them, and as the help has them.
_ORDER = (
    *("prepare", "validate", "pack"),
    *("train", "predict", "evaluate", "import-checkpoint"),
    *("study", "profile", "info"),
)


class _Program(GroupedGroup):
    """The program, whose help has its commands in the order of use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of the commands."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="tal-fast",
    help="Fast temporal action localization, and how much data it needs.",
    epilog="Example: tal-fast study demo --out results/demo",
    cls=_Program,
    **_OPTIONS,
)
prepare_app = typer.Typer(
    help="Make a data directory.",
    epilog="Example: tal-fast prepare csv --segments segments.csv --features features --rate 5 "
    "--out data/mine",
    cls=GroupedGroup,
    add_completion=False,
    **_OPTIONS,
)
study_app = typer.Typer(
    help="Train on growing shares of the data and draw the curve.",
    epilog="Example: tal-fast study run --data data/hapt --out results/hapt",
    cls=GroupedGroup,
    add_completion=False,
    **_OPTIONS,
)
profile_app = typer.Typer(
    help="Say what a model costs, and what a training spends its time on.",
    epilog="Example: tal-fast profile model --model tadtr --channels 2048 --classes 20",
    cls=GroupedGroup,
    add_completion=False,
    **_OPTIONS,
)


app.add_typer(prepare_app, name="prepare", rich_help_panel=DATA)
app.add_typer(study_app, name="study", rich_help_panel=STUDIES)
app.add_typer(profile_app, name="profile", rich_help_panel=STUDIES)


def say(message: str) -> None:
    """Prints beside the results: notes and errors."""
    typer.echo(printable(message), err=True)


def show(result: object) -> None:
    """Prints results."""
    typer.echo(printable(str(result)))


def say_next(*words: object) -> None:
    """Ends a command with the command that usually follows; beside the results, as notes are."""
    say(f"next: {shlex.join(map(str, words))}")


_json_output: list[TextIO] = []  # standard output, while a command writes all else to another


@contextlib.contextmanager
def _output_of_json_alone(path: Path | None) -> Iterator[None]:
    """Sends what a command prints to standard error if its JSON is to go to standard output."""
    if path != STANDARD_OUTPUT:
        yield
        return
    _json_output.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.pop()


def write_json(path: Path | None, numbers: Any, indent: int = 2) -> None:
    """Writes what ``--json`` asked for, and says where."""
    if path is not None:
        import json

        from tal_fast.data.files import write_text_atomically

        serialised = json.dumps(numbers, indent=indent) + "\n"
        if path == STANDARD_OUTPUT:
            _json_output[-1].write(serialised)
            _json_output[-1].flush()
            return
        write_text_atomically(path, serialised)
        say(f"numbers: {path}")


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


@dataclass(frozen=True)
class _Called:
    """How the program was called, and when (seconds since the epoch)."""

    words: tuple[str, ...]
    at: float


_called: ContextVar[_Called | None] = ContextVar("called", default=None)


def written_since(path: Path, since: float) -> bool:
    """Tells whether a file is there and was written after a time (seconds since the epoch)."""
    return path.exists() and path.stat().st_mtime >= since


class Kept(NamedTuple):
    """What an interrupted command leaves.

    Attributes:
        where: it is, in words.
        goes_on: whether the same command goes on from there; else it is all there.
    """

    where: str
    goes_on: bool = True


_Asked = Callable[[dict[str, Any], float], Kept | None]


def _say_interrupted(asked: _Asked | None, options: dict[str, Any]) -> None:
    """Says what an interrupted command leaves, and the command that goes on or starts over.

    It is the same command, except that what was to start over and has begun is to go on.
    """
    called = _called.get()
    if called is None:  # as a function: nobody gave a command
        say("interrupted")
        return
    words = list(called.words)
    kept = None if asked is None else asked(options, called.at)
    if kept is None:
        say("interrupted: nothing is kept, the same command starts over")
    elif not kept.goes_on:
        say(f"interrupted: {kept.where}")
        return
    else:
        say(f"interrupted: {kept.where}, the same command goes on from there")
        words = [word for word in words if word not in ("--no-resume", "--overwrite")]
    if _of_several() is None:
        say_next("tal-fast", *words)
    else:
        say(f"next: the same torchrun command, ending in {shlex.join(words)}")


def _guarded(function: _Command, name: str, several: bool, kept: _Asked | None) -> _Command:
    """Turns expected errors into one line and an exit status; bugs keep their traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        place = _of_several()
        try:
            if place is not None and not several:
                raise ConfigError(f"{name} runs in one process: start it without torchrun")
            with _output_of_json_alone(kwargs.get("json_out")):
                function(*args, **kwargs)
        except KeyboardInterrupt as error:
            if place is None or place[0] == 0:
                _say_interrupted(kept, kwargs)
            # That of SIGTERM tells which signal it was.
            raise typer.Exit(128 + getattr(error, "signum", signal.SIGINT)) from None
        except (TalFastError, OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, (TalFastError, OSError)) and not _no_memory(error):
                raise
            if os.environ.get("TAL_FAST_TRACEBACK", "0") not in ("", "0"):
                raise
            if isinstance(error, BrokenPipeError):  # `tal-fast ... | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            message = str(error)
            if _no_memory(error):
                message = f"not enough memory: {message.partition(chr(10))[0]}"
            elif isinstance(error, OSError) and not isinstance(error, TalFastError):
                message = f"{error.filename or 'system'}: {os_reason(error)}"
            who = "" if place is None else f"process {place[0]} of {place[1]}: "
            say(f"{who}error: {message}")
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None

    return run


def command(
    group: typer.Typer,
    name: str,
    example: str,
    *,
    panel: str | None = None,
    several: bool = False,
    kept: _Asked | None = None,
) -> Callable[[_Command], _Command]:
    """Adds a function to a group as a command whose help ends in an example.

    Its parameters may be dataclasses of options (:func:`tal_fast.cli.options.flattened`). Only a
    command that knows of ``several`` processes may be started by torchrun.

    Args:
        group: takes the command.
        name: of the command.
        example: of its use, a whole command line.
        panel: title under which the help of the group has it.
        several: whether it knows of several processes.
        kept: called with the options when the command is interrupted, and the time that it began
            (seconds since the epoch); says what of it is kept for the same command to go on from.
            Other commands keep nothing.
    """

    def register(function: _Command) -> _Command:
        guarded = _guarded(flattened(function), name, several, kept)
        group.command(
            name, epilog=f"Example: {example}", cls=GroupedCommand, rich_help_panel=panel
        )(guarded)
        return guarded

    return register


@command(app, "info", "tal-fast info", panel=HERE)
def info(json_out: JsonOut = None) -> None:
    """Show versions, instruction sets, threads, and why CUDA is off if it is."""
    import yaml

    from tal_fast.info import collect

    facts = collect()
    show(yaml.safe_dump(facts, sort_keys=False).rstrip())
    write_json(json_out, facts)
    say_next("tal-fast", "study", "demo", "--out", "results/demo")


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
    token = _called.set(_Called(tuple(given), time.time()))
    try:
        with sigterm_as_interrupt():
            app(args=_with_steps(given), prog_name="tal-fast")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:  # while a command was still being imported
        return 130
    finally:
        _called.reset(token)
    return 0
