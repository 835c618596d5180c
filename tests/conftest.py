# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import case_samples
import pytest
from hypothesis import HealthCheck, settings

from tal_fast.waiting import wait_briefly

# Before a test loads torch: the machine may be busy, and processes of pytest-xdist make it so. Each
# takes its share of the cores; two that take all spend most of their time waiting for each other.
wait_briefly()
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))

# A shell has what it runs in the background ignore Ctrl-C; what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Both would fail what is slow because the machine is busy.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# torch's cache of compiled graphs outlives a change of an op's schema and would replay old calls.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")


def pytest_report_header() -> list[str]:
    # Imported here: `pytest --help` must work without torch or the native library.
    from tal_fast import info

    facts = info.collect()
    return [f"tal_fast: torch {facts['torch']}, isa {facts['isa']['used']}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Not in the header, which -q leaves out.
    terminalreporter.write_line(case_samples.summary())


class _Samples:
    """A plugin of its own, for its turn after the selection by ``-k`` and ``-m``."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        seed = case_samples.seed()
        if seed is not None and (left_out := case_samples.thin_out(items, seed)):
            config.hook.pytest_deselected(items=left_out)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Samples(), "samples of cases")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses torch.compile, so that it runs for one instruction set only."""
    for item in items:
        if "compile" in item.name:
            item.add_marker(pytest.mark.compile)


@pytest.fixture
def thread_counts() -> Iterator[tuple[int, ...]]:
    """Numbers of torch threads to try; restores the number afterwards."""
    import torch

    before = torch.get_num_threads()
    yield (1, 2, 3, max(4, os.cpu_count() or 1))
    torch.set_num_threads(before)
