# SPDX-License-Identifier: Apache-2.0
"""Ops against their twins: adversarial values, every layout, every instruction set, the emulator.

A case calls an op, its twin, and the op once more with other memory layouts, which must give the
same bits. Children with ``TAL_FAST_ISA`` call the same cases, and their bits must be the same, too.
But ops of attention add products in one step where a machine can; theirs must be near the twin.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from endurance.large_ops import beyond_int32, large_results
from endurance.op_draws import DRAWS
from endurance.op_values import BOUNDS, Call, octets, other_layout, results
from endurance.record import ROOT, Batch, Failure, Kind, Outcome, Part, one_by_one, why
from endurance.subject import expect

from tal_fast import info

_GOAL = 1_000_000
#: Compiled with fused multiply-add where the instruction set has it (no -ffp-contract=off in
#: CMakeLists.txt), so their last bits depend on it.
_FUSED = ("deform_attn", "deform_attn_fused", "local_attn")
#: Without a kernel for CUDA.
_CPU_ONLY = ("soft_nms_literal",)
#: Made by `make build`; without it there are no cases of the emulator.
_LIBRARY = ROOT / "tests" / "cuda_emulator" / "cuda_emulated.so"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are of one type and shape and hold the same bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return octets(one).equal(octets(other))


def compare(call: Call, found: list[torch.Tensor]) -> None:
    """Checks what an op gave against its twin.

    Raises:
        Fault: they differ by more than the type's rounding.
    """
    if call.twin is None:
        return
    found = found if call.told is None else call.told(found)
    expected = results(call.twin(*call.tensors))
    expect(len(found) >= len(expected), "other numbers of results")
    for mine, theirs in zip(found, expected, strict=False):
        expect(mine.shape == theirs.shape, "shape", mine.shape, "for", theirs.shape)
        if not call.scale:
            equal = (mine == theirs) | ((mine != mine) & (theirs != theirs))
            expect(bool(equal.all()), "other results:", mine.tolist(), "for", theirs.tolist())
            continue
        bound = BOUNDS[mine.dtype] * call.scale
        difference = (mine.double() - theirs.double()).abs().nan_to_num(0.0 if call.scale else 1.0)
        expect(torch.equal(mine.isnan(), theirs.isnan()), "NaN where the twin has none")
        largest = float(difference.max()) if difference.numel() else 0.0
        expect(largest <= bound, f"differs by {largest:g}, more than {bound:g}")


def digest(found: list[torch.Tensor]) -> str:
    """Returns a digest of the bits of results."""
    text = hashlib.sha256()
    for tensor in found:
        text.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        text.update(octets(tensor).numpy())
    return text.hexdigest()


def _agreed(name: str, call: Call, found: list[torch.Tensor]) -> str:
    """Returns what all instruction sets must agree on: the bits, or whether the twin is near."""
    if name not in _FUSED:
        return digest(found)
    try:
        compare(call, found)
    except AssertionError:
        return "far"
    return "near"


def digests(name: str, batch: Batch) -> list[str]:
    """Returns an answer per case, of one op."""
    draw = DRAWS[name]
    found = []
    for number in batch.numbers:
        try:
            call = draw(batch.random(number))
            found.append(_agreed(name, call, results(call.op(*call.tensors))))
        except Exception as error:
            found.append(type(error).__name__)
    return found


class Children:
    """A process per further instruction set, which answers with digests."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}

    def ask(self, name: str, batch: Batch) -> None:
        """Asks every instruction set but the best for digests; they work while this one does."""
        words = f"{name}\t{batch.kind}\t{batch.seed}\t{batch.first}\t{batch.count}\n"
        for isa in info.instruction_sets()[:-1]:
            if isa not in self._running:
                self._running[isa] = subprocess.Popen(
                    [sys.executable, "-m", "endurance.ops"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT / "tests",
                    env={**os.environ, "TAL_FAST_ISA": isa,
                         "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
                )  # fmt: skip
            child = self._running[isa]
            assert child.stdin is not None
            child.stdin.write(words)
            child.stdin.flush()

    def answers(self) -> dict[str, list[str]]:
        """Returns the digests that were asked for."""
        found = {}
        for isa, child in self._running.items():
            assert child.stdout is not None
            found[isa] = child.stdout.readline().split()
        return found

    def close(self) -> None:
        for child in self._running.values():
            child.kill()
            child.communicate()


@contextlib.contextmanager
def prepared() -> Iterator[Children]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the children; more only wait for each other
    try:
        with contextlib.closing(Children()) as children:
            yield children
    finally:
        torch.set_num_threads(threads)


def _case(name: str, batch: Batch, number: int) -> str:
    """Runs a case, and returns the digest of its results."""
    rng = batch.random(number)
    call = DRAWS[name](rng)
    before = [tensor.clone() for tensor in call.tensors]
    found = results(call.op(*call.tensors))
    expect(all(map(same_bits, before, call.tensors)), "changed what it was called with")
    compare(call, found)
    layouts = [other_layout(rng, tensor) for tensor in call.tensors]
    if call.contiguous:
        layouts[0] = call.tensors[0]
    again = results(call.op(*layouts))
    expect(all(map(same_bits, found, again)), "other bits for another layout")
    return _agreed(name, call, found)


def _run(name: str) -> Any:
    def run(children: Children, batch: Batch) -> Outcome:
        outcome, mine = Outcome(), {}
        lost: dict[int, str] = {}
        children.ask(name, batch)
        for number in batch.numbers:
            try:
                mine[number] = _case(name, batch, number)
            except Exception as error:
                lost[number] = why(error)
        for isa, theirs in children.answers().items():
            if len(theirs) != batch.count:
                lost[batch.first] = f"{isa}: {len(theirs)} answers for {batch.count} cases"
                continue
            for number, text in zip(batch.numbers, theirs, strict=True):
                if number in mine and text != mine[number]:
                    lost.setdefault(number, f"{isa} gives {text}, not {mine[number]}")
        outcome.failures = [Failure(number, words) for number, words in sorted(lost.items())]
        outcome.lost, outcome.done = len(lost), batch.count - len(lost)
        return outcome

    return run


def _emulated(name: str) -> Any:
    def run(_: Children, batch: Batch) -> Outcome:
        sys.path.append(str(_LIBRARY.parent))
        import emulated

        outcome = Outcome()
        for number in batch.numbers:
            try:
                call = DRAWS[name](batch.random(number))
                with emulated.emulated():
                    found = results(call.op(*call.tensors))
                compare(call, found)
                outcome.done += 1
            except Exception as error:
                outcome.failures.append(Failure(number, why(error)))
        outcome.lost = len(outcome.failures)
        return outcome

    return run


PART = Part(
    "ops",
    "Ops",
    [
        *(Kind(name, "calls", _GOAL, _run(name), batch=200) for name in DRAWS),
        *(
            Kind(f"emulated {name}", "calls", _GOAL // 10, _emulated(name), batch=50)
            for name in DRAWS
            if _LIBRARY.exists() and name not in _CPU_ONLY
        ),
        Kind("beyond 2^31 elements", "calls", 1000, one_by_one(beyond_int32), batch=20),
        Kind("results beyond 2^31 elements", "calls", 10, one_by_one(large_results)),
    ],
    prepared,
)


def _answer() -> None:
    for line in sys.stdin:
        name, kind, seed, first, count = line.rstrip("\n").split("\t")
        batch = Batch(kind, int(seed), int(first), int(count))
        print(*digests(name, batch), flush=True)


if __name__ == "__main__":
    random.seed(0)
    torch.set_num_threads(1)
    _answer()
