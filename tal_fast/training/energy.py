# SPDX-License-Identifier: Apache-2.0
"""Energy of the processors while something runs, from the counters that Linux shows (RAPL).

Often only root may read them, and a virtual machine has none: then the energy is not known.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from tal_fast.errors import TalFastError
from tal_fast.threads import start_thread

__all__ = ["EnergyMeter"]

_COUNTERS = Path("/sys/class/powercap")
# A counter starts again at 0 when it is full, at full load after minutes to hours.
_SECONDS_BETWEEN_READINGS = 20.0


class EnergyMeter:
    """Adds up the energy of all processor packages of this machine; a context manager.

    Args:
        counters: directory of the counters.

    Attributes:
        joules: what was used so far, of everything that runs on the machine; None where no counter
            can be read.
    """

    def __init__(self, counters: Path = _COUNTERS) -> None:
        self.joules: float | None = None
        self._last: dict[Path, int] = {}
        self._full: dict[Path, int] = {}
        try:
            zones = sorted(counters.glob("intel-rapl:*"))
            for zone in zones:
                # Cores and memory are parts of a package, and a platform is all of it again.
                if (zone / "name").read_text().startswith("package"):
                    self._last[zone] = _read(zone / "energy_uj")
                    self._full[zone] = _read(zone / "max_energy_range_uj")
        except (OSError, ValueError):
            self._last.clear()
        if self._last:
            self.joules = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def update(self) -> None:
        """Takes a reading."""
        used = 0
        try:
            for zone, before in self._last.items():
                now = _read(zone / "energy_uj")
                used += now - before if now >= before else now + self._full[zone] - before
                self._last[zone] = now
        except (OSError, ValueError):
            self.joules = None
        if self.joules is not None:
            self.joules += used / 1e6

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READINGS):
            self.update()

    def __enter__(self) -> EnergyMeter:
        if self.joules is not None:
            try:
                start_thread(self._thread, "energy")
            except TalFastError:  # the counters may start again from zero unseen
                self.joules = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.joules is not None:
            self.update()


def _read(path: Path) -> int:
    return int(path.read_text())
