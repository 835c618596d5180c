# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tal_fast.data.files import (
    directory_in_one_step,
    file_in_one_step,
    remove_unfinished,
    write_text_atomically,
)
from tal_fast.errors import DataError, nearest


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_directory_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with directory_in_one_step(out, overwrite=False) as work:
        (work / "x").write_text("1")
        assert not out.exists()
    assert (out / "x").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]
    # Made like mkdir would, not private like mkdtemp's.
    (tmp_path / "other").mkdir()
    assert out.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path, error, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "dataset.yaml").write_text("old")

    def make():
        with directory_in_one_step(out, overwrite=True) as work:
            (work / "x").write_text("1")
            raise error

    with pytest.raises(error):
        make()
    assert list(tmp_path.iterdir()) == ([out] if there else [])
    if there:
        assert [(f.name, f.read_text()) for f in out.iterdir()] == [("dataset.yaml", "old")]


def test_overwriting_replaces_all(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.yaml").write_text("old")
    (out / "old").write_text("old")
    with directory_in_one_step(out, overwrite=True) as work:
        (work / "new").write_text("new")
    assert [f.name for f in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_only_our_own_directories_are_overwritten(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with (
        pytest.raises(DataError, match=r"has no dataset\.yaml, so it is not replaced"),
        directory_in_one_step(tmp_path, overwrite=True),
    ):
        pass
    with (
        pytest.raises(DataError, match="already exists; --overwrite"),
        directory_in_one_step(tmp_path, overwrite=False),
    ):
        pass
    with (
        pytest.raises(DataError, match="expected a directory to write, got a file"),
        directory_in_one_step(tmp_path / "letter.txt", overwrite=True),
    ):
        pass
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    with directory_in_one_step(tmp_path / "out", overwrite=False) as work:
        (work / "x").touch()
    assert (tmp_path / "out" / "x").exists()


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            DataError, match=r"out: cannot be written: expected a directory, found a file: .*/file$"
        ),
        directory_in_one_step(tmp_path / "file" / "out", overwrite=False),
    ):
        pass


def test_full_disk_in_a_directory(tmp_path):
    with (
        pytest.raises(DataError, match="out: cannot be written: No space left on device"),
        directory_in_one_step(tmp_path / "out", overwrite=False),
    ):
        full_disk()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DataError, match="x: cannot be written: No space left on device"):
        write_text_atomically(tmp_path / "x", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_pipe_or_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text_atomically(tmp_path / "pipe", "text")
        assert os.read(reader, 9) == b"text"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_no_file_to_write(path):
    with pytest.raises(DataError, match="cannot be written: expected a file"):
        write_text_atomically(path, "text")


def killed(code: str, out: str) -> None:
    """Runs code that kills its process."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tal_fast.data import files\nout = Path(sys.argv[1])\n" + code
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", code, out], env=environment)
    assert ended.returncode == -signal.SIGKILL


IN_A_FILE = """
with files.file_in_one_step(out) as file:
    file.write(b"new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
IN_A_DIRECTORY = """
with files.directory_in_one_step(out, overwrite=True) as work:
    (work / "x").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
BETWEEN_TWO_RENAMES = """
rename = os.rename
def killing(a, b):
    if b == out:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(a, b)
os.rename = killing
with files.directory_in_one_step(out, overwrite=True) as work:
    (work / "dataset.yaml").write_text("new")
"""


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_write(tmp_path):
    out = tmp_path / "curve.svg"
    out.write_text("old")
    killed(IN_A_FILE, str(out))
    assert out.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".curve.svg.4711.tmp").touch()  # as earlier versions named it
    (tmp_path / ".other.svg.4711.tmp").touch()
    write_text_atomically(out, "new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".other.svg.4711.tmp", "curve.svg"]
    assert out.read_text() == "new"


def test_what_another_process_writes_right_now_stays(tmp_path):
    out = tmp_path / "x"
    with file_in_one_step(out) as mine:
        mine.write(b"mine")
        remove_unfinished(out)
        write_text_atomically(out, "theirs")
        assert out.read_text() == "theirs"
        assert len(list(tmp_path.iterdir())) == 2
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_is_taken_for_left_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    out, flock, calls = tmp_path / "x", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            calls.append(operation)
            remove_unfinished(out)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_text_atomically(out, "text")
    assert calls
    assert out.read_text() == "text"
    assert list(tmp_path.iterdir()) == [out]


def test_a_directory_that_is_taken_for_left_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch
):
    out, flock, calls = tmp_path / "x", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            remove_unfinished(out)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with directory_in_one_step(out, overwrite=False) as work:
        (work / "y").touch()
    assert len(calls) == 3  # of the one that is lost, of its removal, of the second
    assert [path.name for path in out.iterdir()] == ["y"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_left_is_locked_until_it_is_gone(tmp_path, monkeypatch, folder):
    """Else who has just made it would lock it, see it there, and lose it."""
    left = tmp_path / ".x.4711.tmp"
    left.mkdir() if folder else left.touch()
    locked = []

    def look(path: str, *_: object, **__: object) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        locked.append(path)

    monkeypatch.setattr(*((shutil, "rmtree") if folder else (os, "unlink")), look)
    remove_unfinished(tmp_path / "x")
    monkeypatch.undo()
    assert locked == [str(left)]


def test_what_is_left_of_another_name_is_not_taken(tmp_path):
    left = tmp_path / ".data.v2.1f.old"
    left.mkdir()
    (left / "dataset.yaml").write_text("of data.v2")
    with directory_in_one_step(tmp_path / "data", overwrite=False) as work:
        (work / "dataset.yaml").write_text("of data")
    assert (tmp_path / "data/dataset.yaml").read_text() == "of data"
    assert (left / "dataset.yaml").read_text() == "of data.v2"


def test_without_locks_nothing_is_taken_for_left(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".x.4711.tmp").touch()
    write_text_atomically(tmp_path / "x", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.4711.tmp", "x"]
    with directory_in_one_step(tmp_path / "d", overwrite=False) as work:
        (work / "x").touch()
    assert (tmp_path / "d" / "x").exists()


def test_what_a_killed_process_left_of_a_directory_goes_with_the_next_one(tmp_path):
    out = tmp_path / "out"
    killed(IN_A_DIRECTORY, str(out))
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with directory_in_one_step(out, overwrite=False) as work:
        (work / "x").write_text("new")
    assert list(tmp_path.iterdir()) == [out]


def test_a_directory_that_was_being_replaced_is_put_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.yaml").write_text("old")
    killed(BETWEEN_TWO_RENAMES, str(out))
    assert not out.exists()
    with (
        pytest.raises(DataError, match="already exists"),
        directory_in_one_step(out, overwrite=False),
    ):
        pass
    assert (out / "dataset.yaml").read_text() == "old"
    with directory_in_one_step(out, overwrite=True) as work:
        (work / "dataset.yaml").write_text("new")
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "dataset.yaml").read_text() == "new"


def test_nearest():
    assert nearest("citaton", ["citation", "name"]) == "; did you mean 'citation'?"
    assert nearest("zzz", ["citation"]) == ""
