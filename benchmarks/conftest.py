# SPDX-License-Identifier: Apache-2.0
"""The fixture ``compare``, and the machine above and beside every result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import machine
import pytest
import results_table
import torch

# The evaluator's oracle lives with its tests; a benchmark verifies against it before it times.
sys.path.append(str(Path(__file__).parent.parent / "tests" / "evaluation"))

_ROWS: list[harness.Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--row-seconds",
        type=float,
        default=harness.ROW_SECONDS,
        help="how long a comparison may take before it does with fewer repetitions",
    )
    parser.addoption(
        "--results",
        type=Path,
        default=harness.results_file(),
        help="where rows are stored, beside those that are there",
    )


def pytest_report_header() -> str:
    return f"machine: {machine.header()}"


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the default tells the host's name
    machine_info.update(machine.describe())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the rows of this run once more, as the page of benchmarks shows them."""
    if not _ROWS:
        return
    terminalreporter.section("ops against their peers: times theirs over ours")
    terminalreporter.write_line(results_table.text_table([row.__dict__ for row in _ROWS]))
    terminalreporter.write_line(f"stored in {terminalreporter.config.getoption('--results')}")


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets torch's threads; code compiled for another number is forgotten."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.compiler.reset()
    yield request.param
    torch.set_num_threads(before)
    torch.compiler.reset()


Compare = Callable[..., None]


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[harness.Row], None]:
    """Returns what stores and prints a row, as soon as it is there."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def keep(row: harness.Row) -> None:
        _ROWS.append(row)
        harness.store([row], request.config.getoption("--results"))
        with capture.global_and_fixture_disabled():
            print("\n" + harness.sentence(row), flush=True)

    return keep


@pytest.fixture
def compare(
    benchmark: Any, threads: int, keep: Callable[[harness.Row], None], pytestconfig: pytest.Config
) -> Compare:
    """Returns ``compare(op, case, ours, peers, check=...)``: verify, time in turn, keep the rows.

    ``check(ours, peer)`` takes both results and raises AssertionError when they differ, and
    ``verified`` says in words what it compared. The same call of ours then goes to
    pytest-benchmark, so that its own comparisons over time work.
    """

    def run(
        op: str,
        case: str,
        ours: Callable[[], Any],
        peers: list[harness.Peer],
        *,
        check: Callable[[Any, Any], None],
        verified: str,
        repetitions: int = 21,
    ) -> None:
        result = ours()
        for peer in peers:
            if not peer.at_most:
                check(result, peer.call())
        calls = {"ours": ours, **{peer.name: peer.call for peer in peers}}
        budget = pytestconfig.getoption("--row-seconds")
        seconds = harness.interleaved(calls, repetitions, budget)
        made = len(seconds["ours"])
        ours_ms, ours_iqr = harness.summarise(seconds["ours"])
        facts = machine.describe()
        for peer in peers:
            peer_ms, peer_iqr = harness.summarise(seconds[peer.name])
            ratio = ours_ms / peer_ms if peer.at_most else peer_ms / ours_ms
            row = harness.Row(
                op=op,
                case=case,
                peer=peer.name,
                stand_in=peer.stand_in,
                threads=threads,
                ours_ms=round(ours_ms, 5),
                ours_iqr_ms=round(ours_iqr, 5),
                peer_ms=round(peer_ms, 5),
                peer_iqr_ms=round(peer_iqr, 5),
                ratio=round(ratio, 2),
                must=peer.must,
                aim=peer.aim,
                at_most=peer.at_most,
                repetitions=made,
                verified=verified,
                commit=facts["commit"],
                date=facts["date"],
            )
            keep(row)
            benchmark.extra_info[f"times {peer.name}"] = row.ratio
        if not peers:
            keep(
                harness.Row(
                    op,
                    case,
                    "none",
                    False,
                    threads,
                    round(ours_ms, 5),
                    round(ours_iqr, 5),
                    None,
                    None,
                    None,
                    None,
                    None,
                    False,
                    made,
                    verified,
                    facts["commit"],
                    facts["date"],
                )
            )
        benchmark.pedantic(ours, rounds=min(made, 10), warmup_rounds=1)

    return run
