# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while a FeatureLoader reads: nothing lost, nothing left, nothing hangs."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from processes import HANG, started, thread_ids, wait_for_threads

import tal_fast
from tal_fast.data import reading
from tal_fast.data.clips import VideoSet
from tal_fast.data.dataset import open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.data.windows import WindowSet
from tal_fast.errors import DataError

ROOT = Path(tal_fast.__file__).parents[1]
TRAIN = ["a", "b", "c"]


@pytest.fixture
def windows(tiny):
    return WindowSet(open_dataset(tiny.write()), TRAIN, length=64, drop_empty=False)


def open_files():
    return len(os.listdir("/proc/self/fd"))


# ---- files that change ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_shrinks_while_it_is_read(tiny, windows, threads):
    with FeatureLoader(windows, 1, prefetch=1, threads=threads) as loader:
        iterator = iter(loader)
        while "c" not in next(iterator).videos:
            pass
        os.truncate(tiny.file("c"), 128 + 16 * 200)
        with pytest.raises(DataError, match=r"'c': .*c\.npy: expected 5456 bytes, got 3328: the f"):
            list(iterator)


def test_a_file_that_is_deleted_while_it_is_read(tiny, windows, monkeypatch):
    # An open file stays readable; one that must be opened again is missed.
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 1)
    clips = VideoSet(windows.dataset, ["a", "b", "a", "b"])
    with FeatureLoader(clips, 1, prefetch=1) as loader:
        iterator = iter(loader)
        assert next(iterator).videos == ["a"]
        tiny.file("a").unlink()
        with pytest.raises(DataError, match=r"video 'a': .*a\.npy: cannot be opened: No such file"):
            list(iterator)


def test_a_file_that_is_replaced_while_it_is_read(tiny, windows, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 1)
    clips = VideoSet(windows.dataset, ["a", "b", "a", "b"])
    other = tiny.path / "other.npy"
    shutil.copy(tiny.file("a"), other)
    with FeatureLoader(clips, 1, prefetch=1) as loader:
        iterator = iter(loader)
        assert next(iterator).videos == ["a"]
        os.replace(other, tiny.file("a"))
        message = r"video 'a': .*a\.npy: another file has taken its name since it was first read"
        with pytest.raises(DataError, match=message):
            list(iterator)
    assert len(list(loader)) == 4  # after close() the loader takes what is there now
    loader.close()


# ---- a pread that misbehaves ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    out = tmp_path_factory.mktemp("shim") / "misbehaving_pread.so"
    source = Path(__file__).with_name("misbehaving_pread.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", source, "-o", out, "-ldl"], check=True)
    return out


