# SPDX-License-Identifier: Apache-2.0
"""Pools that become loops: beside a replaced function, and nowhere else."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os

import made_originals
import pytest

from tal_fast import compat

NMS = made_originals.TEMPORAL_NMS.format(comparison="<=")
JOBLIB = """
class Parallel:
    def __init__(self, n_jobs): raise RuntimeError("workers")
Parallel.__module__ = "joblib.parallel"
def delayed(function):
    return lambda *args, **kwargs: (function, args, kwargs)
"""
POOLS = """
import concurrent.futures
import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor
from joblib import Parallel, delayed

def joined():
    with Parallel(n_jobs=4) as parallel:
        assert parallel(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    return Parallel(n_jobs=4)(delayed(os.getpid)() for _ in range(2))

def submitted():
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(os.getpid) for _ in range(2)]
        found = [future.result() for future in concurrent.futures.as_completed(futures)]
    with ProcessPoolExecutor() as pool:
        return found + list(pool.map(divmod, [7], [2]))

def note(shared, key):
    shared[key] = os.getpid()

def processes():
    shared = mp.Manager().dict()
    started = [mp.Process(target=note, args=(shared, i)) for i in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert mp.cpu_count() > 0
    return dict(shared)
"""


@pytest.fixture
def module(folder):
    folder.write("joblib.py", JOBLIB)

    def load(source: str, **options):
        folder.write("pools_made.py", source)
        compat.install(quiet=True, **options)
        return folder.load("pools_made")

    yield load
    import sys

    sys.modules.pop("joblib", None)


def test_pools_beside_a_replaced_function_are_loops(module, kinds):
    made = module(f"{NMS}\n{POOLS}")
    here = os.getpid()
    assert made.joined() == [here, here]
    assert made.submitted() == [here, here, (3, 1)]
    assert made.processes() == {0: here, 1: here}
    assert set(kinds("in line")) == {
        f"pools_made.{name}" for name in ("Parallel", "ProcessPoolExecutor", "concurrent", "mp")
    }
    compat.uninstall()
    assert made.mp is multiprocessing
    assert made.concurrent is concurrent
    with pytest.raises(RuntimeError, match="workers"):
        made.joined()


def test_a_module_that_imports_a_replaced_function_has_loops_too(folder, module):
    folder.write("nms_made.py", NMS)
    made = module(f"from nms_made import temporal_nms\n{POOLS}")
    assert made.joined() == [os.getpid()] * 2


def test_pools_elsewhere_stay(module, kinds):
    made = module(POOLS)
    assert made.mp is multiprocessing
    assert kinds("in line") == {}


@pytest.mark.parametrize("options", [{"skip": ["pools"]}, {"skip": ["temporal_nms"]}])
def test_pools_that_are_not_wanted_stay(module, options):
    assert module(f"{NMS}\n{POOLS}", **options).mp is multiprocessing


def test_processes_that_talk_with_each_other_stay(module, kinds):
    made = module(f"{NMS}\n{POOLS}\ndef talk():\n    return mp.Queue(), mp.Process\n")
    assert made.mp is multiprocessing
    assert "(Queue)" in kinds("left")["pools_made"]


def test_an_error_of_a_task_is_raised_by_its_future(module):
    made = module(f"{NMS}\n{POOLS}")
    with made.ProcessPoolExecutor() as pool:
        future = pool.submit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            future.result()
