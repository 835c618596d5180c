# SPDX-License-Identifier: Apache-2.0
"""HDF5 files that end the process of whoever opens them are refused, and the process lives."""

import base64
import errno
import os
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from processes import has_ended, wait_for

from tal_fast.data.feature_index import index_features
from tal_fast.data.feature_streams import OpenStream
from tal_fast.data.formats import hdf5_trust
from tal_fast.data.formats.hdf5 import Hdf5File
from tal_fast.data.streams import Stream
from tal_fast.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py")

# HDF5 2.0 reads beyond a buffer of this one; bent and made small by the programs of endurance.
CRASHES = zlib.decompress(
    base64.b85decode(
        b"c-rgqaB<`1lHy|K;9!7(|4`t=1K}G$#aCC!{qy&531VWXU=l)B2m@S942%p6Y(Q;{42<cUq1xDhY8g2gS<_MzON!"
        b"YU^wah8^7B&J1VE}-^Gh;Pi!`{QO63>`09NtR6T~<HVmR1FGe)Rh7Y3>TJ!7p{uoHlOWK>~bU}9oqWP{4FpoJg|F"
        b"pDrS3M$w$K*HF8!GxQ^<UcdeJ3!Ymb90CTbuuw9GqSO8u!7X2XgD!JO`6Rxm_e1)g+C0VU=)mkQ7{Td!6+C7qhJ(_"
        b"f)NM+uzFPe"
    )
)


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["feats"] = np.ones((3, 4), np.float32)
    return tmp_path


def rows(folder, name):
    return index_features(folder, [name], suffix=".h5")[name].rows


def test_a_file_that_crashes_hdf5_is_refused_and_others_are_read(folder):
    (folder / "bad.h5").write_bytes(CRASHES)
    words = r"bad\.h5: HDF5's own library crashes on it \(SIG\w+\): the file is damaged"
    for _ in range(2):
        with pytest.raises(DataError, match=words):
            rows(folder, "bad")
        with (
            OpenStream(Stream(str(folder), "%s.h5")) as opened,
            pytest.raises(DataError, match=words),
        ):
            opened.array("bad")
        assert rows(folder, "a") == 3
    assert not list(folder.glob("core*"))


def test_a_source_of_a_virtual_dataset_is_looked_at_too(folder):
    layout = h5py.VirtualLayout((3, 4), np.float32)
    layout[:] = h5py.VirtualSource(folder / "bad.h5", "feats", (3, 4))
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("feats", layout)
    (folder / "bad.h5").write_bytes(CRASHES)
    with (
        OpenStream(Stream(str(folder), "%s.h5")) as opened,
        pytest.raises(DataError, match="HDF5's own library crashes on it"),
    ):
        opened.array("v")


def looks(folder, monkeypatch, names):
    """The last letters of the files that were looked at."""
    looked = []
    probe = hdf5_trust._Probe()
    touch = probe._touch
    monkeypatch.setattr(probe, "_touch", lambda path: looked.append(path[-4]) or touch(path))
    monkeypatch.setattr(hdf5_trust, "_probe", probe)
    for name in names:
        rows(folder, name)
    probe.close()
    return looked


def test_a_file_is_looked_at_once_until_it_changes(folder, monkeypatch):
    assert looks(folder, monkeypatch, "aabab") == ["a", "b"]

    def changed():
        yield from "aa"
        os.utime(folder / "a.h5", ns=(1, 1))
        yield "a"

    assert looks(folder, monkeypatch, changed()) == ["a", "a"]


def test_it_can_be_left_out(folder, monkeypatch):
    monkeypatch.setattr(hdf5_trust, "_probe", None)
    monkeypatch.setenv("TAL_FAST_HDF5_PROBE", "0")
    assert rows(folder, "a") == 3
    monkeypatch.setenv("TAL_FAST_HDF5_PROBE", "no")
    with pytest.raises(ConfigError, match="TAL_FAST_HDF5_PROBE: expected 0 or 1, got 'no'"):
        rows(folder, "a")


