# SPDX-License-Identifier: Apache-2.0
"""Ops against their twins: adversarial values, every layout, every instruction set, the emulator.

A case calls an op, its twin, and the op once more with other memory layouts, which must give the
same bits. Children with ``TAL_FAST_ISA`` call the same cases, and their bits must be the same, too.
A case of gradients is a call and its backward, against what torch derives from the twin. Ops of
attention add products in one step where a machine can, so of theirs all instruction sets must be
near the twin.

Cases are drawn and compared in groups (``op_values``), but every case is a call of its own. Where
instruction sets differ in a group, or a call ends in an error, all of its cases count as lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
from endurance.large_ops import beyond_int32, large_results
from endurance.op_compare import Differs, check_bits, compare, compare_results, digest
from endurance.op_draws import DIFFERENTIABLE, DRAWS
from endurance.op_gradients import gradients, gradients_of_twin, taken_at
from endurance.op_values import GROUP, Call, other_layout
from endurance.record import ROOT, Batch, Failure, Kind, Outcome, Part, one_by_one, why
from torch import Tensor

from tal_fast import info

_GOAL = 1_000_000
#: Compiled with fused multiply-add where the instruction set has it (no -ffp-contract=off in
#: CMakeLists.txt), so their last bits depend on it.
_FUSED = ("deform_attn", "deform_attn_fused", "local_attn")
#: Without a kernel for CUDA.
_CPU_ONLY = ("soft_nms_literal",)
#: Made by `make build`; without it there are no cases of the emulator.
_LIBRARY = ROOT / "tests" / "cuda_emulator" / "cuda_emulated.so"


class Results:
    """What a case checks: the results of an op."""

    def __init__(self, name: str) -> None:
        self.draw = DRAWS[name]
        self.fused = name in _FUSED

    def taken_at(self, call: Call) -> tuple[Tensor, ...]:
        """Returns the tensors that the op is called with."""
        return call.tensors

    def run(self, call: Call, tensors: Sequence[Tensor], seed: int) -> list[list[Tensor]]:
        """Returns what is checked of each case."""
        return call.run(tensors)

    def compare(self, call: Call, found: list[list[Tensor]], seed: int) -> None:
        """Checks it against the twin; raises ``Differs``."""
        compare(call, found)

    def agreed(self, call: Call, found: list[list[Tensor]], seed: int) -> str:
        """Returns what instruction sets must agree on: the bits, or whether the twin is near."""
        if not self.fused:
            return digest(found)
        try:
            self.compare(call, found, seed)
        except AssertionError:
            return "far"
        return "near"


class Gradients(Results):
    """What a case checks: the gradients of an op."""

    def taken_at(self, call: Call) -> tuple[Tensor, ...]:
        return taken_at(call)

    def run(self, call: Call, tensors: Sequence[Tensor], seed: int) -> list[list[Tensor]]:
        return gradients(call, tensors, seed)

    def compare(self, call: Call, found: list[list[Tensor]], seed: int) -> None:
        compare_results(found, gradients_of_twin(call, seed))


#: What the cases of a kind check, without and with the emulator.
CHECKS: dict[str, Results] = {
    **{name: Results(name) for name in DRAWS},
    **{f"gradients of {name}": Gradients(name) for name in DIFFERENTIABLE},
}


def groups(batch: Batch) -> range:
    """Returns the first case of every group that a batch has cases of."""
    return range(batch.first // GROUP * GROUP, batch.first + batch.count, GROUP)


def answers(batch: Batch) -> list[str]:
    """Returns what instruction sets must agree on, per group."""
    checks, found = CHECKS[batch.kind], []
    for first in groups(batch):
        try:
            call, seed = checks.draw(batch.random(first)), batch.seed_of(first)
            mine = checks.run(call, checks.taken_at(call), seed)
            found.append(checks.agreed(call, mine, seed))
        except Exception as error:
            found.append(type(error).__name__)
    return found


class Children:
    """A process per further instruction set, which answers for every group."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[str]] = {}

    def ask(self, batch: Batch) -> None:
        """Asks every instruction set but the best for answers; they work while this one does."""
        words = f"{batch.kind}\t{batch.seed}\t{batch.first}\t{batch.count}\n"
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
        """Returns the answers that were asked for."""
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


