# SPDX-License-Identifier: Apache-2.0
"""Every command of the pages is one that the program understands; the quick ones run."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

import pages
import pytest
import typer

from tal_fast import cli
from tal_fast.cli.app import app

COMMANDS = sorted(
    {shlex.join(arguments): page for page in pages.PAGES for arguments in pages.commands(page)}
    .items()
)  # fmt: skip
LEFT_OUT = "..."  # of a command that the page has in full elsewhere


ROOT_COMMAND: Any = typer.main.get_command(app)
# typer brings its own click or uses the installed one, by its version.
_CORE = next(base for base in type(ROOT_COMMAND).__mro__ if base.__name__ == "Command").__module__
CLICK = importlib.import_module(_CORE.removesuffix(".core") + ".exceptions")


def understood(arguments: list[str]) -> None:
    """Parses a command as the program would, and stops before it runs.

    Raises:
        CLICK.UsageError: a command or option does not exist, an option lacks its value, or one that
            is required is not there.
    """
    whole = LEFT_OUT not in arguments and "COMMAND" not in arguments
    words = [word for word in arguments if word not in (LEFT_OUT, "COMMAND")]
    if words[:1] == ["train"] and words[-1] == "--profile":
        words.append("50")  # the program adds the number: the parser has no optional values
    command = ROOT_COMMAND
    while hasattr(command, "commands") and (words or whole):
        name = words.pop(0)
        if name not in command.commands:
            raise CLICK.UsageError(f"no command {name}")
        command = command.commands[name]
    try:
        command.make_context(command.name, words)
    except CLICK.MissingParameter:
        if whole:
            raise


@pytest.mark.parametrize("text", [text for text, _ in COMMANDS])
def test_options_exist(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation").mkdir()
    understood(shlex.split(text))


def test_pages_have_commands():
    with_commands = {page for _, page in COMMANDS}
    assert {"README.md", "docs/quickstart.md", "docs/features.md"} <= with_commands
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(
    "text",
    ["train --data d", "train --data d --out o --epoch 3", "trian --data d --out o"],
)
def test_what_does_not_exist_is_found(text):
    with pytest.raises(CLICK.UsageError):
        understood(text.split())


SHORT = {
    "train": ["--set", "training.epochs=1", "--threads", "1"],
    "predict": ["--threads", "1"],
    "study": ["--set", "training.epochs=1", "--threads", "1", "--repetitions", "1"],
}


def run(arguments: list[str]) -> None:
    """Runs a command of a page, its training cut short."""
    assert cli.main([*arguments, *SHORT.get(arguments[0], [])]) == 0, arguments


def test_the_steps_of_the_quick_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo, *steps = pages.commands("docs/quickstart.md")
    assert demo[:2] == ["study", "demo"]
    for arguments in steps:
        run(arguments)
    assert (tmp_path / "report/index.html").is_file()
    assert "mAP" in capsys.readouterr().out


def test_the_five_commands_of_the_readme(tmp_path, monkeypatch, capsys):
    """On a folder of .npy files and a table of segments, as a reader would have them."""
    make_features_and_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = pages.commands("README.md")
    assert [words[0] for words in steps] == ["prepare", "train", "predict", "evaluate", "study"]
    for arguments in steps:
        run([word if word != "0.1:1.0:0.1" else "0.5,1.0" for word in arguments])
    assert (tmp_path / "report/index.html").is_file()
    assert (tmp_path / "results/mine/curve.csv").is_file()


def make_features_and_table(folder: Path) -> None:
    """Six short videos at 25 fps, a row every four frames, with two classes."""
    import numpy as np

    rng = np.random.default_rng(0)
    (folder / "features").mkdir()
    lines = ["video,start,end,label"]
    for number in range(10):
        features = rng.normal(size=(60, 8)).astype(np.float32)
        for label, (first, last) in {"jump": (8, 20), "throw": (30, 44)}.items():
            features[first:last, 0 if label == "jump" else 1] += 4
            lines.append(f"v{number},{first * 4 / 25},{last * 4 / 25},{label}")
        np.save(folder / f"features/v{number}.npy", features)
    (folder / "segments.csv").write_text("\n".join(lines) + "\n")