def test_another_end_of_the_process_is_told(folder, monkeypatch, tmp_path):
    program = tmp_path / "ends.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(hdf5_trust, "_PROGRAM", program)
    monkeypatch.setattr(hdf5_trust, "_probe", hdf5_trust._Probe())
    with pytest.raises(DataError, match=r"a\.h5: .* ended with status 3 .*_PROBE=0 does without"):
        rows(folder, "a")


def test_one_that_was_killed_meanwhile_starts_anew(folder, monkeypatch):
    probe = hdf5_trust._Probe()
    monkeypatch.setattr(hdf5_trust, "_probe", probe)
    rows(folder, "a")
    first = probe.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: has_ended(first), "the end of the process")
    assert rows(folder, "b") == 3
    assert probe.pid != first
    probe.close()


def test_an_answer_that_was_not_awaited_is_not_taken_for_the_next(folder, monkeypatch):
    probe = hdf5_trust._Probe()
    monkeypatch.setattr(hdf5_trust, "_probe", probe)
    rows(folder, "a")
    process, channel = probe._running

    class Interrupted:
        sendall, close = channel.sendall, channel.close

        def recv(self, count):
            raise KeyboardInterrupt

    probe._running = process, Interrupted()
    with pytest.raises(KeyboardInterrupt):
        rows(folder, "b")
    assert has_ended(process.pid)
    (folder / "bad.h5").write_bytes(CRASHES)
    with pytest.raises(DataError, match="HDF5's own library crashes on it"):
        rows(folder, "bad")


def test_a_file_that_leads_to_others_is_looked_at_each_time(folder, monkeypatch):
    with h5py.File(folder / "link.h5", "w") as file:
        file["feats"] = h5py.ExternalLink(str(folder / "a.h5"), "feats")
    assert looks(folder, monkeypatch, ["link", "link", "a", "a"]) == ["k", "k", "a"]


def test_groups_that_link_one_another_are_not_walked_for_ever(folder):
    path = folder / "diamonds.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = np.ones((3, 4), np.float32)
        group = file
        for _ in range(60):  # 2**60 paths
            inner = group.create_group("left")
            group["right"] = inner
            group = inner
    assert Hdf5File(path).holds("feats")  # the other process is through
    with pytest.raises(DataError, match=r"diamonds\.h5: .* more than 1000 times by other names"):
        rows(folder, "diamonds")


PROGRAM = """
import os, sys
from tal_fast.data.feature_index import index_features
from tal_fast.data.formats.hdf5_trust import _probe
index_features(sys.argv[1], ["a"], suffix=".h5")
print(_probe.pid, flush=True)
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        index_features(sys.argv[1], ["b"], suffix=".h5")
        print(_probe.pid, flush=True)
        _probe.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    index_features(sys.argv[1], ["b"], suffix=".h5")
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["end", "fork", "wait"])
def test_the_process_ends_with_the_one_that_started_it(folder, how):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, folder, how]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = int(running.stdout.readline())
    pids = [first, int(running.stdout.readline())] if how == "fork" else [first]
    assert len(set(pids)) == len(pids)
    if how == "wait":
        assert not has_ended(first)
        running.send_signal(signal.SIGKILL)
        wait_for(lambda: has_ended(first), "the end of the process")
    running.communicate()
    assert running.returncode == (-signal.SIGKILL if how == "wait" else 0)
    assert all(map(has_ended, pids))


def test_the_program_can_be_imported_as_a_module():
    program = "import sys\nbefore = [*sys.path]\nimport {}\nassert sys.path == before"
    module = "tal_fast.data.formats.hdf5_probe"
    subprocess.run([sys.executable, "-c", program.format(module)], check=True)


def test_a_process_that_does_not_start_is_told(folder, monkeypatch):
    """As where the system has no more processes."""

    def start(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    trust = hdf5_trust._Probe()
    monkeypatch.setattr(hdf5_trust.subprocess, "Popen", start)
    with pytest.raises(DataError, match=r"a\.h5: cannot start the process .*: .*PROBE=0"):
        trust.check(str(folder / "a.h5"), "a state")