def _group(batch: Batch, first: int) -> str:
    """Runs the cases of a group, and returns what other instruction sets must agree on."""
    checks, rng, seed = CHECKS[batch.kind], batch.random(first), batch.seed_of(first)
    call = checks.draw(rng)
    tensors = checks.taken_at(call)
    before = [tensor.clone() for tensor in tensors]
    found = checks.run(call, tensors, seed)
    check_bits([before], [[*tensors]], "changed what it was called with")
    checks.compare(call, found, seed)
    layouts = [other_layout(rng, tensor) for tensor in tensors]
    if call.contiguous:
        layouts[0] = tensors[0]
    check_bits(found, checks.run(call, layouts, seed), "other bits for another layout")
    return "near" if checks.fused else digest(found)


def _counted(batch: Batch, lost: dict[int, Exception | str]) -> Outcome:
    """Counts the cases of a batch; all those of a group that was lost are."""
    outcome = Outcome(lost=0)
    for first, error in sorted(lost.items()):
        mine = sorted({*range(first, first + GROUP)} & {*batch.numbers})
        number = first + error.at if isinstance(error, Differs) else mine[0]
        outcome.failures.append(Failure(number, error if isinstance(error, str) else why(error)))
        outcome.lost += len(mine)
    outcome.done = batch.count - outcome.lost
    return outcome


def _run(children: Children, batch: Batch) -> Outcome:
    mine: dict[int, str] = {}
    lost: dict[int, Exception | str] = {}
    children.ask(batch)
    for first in groups(batch):
        try:
            mine[first] = _group(batch, first)
        except Exception as error:
            lost[first] = error
    for isa, theirs in children.answers().items():
        if len(theirs) != len(groups(batch)):
            lost[groups(batch)[0]] = f"{isa}: {len(theirs)} answers"
            continue
        for first, text in zip(groups(batch), theirs, strict=True):
            if first in mine and text != mine[first]:
                lost.setdefault(first, f"{isa} gives {text}, not {mine[first]}")
    return _counted(batch, lost)


def _emulated(_: Children, batch: Batch) -> Outcome:
    if str(_LIBRARY.parent) not in sys.path:
        sys.path.append(str(_LIBRARY.parent))
    import emulated

    checks = CHECKS[batch.kind.removeprefix("emulated ")]
    lost: dict[int, Exception | str] = {}
    for first in groups(batch):
        try:
            call, seed = checks.draw(batch.random(first)), batch.seed_of(first)
            with emulated.emulated():
                found = checks.run(call, checks.taken_at(call), seed)
            checks.compare(call, found, seed)
        except Exception as error:
            lost[first] = error
    return _counted(batch, lost)


def _kinds() -> Iterator[Kind]:
    for name in CHECKS:
        goal = _GOAL if name in DRAWS else _GOAL // 10
        yield Kind(name, "calls", goal, _run, batch=50 * GROUP)
    for name in CHECKS:
        goal = _GOAL // 10 if name in DRAWS else _GOAL // 100
        if _LIBRARY.exists() and name not in _CPU_ONLY:
            yield Kind(f"emulated {name}", "calls", goal, _emulated, batch=10 * GROUP)
    yield Kind("beyond 2^31 elements", "calls", 1000, one_by_one(beyond_int32), batch=20)
    yield Kind("results beyond 2^31 elements", "calls", 10, one_by_one(large_results))


PART = Part("ops", "Ops", list(_kinds()), prepared)


def _answer() -> None:
    for line in sys.stdin:
        kind, seed, first, count = line.rstrip("\n").split("\t")
        batch = Batch(kind, int(seed), int(first), int(count))
        print(*answers(batch), flush=True)


if __name__ == "__main__":
    random.seed(0)
    torch.set_num_threads(1)
    _answer()
