# SPDX-License-Identifier: Apache-2.0
"""Samples of grids of cases: what they must hold, and what pytest makes of them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import case_samples
import pytest

GRID = list(itertools.product(range(10), "abcd", range(2), (None, "x", "y"), range(2)))


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("seed", ["1", "2", "any text"])
def test_a_sample_is_small_and_shows_every_pair(seed):
    chosen = [GRID[number] for number in case_samples.covering(GRID, seed)]
    assert pairs(chosen) == pairs(GRID)
    assert 40 <= len(chosen) <= 55  # of 480; no fewer than the two longest axes have pairs


def test_the_seed_decides_and_nothing_else():
    chosen = case_samples.covering(GRID, "1")
    assert chosen == case_samples.covering(GRID, "1")
    assert chosen != case_samples.covering(GRID, "2")
    assert chosen == sorted(chosen)


def test_a_grid_with_holes():
    rows = [row for row in GRID if (row[0], row[1]) != (3, "b") and not (row[2] and row[4])]
    chosen = [rows[number] for number in case_samples.covering(rows, "1")]
    assert pairs(chosen) == pairs(rows)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [()],
        [(1,), (2,), (3,)],
        list(itertools.product(range(7), range(5))),
        # The third moves with the first, the fourth not at all.
        [(a, b, a, 0) for a, b in itertools.product(range(7), range(5))],
    ],
)
def test_fewer_than_three_parameters_run_whole(rows):
    assert case_samples.covering(rows, "1") == list(range(len(rows)))


TESTS = """
import pytest

@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize(("b", "c"), [(x, {"un": "hashable"}) for x in range(3)])
@pytest.mark.parametrize("d", "xy")
def test_grid(a, b, c, d):
    pass

@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", range(3))
def test_two(a, b):
    pass

class TestAll:
    @pytest.mark.parametrize("a", range(2))
    @pytest.mark.parametrize("b", range(2))
    @pytest.mark.parametrize("c", range(2))
    def test_three(self, a, b, c):
        pass

def test_plain():
    pass
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite with the hooks of this one."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_made.py").write_text(TESTS)
    text = Path(__file__).with_name("conftest.py").read_text("utf-8")
    start = text.index("def pytest_terminal_summary")
    hooks = text[start : text.index("\n\n\n", text.index("def pytest_configure"))]
    (folder / "conftest.py").write_text("import pytest, case_samples\n" + hooks)
    return folder


def collect(suite, *arguments, monkeypatch=None, seed=None):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # none is needed here
    monkeypatch.delenv(case_samples.VARIABLE, raising=False)
    if seed is not None:
        monkeypatch.setenv(case_samples.VARIABLE, seed)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qv", "-p", "no:cacheprovider"]
    command += ["-c", "/dev/null", "--rootdir", str(suite), *arguments, str(suite)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_suite_with_and_without_a_seed(suite, monkeypatch):
    every = collect(suite, monkeypatch=monkeypatch)
    assert "grids of cases: whole" in every
    assert "45 tests collected" in every
    some = collect(suite, monkeypatch=monkeypatch, seed="5")
    assert "a sample of all pairs, TAL_FAST_TEST_SAMPLE=5" in some
    assert some.count("test_two[") == 12
    assert 12 <= some.count("test_grid[") < 24
    assert 4 <= some.count("test_three[") < 8
    kept = some.count("<Function ")
    assert f"{kept}/45 tests collected ({45 - kept} deselected)" in some


def test_what_k_leaves_is_sampled_not_what_it_takes_away(suite, monkeypatch):
    out = collect(suite, "-k", "test_grid and x", monkeypatch=monkeypatch, seed="5")
    assert out.count("test_grid[") == 12  # one value of d: two parameters are left