def python(program, *arguments, env):
    """A Python of its own that has the names below."""
    head = """
        import os, sys, time
        from tal_fast.data import CropSet, FeatureLoader, VideoSet, WindowSet, open_dataset
        from processes import thread_ids, wait_for_threads
        data = open_dataset(sys.argv[1])
        windows = WindowSet(data, ["a", "b", "c"], length=64, drop_empty=False)
    """
    path = os.pathsep.join(path for path in sys.path if path)
    return started(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def run(program, *arguments, env):
    with python(program, *arguments, env=env) as process:
        out, error = process.communicate(timeout=HANG)
    return process.returncode, out, error


def test_an_io_error_names_video_file_and_offset(tiny, windows, shim):
    program = """
        before = thread_ids()
        for count in (1, 4):
            loader = FeatureLoader(windows, 2, threads=count)
            seen = 0
            try:
                for batch in loader:
                    seen += 1
            except Exception as error:
                print(type(error).__name__, error)
            loader.close()
            wait_for_threads(before)
            print(seen < len(loader))
    """
    env = {"LD_PRELOAD": str(shim), "MISBEHAVING_PREAD": "eio"}
    code, out, error = run(program, str(tiny.path), env=env)
    assert code == 0, error
    first, end, second, last = out.splitlines()
    assert end == last == "True"
    assert first.startswith("DataError video 'c': ")
    assert "c.npy: cannot be read at offset" in first
    assert "Input/output error" in first
    assert second.startswith("DataError video 'a': ")  # every pread fails by then


def test_a_file_whose_size_cannot_be_asked_is_not_called_short(tiny, windows, shim):
    program = """
        os.environ["MISBEHAVING_PREAD"] = "unasked"
        try:
            list(FeatureLoader(windows, 1))
        except Exception as error:
            print(type(error).__name__, error)
    """
    code, out, error = run(program, str(tiny.path), env={"LD_PRELOAD": str(shim)})
    assert code == 0, error
    assert out.startswith("DataError video ")
    assert ".npy: cannot be read at offset" in out
    assert "Input/output error" in out


def test_short_reads_and_interrupted_calls_change_nothing(tiny, windows, shim, tmp_path):
    program = """
        import torch
        for layout in ("TC", "CT"):
            with FeatureLoader(windows, 2, threads=3, layout=layout) as loader:
                torch.save([b.features.clone() for b in loader], f"{sys.argv[2]}/{layout}.pt")
    """
    env = {"LD_PRELOAD": str(shim), "MISBEHAVING_PREAD": "short"}
    code, _, error = run(program, str(tiny.path), str(tmp_path), env=env)
    assert code == 0, error
    for layout in ("TC", "CT"):
        found = torch.load(tmp_path / f"{layout}.pt")
        with FeatureLoader(windows, 2, threads=3, layout=layout) as loader:
            expected = [batch.features.clone() for batch in loader]
        assert len(found) == len(expected) == -(-len(windows) // 2)
        assert all(map(torch.equal, found, expected)), layout


# ---- leaving -------------------------------------------------------------------------------------


def cycles(windows, count):
    gc.collect()
    before, files = thread_ids(), open_files()
    for i in range(count):
        loader = FeatureLoader(windows, 2, threads=1 + i % 2, prefetch=1)
        iterator = iter(loader)
        next(iterator)
        if i % 3 == 0:
            next(iterator)
        if i % 2:
            loader.close()
        del iterator, loader
    gc.collect()
    wait_for_threads(before)
    assert open_files() == files


def test_opening_and_closing_leaks_nothing(windows):
    cycles(windows, 300)


@pytest.mark.slow
def test_ten_thousand_times_opening_and_closing_leak_nothing(windows):
    cycles(windows, 10_000)


def test_break_and_an_error_in_the_consumer(windows):
    before = thread_ids()

    def consume(loader):
        for _ in loader:
            raise KeyError

    with FeatureLoader(windows, 1, threads=2) as loader:
        for _ in range(20):
            for batch in loader:
                assert batch.indices == [0]
                break
        with pytest.raises(KeyError):
            consume(loader)
        assert len(list(loader)) == len(windows)
    wait_for_threads(before)


def test_two_loaders_at_once(windows, tiny):
    clips = VideoSet(windows.dataset, TRAIN)
    with FeatureLoader(windows, 2, threads=2) as one, FeatureLoader(clips, 1, layout="CT") as two:
        for _ in range(5):
            for a, b in zip(one, two, strict=False):
                assert a.features[0, 0, 0] == tiny.features[a.videos[0]][a.starts[0], 0]
                assert b.features[0, 1, 3] == tiny.features[b.videos[0]][3, 1]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_use(windows):
    with FeatureLoader(windows, 2, threads=2) as loader:
        expected = [batch.features.clone() for batch in loader]
        iterator = iter(loader)
        next(iterator)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                got = [batch.features for batch in loader]
                code = 0 if all(map(torch.equal, got, expected)) and got else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(iterator)) == len(loader) - 1


@pytest.mark.parametrize("how", ["end", "sys.exit", "error"])
def test_the_interpreter_exits_with_a_running_loader(tiny, windows, shim, how):
    program = """
        loader = FeatureLoader(windows, 1, threads=3, prefetch=4)
        iterator = iter(loader)
        batch = next(iterator)
        print("running", flush=True)
        if sys.argv[2] == "sys.exit":
            sys.exit(3)
        if sys.argv[2] == "error":
            raise SystemError("planted")
    """
    env = {"LD_PRELOAD": str(shim), "MISBEHAVING_PREAD": "slow"}
    code, out, error = run(program, str(tiny.path), how, env=env)
    assert out == "running\n"
    assert code == {"end": 0, "sys.exit": 3, "error": 1}[how]
    assert ("planted" in error) == (how == "error")
    assert "Fatal" not in error
    assert "terminate" not in error


def test_ctrl_c(tiny, windows, shim):
    program = """
        before = thread_ids()
        loader = FeatureLoader(windows, 1, threads=2)
        try:
            while True:
                for batch in loader:
                    print("batch", flush=True)
        except KeyboardInterrupt:
            loader.close()
            wait_for_threads(before)
            print("interrupted", flush=True)
    """
    env = {"LD_PRELOAD": str(shim), "MISBEHAVING_PREAD": "slow", "OMP_NUM_THREADS": "1"}
    with python(program, str(tiny.path), env=env) as process:
        assert process.stdout.readline() == "batch\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=HANG)
    assert process.returncode == 0, error
    assert out.splitlines()[-1] == "interrupted"
