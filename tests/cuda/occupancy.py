# SPDX-License-Identifier: Apache-2.0
"""How many blocks of a kernel a multiprocessor takes at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MULTIPROCESSORS", "Multiprocessor"]

_WARP = 32
_REGISTER_UNIT = 256  # registers are given to warps in units of so many


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share."""

    shared_bytes: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    reserved_bytes: int = 1024  # of shared memory, per block, for the system

    def by_registers(self, threads: int, registers: int) -> int:
        """Blocks of so many threads that have registers, each thread ``registers``."""
        per_warp = -(-registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        return self.registers // per_warp // -(-threads // _WARP)

    def by_shared(self, shared_bytes: int) -> int:
        """Blocks that have shared memory, each ``shared_bytes``."""
        return self.shared_bytes // (shared_bytes + self.reserved_bytes)

    def at_once(self, threads: int, registers: int | None, shared_bytes: int) -> int:
        """Blocks at once, by all that they share; registers that are not known are enough."""
        by_threads = min(self.blocks, self.warps // -(-threads // _WARP))
        found = min(by_threads, self.by_shared(shared_bytes))
        return found if registers is None else min(found, self.by_registers(threads, registers))


#: CUDA C++ Programming Guide, technical specifications of compute capability 8.0 and 9.0.
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(shared_bytes=164 * 1024),
    "sm_90": Multiprocessor(shared_bytes=228 * 1024),
}
