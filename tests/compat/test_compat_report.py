# SPDX-License-Identifier: Apache-2.0
"""The report, and options that are wrong."""

from __future__ import annotations

import json
import threading

import pytest

from tal_fast import compat
from tal_fast.compat.reporting import Report, counted, uncounted
from tal_fast.errors import ConfigError


def test_calls_are_counted_over_threads_and_not_in_proofs():
    report = Report()
    entry = report.add("replaced", "f", "rule")
    function = counted(entry, lambda x: x + 1)
    threads = [threading.Thread(target=lambda: [function(1) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entry.calls == 800
    with uncounted():
        assert function(2) == 3
        report.add("mended", "numpy.float", "file.py:1").count()
    assert entry.calls == 800
    assert report.entries == (entry,)
    assert report.add("replaced", "f", "rule") is entry


def test_table_and_file(tmp_path, capsys):
    report = Report(str(tmp_path / "report.json"))
    report.add("left", "module.g", "differs by 1.0e-03")
    report.add("replaced", "module.f", "matches as activitynet").count(0.25)
    report.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tal_fast.compat:"
    assert [line.split() for line in lines[2:]] == [
        ["replaced", "module.f", "1", "0.250", "matches", "as", "activitynet"],
        ["left", "module.g", "differs", "by", "1.0e-03"],
    ]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["versions"]["tal_fast"]
    assert found["entries"][0] == {
        "kind": "replaced",
        "name": "module.f",
        "detail": "matches as activitynet",
        "calls": 1,
        "seconds": 0.25,
    }


@pytest.mark.parametrize(("rank", "shown"), [("RANK", False), ("LOCAL_RANK", False), (None, True)])
def test_other_ranks_say_nothing(monkeypatch, capsys, rank, shown):
    if rank is not None:
        monkeypatch.setenv(rank, "1")
    report = Report()
    report.add("left", "f")
    report.finish()
    assert bool(capsys.readouterr().err) is shown


def test_nothing_to_say(capsys):
    Report().finish()
    quiet = Report(quiet=True)
    quiet.add("left", "f")
    quiet.finish()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ["batched_nsm"]}, "did you mean 'batched_nms'"),
        ({"skip": ["libs.utils.nms.nothing"]}, "alone or behind its module"),
        ({"only": ["pandas"]}, "expected only to name one of"),
        ({"only": ["Align1D"], "skip": ["Align1D"]}, "'Align1D' in both"),
        ({"nms": "fast"}, "expected nms to be one of literal, fused, got 'fast'"),
        ({"device": "cuda"}, "expected device to be one of None, cpu, got 'cuda'"),
        ({"report": "/no/such/folder/report.json"}, "expected report to be in a folder"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        compat.install(**options)
    assert not compat.installed()
