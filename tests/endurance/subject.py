# SPDX-License-Identifier: Apache-2.0
"""A kind of file under test: what makes a case of it, what reads it, and who knows the truth."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer.main

from tal_fast.cli import main
from tal_fast.errors import TalFastError

__all__ = ["Fault", "Subject", "check_command", "expect", "refusal"]

#: How the command line may end: well, with an error of ours, with a wrong use of an option.
_STATUSES = (0, 1, 2)
#: Of characters that a terminal obeys, those that messages are laid out with.
_LAID_OUT = "\n\t"


class Fault(AssertionError):
    """The library did what it must not: a wrong result, or an error that is not its own."""


def expect(condition: bool, *words: object) -> None:
    """Raises a fault where a condition does not hold."""
    if not condition:
        raise Fault(" ".join(map(str, words)))


@contextlib.contextmanager
def refusal() -> Iterator[list[TalFastError]]:
    """Collects the error of ours that ends the block, and checks that it says something."""
    found: list[TalFastError] = []
    try:
        yield found
    except TalFastError as error:
        expect(bool(str(error).strip()), "an error without a word:", type(error).__name__)
        found.append(error)


# Making the tree of all commands and options takes most of a small command's time.
_command_of = functools.cache(typer.main.get_command)


def check_command(*arguments: object) -> int:
    """Runs a command in this process, and checks that it ends as commands do.

    Raises:
        Fault: it raised, told nothing, or sent control characters to the terminal.
    """
    out, told = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        mock.patch.object(typer.main, "get_command", _command_of),
    ):
        status = main(words)
    shown = " ".join(words[:2])
    expect(status in _STATUSES, shown, "ended with", status)
    expect("Traceback" not in told.getvalue(), shown, "showed a traceback", told.getvalue())
    if status:  # validate prints what it found as its result
        both = told.getvalue() + out.getvalue()
        expect("rror" in both, shown, "failed without an error:", both[:200])
    for name, text in (("output", out.getvalue()), ("messages", told.getvalue())):
        sent = sorted(
            {c for c in text if not c.isprintable() and c not in _LAID_OUT and c < "\xa0"}
        )
        expect(not sent, shown, "sent control characters in its", name, sent)
    return status


class Subject:
    """One kind of file.

    Attributes:
        name: how the program and its results call it.
    """

    name = ""
    #: One case in so many also goes through the commands, which take longer than the functions.
    command_every = 20

    def __init__(self, folder: Path) -> None:
        """Makes what all cases need: sound files of this kind.

        Args:
            folder: an empty one, of the subject's own.
        """
        self.folder = folder
        self.place = folder / "case"

    def fresh(self) -> Path:
        """Returns the folder of a case, empty."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        return self.place

    def make(self, rng: random.Random) -> Path:
        """Writes the file of a case and returns its path."""
        raise NotImplementedError

    def check(self, path: Path, rng: random.Random) -> bool:
        """Reads a file, and returns whether the library took it.

        Raises:
            Fault: what it gave is wrong.
        """
        raise NotImplementedError

    def commands(self, path: Path, rng: random.Random) -> None:
        """Runs commands on a file."""

    def case(self, seed: str) -> tuple[Path, Callable[[], bool]]:
        """Returns the file of a case, and what tries it."""
        rng = random.Random(seed)
        path = self.make(rng)
        commands = rng.randrange(self.command_every) == 0

        def attempt() -> bool:
            taken = self.check(path, rng)
            if commands:
                self.commands(path, rng)
            return taken

        return path, attempt


def same(found: Any, expected: Any) -> bool:
    """Whether two nested plain values are equal; NaN equals itself, -0.0 and 0.0 differ not."""
    if isinstance(found, float) and isinstance(expected, float):
        return found == expected or (found != found and expected != expected)
    return bool(found == expected)
