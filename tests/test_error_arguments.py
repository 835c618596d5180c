# SPDX-License-Identifier: Apache-2.0
"""Errors name an argument as the command line and as Python have it, in one way."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from tal_fast import cli, errors

PACKAGE = Path(errors.__file__).parent
# What no command calls: the ops, their twins, and what stands behind the names of other codebases.
ASIDE = {"ops", "reference", "compat"}
# An argument with a value as Python has it, or a wish that says neither option nor argument.
PYTHON = re.compile(r"\b[a-z_]+=(True|False|None|')|; ask for ")


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in ASIDE:
            yield path, ast.parse(path.read_text("utf-8"))


def called(node: ast.AST) -> str:
    return getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""


def spelt_by_hand(tree: ast.AST) -> Iterator[str]:
    """Yields all texts but docstrings, without what :func:`errors.argument` puts there."""
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for call in ast.walk(tree):
        if called(call) in {"argument", "both_ways"}:
            apart |= {id(part) for part in ast.walk(call)}
    for part in ast.walk(tree):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in apart:
            yield part.value


def test_no_message_spells_an_argument_by_hand():
    found = [
        f"{path.relative_to(PACKAGE)}: {text}"
        for path, tree in sources()
        for text in spelt_by_hand(tree)
        if PYTHON.search(text)
    ]
    assert not found, "\n".join(found)


def test_a_message_spelt_by_hand_is_found():
    for text in (
        "there; ask for overwrite",
        "x (strict=True follows)",
        "out_of_range='clamp' cuts",
    ):
        tree = ast.parse(f"raise DataError(f'{{path}}: ' {text!r})")
        assert any(map(PYTHON.search, spelt_by_hand(tree)))


def options(command: typer.core.TyperGroup | typer.core.TyperCommand) -> set[str]:
    names = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for below in getattr(command, "commands", {}).values():
        names |= options(below)
    return names


def test_every_option_that_a_message_names_is_one():
    known = options(typer.main.get_command(cli.app))
    named = {}
    for path, tree in sources():
        for node in ast.walk(tree):
            if called(node) in {"argument", "both_ways"} and path.name != "errors.py":
                try:
                    given = [ast.literal_eval(part) for part in node.args]
                    chosen = {part.arg: ast.literal_eval(part.value) for part in node.keywords}
                except ValueError:  # a value from elsewhere: the name and the option still count
                    given = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
                    chosen = {part.arg: ast.literal_eval(part.value) for part in node.keywords}
                if given:
                    text = (
                        given[0]
                        if called(node) == "both_ways"
                        else errors.argument(*given, **chosen)
                    )
                    for option in re.findall(r"--[a-z-]+", text.partition(" (")[0]):
                        named[option] = path.name
    assert len(named) > 15
    assert {option: name for option, name in named.items() if option not in known} == {}


SEGMENTS = "video,start,end,label\nv0,0,3,run\nv1,0,2,run\nv1,3,9,sit\nv0,4,5,sit\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with features, segments, results and more that commands refuse."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features").mkdir()
    for name in ("v0", "v1", "v2"):
        np.save(tmp_path / f"features/{name}.npy", np.ones((16, 4), np.float32))
    (tmp_path / "segments.csv").write_text(SEGMENTS + "v2,0,1,run\nv2,2,3,sit\n")
    (tmp_path / "late.csv").write_text(SEGMENTS.replace("3,9", "3,90") + "v2,0,1,run\n")
    (tmp_path / "subsets.csv").write_text(
        "video,start,end,label,subset\nv0,0,3,run,a\nv1,0,2,run,b\nv2,0,2,run,b\n"
    )
    (tmp_path / "class.csv").write_text(SEGMENTS.replace("label", "class"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/dataset.yaml").write_text("name: x\n")
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended/checkpoint.pt").touch()
    video = {"subset": "test", "duration": 9.0, "annotations": [{"segment": [1, 2], "label": "a"}]}
    (tmp_path / "truth.json").write_text(json.dumps({"database": {"v": video}}))
    (tmp_path / "results.pkl").write_bytes(b"x")
    (tmp_path / "mixed").mkdir()
    np.save(tmp_path / "mixed/v0.npy", np.ones((3, 4), np.float32))
    np.savez(tmp_path / "mixed/v1.npz", a=np.ones((3, 4), np.float32))
    (tmp_path / "named").mkdir()
    np.savez(tmp_path / "named/v0.npz", a=np.ones((3, 4)), b=np.ones((3, 4)))
    (tmp_path / "two.csv").write_text("curve,percent,map_mean,n\na,10,5,2\nb,10,5,2\n")
    return tmp_path


PREPARE = "prepare csv --features features --rate 2 --out new --segments"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("prepare synthetic --out full", "--overwrite (overwrite=True) replaces it"),
        (f"{PREPARE} late.csv", "--out-of-range clamp (out_of_range='clamp') cuts them"),
        (f"{PREPARE} class.csv", "--column label=class (columns={'label': 'class'})"),
        (f"{PREPARE} subsets.csv", "--split train=SUBSET --split test=SUBSET (splits={'train': "),
        (f"{PREPARE} segments.csv --test-share 2", "--test-share (test_share): expected"),
        (f"{PREPARE} segments.csv --split test=a", "--split (splits): segments.csv has no"),
        (f"{PREPARE} segments.csv --column lable=x", "--column (columns): expected some of"),
        ("train --data d --out ended", "with --no-resume (resume=False)"),
        ("evaluate --annotations truth.json --predictions results.pkl", "--allow-pickle (allow_p"),
        ("pack --features mixed --out new", "give a template with --template (template)"),
        ("pack --features named --out new", "name one with --key (key)"),
        ("study extrapolate --study two.csv --times 3", "choose one with --curve (name)"),
        ("study run --data d --out o --gpus-per-trial 0.5", "--gpus-per-trial (gpus_per_trial): "),
        ("study run --data d --out o --set training.seed=3", "that of the study is --seed (seed)"),
    ],
)
def test_commands_that_run_into_them(capsys, place, command, named):
    status = cli.main(command.split())
    captured = capsys.readouterr()
    assert status in (1, 2)
    assert "Traceback" not in captured.err
    assert named in captured.err


PACKED = ("--features", "features", "--out", "store")


def test_a_packing_that_goes_on_with_another_type(capsys, place):
    assert cli.main(["pack", *PACKED]) == 0
    capsys.readouterr()
    assert cli.main(["pack", *PACKED, "--dtype", "float16"]) == 2
    assert "now 'float16'; --overwrite (overwrite=True) starts over" in capsys.readouterr().err
