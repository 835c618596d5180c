# SPDX-License-Identifier: Apache-2.0
"""A file where a directory is wanted, the reverse, or nothing: told in words of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tal_fast import cli
from tal_fast.data.synthetic import make_synthetic

FILE, FOLDER = "file.csv", "folder"
LONG = "x" * 300  # more than a name in a file system may have
PREPARE = "prepare csv --segments file.csv --features folder --rate 5"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a data directory, a table, and an empty folder."""
    path = tmp_path_factory.mktemp("paths")
    make_synthetic(path / "data", size="demo", train_videos=4, test_videos=2, channels=8)
    (path / FILE).write_text("video,start,end,label\na,1,2,run\nb,1,2,run\nc,1,2,run\n")
    (path / FOLDER).mkdir()
    return path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        # To read: a directory.
        ("train --data file.csv --out x", "file.csv: expected a data directory, got a file; make"),
        ("train --data nothing --out x", "nothing: no such directory; tal-fast prepare csv"),
        ("train --data folder --out x", "folder: expected a data directory, with a dataset.yaml"),
        ("validate --data file.csv", "make one: tal-fast prepare csv --segments file.csv"),
        ("study run --data file.csv --out x", "file.csv: expected a data directory"),
        ("predict --checkpoint data --data nothing --out x", "nothing: no such directory"),
        ("study report --study file.csv", "file.csv"),
        ("study report --study nothing", "nothing"),
        ("profile train --data nothing --out x", "nothing: no such directory"),
        ("prepare csv --segments file.csv --features nothing --rate 5 --out x", "no such feature"),
        ("profile compare file.csv nothing", "file.csv"),
        # To read: a file.
        ("evaluate --annotations nothing --predictions x", "nothing: no such file (ground truth)"),
        ("evaluate --annotations file.csv --predictions x", "got a table; make a data directory"),
        ("evaluate --annotations data --predictions folder", "folder: cannot be read: expected a"),
        ("validate --annotations folder", "folder: cannot be read: expected a file, found a dir"),
        ("validate --annotations file.csv", "got a table; make a data directory of it: tal-fast"),
        ("prepare csv --segments folder --features folder --rate 5 --out x", "expected a file, f"),
        (f"{PREPARE} --classes nothing.txt --out x", "--classes: nothing.txt: no such file"),
        ("prepare csv --segments a.json --features folder --rate 5 --out x", "got JSON"),
        ("prepare json --annotations file.csv --features folder --rate 5 --out x", "got a table"),
        ("train --data data --out x --config folder", "folder: expected a file, found a directo"),
        ("train --data data --out x --config nothing", "nothing: No such file"),
        ("predict --checkpoint folder --data data --out x", "no checkpoint at folder"),
        ("predict --checkpoint file.csv --data data --out x", "file.csv is not a checkpoint"),
        ("study fit --study folder", "folder: expected a study with trials.csv"),
        ("study fit --study nothing", "nothing: no such file or study"),
        # To write: a directory.
        ("train --data data --out file.csv", "file.csv: expected a directory, found a file"),
        ("train --data data --out file.csv/below", "expected a directory, found a file: "),
        (f"{PREPARE} --out file.csv", "file.csv: expected a directory, found a file"),
        ("study run --data data --out file.csv", "expected a directory, found a file"),
        ("study demo --out file.csv/below", "expected a directory, found a file"),
        ("validate --data data --report file.csv", "expected a directory, found a file"),
        ("evaluate --annotations data --predictions x --report file.csv", "expected a directory"),
        ("pack --features folder --out file.csv", "expected a directory, found a file"),
        ("profile train --data data --out file.csv", "expected a directory, found a file"),
        ("profile compare folder folder --out file.csv", "expected a directory, found a file"),
        ("profile nsys --out file.csv -- train --data data --out x", "expected a directory"),
        # To write: a file.
        ("predict --checkpoint x --data data --out folder", "folder: expected a file, found a"),
        ("validate --data data --json folder", "folder: expected a file, found a directory"),
        ("study fit --study file.csv --picture folder", "folder: expected a file, found a dir"),
        ("study draw --study file.csv --picture folder", "folder: expected a file, found a dir"),
    ],
)
def test_what_is_no_such_path(place, monkeypatch, capsys, command, message):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "500")
    assert cli.main(command.split()) in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors
    assert "Errno" not in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in place.iterdir()) == ["data", FILE, FOLDER], "nothing made"
    assert not any((place / FOLDER).iterdir())


@pytest.mark.parametrize(
    "command",
    [
        f"train --data {LONG} --out x",
        f"train --data data --out x --config {LONG}",
        f"train --data data --out x --model {LONG}.py:Model",
        f"predict --checkpoint {LONG} --data data --out x",
        f"evaluate --annotations {LONG} --predictions x",
        f"evaluate --annotations data --predictions {LONG}",
        f"prepare csv --segments {LONG}.csv --features folder --rate 5 --out x",
        f"prepare csv --segments file.csv --features {LONG} --rate 5 --out x",
        f"{PREPARE} --classes {LONG}.txt --out x",
        f"study fit --study {LONG}",
        f"study fit --study {LONG}:curve",
        f"study draw --study {LONG} --picture x.png",
        f"study report --study {LONG}",
        f"profile compare {LONG} folder",
        # To write, and so before the work.
        f"train --data data --out {LONG}",
        f"train --data data --out {LONG}/below",
        f"{PREPARE} --out {LONG}",
        f"study demo --out {LONG}",
        f"validate --data data --report {LONG}",
        f"predict --checkpoint x --data data --out {LONG}",
        f"validate --data data --json {LONG}",
        f"study fit --study file.csv --picture {LONG}",
    ],
)
def test_a_path_that_is_too_long(place, monkeypatch, capsys, command):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "2000")
    assert cli.main(command.split()) in (1, 2)
    errors = capsys.readouterr().err
    assert LONG in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in place.iterdir()) == ["data", FILE, FOLDER], "nothing made"


def test_a_list_of_classes_may_be_longer_than_a_path(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names = ",".join(f"class_{number}" for number in range(1000))
    assert cli.main([*PREPARE.split(), "--classes", names, "--out", "x"]) == 1
    assert "File name too long" not in capsys.readouterr().err
