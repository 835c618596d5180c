# SPDX-License-Identifier: Apache-2.0
"""Ceilings of a machine: all kinds measured, kept for a day, measured again for another machine."""

from __future__ import annotations

import json

import pytest
import torch

from tal_fast import cli
from tal_fast.profiling import ceilings
from tal_fast.profiling.ceilings import Ceiling, machine_ceilings, measure_ceilings


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(ceilings, "_SIDE", 32)
    monkeypatch.setattr(ceilings, "_FILE", 1 << 16)
    monkeypatch.setattr(ceilings, "_last_cache", lambda: 1 << 16)
    monkeypatch.setattr(ceilings, "_TINY", 2)
    monkeypatch.setattr(ceilings, "usable_cores", lambda: 2)
    monkeypatch.setattr(ceilings, "_dtypes", lambda: [torch.float32, torch.float64])


def test_every_kind_is_measured(small):
    before = torch.get_num_threads()
    found = measure_ceilings(seconds=0.0)
    assert torch.get_num_threads() == before
    names = [(one.name, one.threads) for one in found]
    assert len(set(names)) == len(names) == 2 * 8 + 6 + 1
    assert {one.unit for one in found} == {"GFLOP/s", "GB/s", "us"}
    for one in found:
        assert one.best > 0
        if one.unit == "us":  # less is better
            assert one.best <= one.median
        else:
            assert one.best >= one.median


@pytest.fixture
def counted(monkeypatch):
    """How often the machine was measured."""
    calls = []

    def measure():
        calls.append(True)
        return [Ceiling("product", 1, 2.0, 1.0, "GFLOP/s")]

    monkeypatch.setattr(ceilings, "measure_ceilings", measure)
    return calls


def test_kept_for_a_day(counted, tmp_path):
    file = tmp_path / "deep" / "ceilings.json"
    first = machine_ceilings(file)
    assert machine_ceilings(file) == first
    assert len(counted) == 1
    machine_ceilings(file, fresh=True)
    assert len(counted) == 2
    content = json.loads(file.read_text())
    for changes in (
        {"time": content["time"] - 90_000},
        {"time": content["time"] + 90_000},
        {"format": 0},
        {"environment": {**content["environment"], "cpu": "another"}},
    ):
        file.write_text(json.dumps({**content, **changes}))
        before = len(counted)
        machine_ceilings(file)
        assert len(counted) == before + 1
    for broken in ("", "[]", "{}"):
        file.write_text(broken)
        assert machine_ceilings(file)["ceilings"][0]["best"] == 2.0


def test_command(counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "machine.json"
    assert cli.main(["profile", "machine", "--json", str(out)]) == 0
    assert "product" in capsys.readouterr().out
    assert (tmp_path / "tal_fast" / "ceilings.json").is_file()
    assert json.loads(out.read_text())["ceilings"][0]["unit"] == "GFLOP/s"
    assert cli.main(["profile", "machine"]) == 0
    assert len(counted) == 1
    assert cli.main(["profile", "machine", "--fresh"]) == 0
    assert len(counted) == 2
