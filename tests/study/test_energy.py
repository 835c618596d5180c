# SPDX-License-Identifier: Apache-2.0
"""The energy counters: packages only, full counters, and none that can be read."""

from __future__ import annotations

import pytest

from tal_fast.curves.tables import energy
from tal_fast.training.energy import EnergyMeter


def zone(root, name, kind, energy, full=1_000_000_000):
    path = root / name
    path.mkdir()
    (path / "name").write_text(f"{kind}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{full}\n")
    return path


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = zone(tmp_path, "intel-rapl:2", "psys", 0)
    with EnergyMeter(tmp_path) as meter:
        (first / "energy_uj").write_text("7500000")
        (second / "energy_uj").write_text("1000000")
        for path in (core, platform):
            (path / "energy_uj").write_text("900000000")
    assert meter.joules == pytest.approx(2.5 + 1.0)


def test_a_full_counter_starts_again(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    meter = EnergyMeter(tmp_path)
    (path / "energy_uj").write_text("2000000")
    meter.update()
    (path / "energy_uj").write_text("3000000")
    meter.update()
    assert meter.joules == pytest.approx(4.0)


@pytest.mark.parametrize("what", ["nothing", "no directory", "no number", "no name"])
def test_not_known(tmp_path, what):
    if what == "no number":
        (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").write_text("")
    elif what == "no name":
        (zone(tmp_path, "intel-rapl:0", "package-0", 0) / "name").unlink()
    with EnergyMeter(tmp_path / "none" if what == "no directory" else tmp_path) as meter:
        pass
    assert meter.joules is None


def test_a_counter_that_goes_away(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with EnergyMeter(tmp_path) as meter:
        (path / "energy_uj").unlink()
    assert meter.joules is None


@pytest.mark.parametrize(
    ("joules", "text"), [(740.4, "740 J"), (756_000, "0.21 kWh"), (8.1e6, "2.25 kWh")]
)
def test_text(joules, text):
    assert energy(joules) == text
