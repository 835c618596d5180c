# SPDX-License-Identifier: Apache-2.0
import errno
import os
from pathlib import Path

import pytest

from tal_fast.data.files import directory_in_one_step, write_text_atomically
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
        pytest.raises(DataError, match=r"out: cannot be written: (Not a directory|File exists)"),
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
    monkeypatch.setattr(Path, "write_bytes", full_disk)
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
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        write_text_atomically(path, "text")


def test_nearest():
    assert nearest("citaton", ["citation", "name"]) == "; did you mean 'citation'?"
    assert nearest("zzz", ["citation"]) == ""
