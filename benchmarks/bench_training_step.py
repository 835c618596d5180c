# SPDX-License-Identifier: Apache-2.0
"""A training step of TadTR against the official code's, phase by phase.

Same windows (16 x 128 rows of 300), same targets, same sizes. Ours without the actionness head, as
the official code runs on a CPU, and with it; in float32 and with bfloat16 matrix products. Before
anything is timed, our model takes the peer's weights and must give its outputs.

Run: ``TAL_FAST_PEERS=DIR python benchmarks/bench_training_step.py [--repetitions 20]`` with the
official TadTR in ``DIR/TadTR``. Without it only our own steps are timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from harness import turns
from peers import PeerMissingError
from peers.tadtr_training import OfficialTadTR
from torch import Tensor

from tal_fast.models import Targets, Whole, build_model
from tal_fast.models.segments import center_width_to_start_end
from tal_fast.profiling.kinds import op_rows, time_by_kind
from tal_fast.profiling.op_recorder import profiled_steps
from tal_fast.training.config import TrainingConfig
from tal_fast.training.device import autocast, resolve_amp
from tal_fast.training.step import parameter_groups

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "tadtr": {"d_model": 256, "encoder_layers": 4, "decoder_layers": 4, "feedforward": 1024},
    "tadtr-small": {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "feedforward": 512},
}
BATCH, ROWS, CHANNELS, CLASSES, INSTANCES = 16, 128, 300, 20, 5
PHASES = ("forward", "loss", "backward", "optimizer")
OFFICIAL = "official TadTR, float32"
WARM_UP = 3  # rounds

Step = Callable[[], dict[str, float]]


def targets() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(CLASSES, (INSTANCES,), generator=generator) for _ in range(BATCH)]
    segments = [torch.rand(INSTANCES, 2, generator=generator) * 0.3 + 0.2 for _ in range(BATCH)]
    return labels, segments


def our_targets() -> Targets:
    labels, segments = targets()
    edges = center_width_to_start_end(torch.cat(segments).double()) * ROWS
    return Targets(torch.cat(labels), edges, [len(item) for item in labels], ROWS)


def timed(phases: list[Callable[[], Any]]) -> dict[str, float]:
    marks = [time.perf_counter()]
    for phase in phases:
        phase()
        marks.append(time.perf_counter())
    return dict(zip(PHASES, (b - a for a, b in itertools.pairwise(marks)), strict=True))


def our_step(name: str, features: Tensor, mask: Tensor, actionness: bool, amp: str) -> Step:
    torch.manual_seed(0)
    model = build_model(name, in_channels=CHANNELS, num_classes=CLASSES, actionness=actionness)
    config = TrainingConfig()
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=2e-4, fused=True)
    wanted = our_targets()
    state: dict[str, Any] = {}

    def forward() -> None:
        with autocast(features.device, amp):
            state["output"] = model(features, mask)

    def loss() -> None:
        state["loss"] = model.loss(state["output"], wanted, Whole(wanted))["total"]

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: timed([forward, loss, lambda: state["loss"].backward(), update])


def peer_step(name: str, features: Tensor, mask: Tensor) -> Step:
    torch.manual_seed(0)
    peer = OfficialTadTR(CHANNELS, **MODELS[name])
    verify(name, peer, features, mask)
    channels_first = features.transpose(1, 2).contiguous()
    labels, segments = targets()
    state: dict[str, Any] = {}

    def forward() -> None:
        state["output"] = peer.forward(channels_first, mask)

    def loss() -> None:
        state["loss"] = peer.loss(state["output"], labels, segments)

    return lambda: timed([forward, loss, lambda: state["loss"].backward(), peer.update])


def verify(name: str, peer: OfficialTadTR, features: Tensor, mask: Tensor) -> None:
    """Our model with the peer's weights, moved away from their special start, gives its outputs."""
    model = build_model(name, in_channels=CHANNELS, num_classes=CLASSES, actionness=False).eval()
    before = {key: value.clone() for key, value in peer.model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for parameter in peer.model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.load_state_dict(peer.model.state_dict())
    peer.model.eval()
    with torch.no_grad():
        theirs = peer.forward(features.transpose(1, 2), mask)
        ours = model(features, mask)
        labels, segments = targets()
        their_loss = peer.loss(theirs, labels, segments)
        wanted = our_targets()
        our_loss = model.loss(ours, wanted, Whole(wanted))["total"]
    torch.testing.assert_close(ours.logits[-1], theirs["pred_logits"], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(ours.segments[-1], theirs["pred_segments"], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(our_loss, their_loss.squeeze(), atol=1e-3, rtol=1e-3)
    peer.model.load_state_dict(before)
    peer.model.train()


def precisions() -> tuple[str, ...]:
    """Returns what the processor multiplies natively, and says what is left out."""
    native = resolve_amp(torch.device("cpu"), "auto")
    if native == "float32":
        print("left out: bfloat16, which this processor does not multiply natively")
        return ("float32",)
    return "float32", native


def steps_of(name: str, features: Tensor, mask: Tensor) -> dict[str, Step]:
    """Returns a step of every implementation of a model; the official one first, if it is there."""
    steps: dict[str, Step] = {}
    try:
        steps[OFFICIAL] = peer_step(name, features, mask)
    except PeerMissingError as missing:
        print(missing)
    for actionness, amp in itertools.product((False, True), precisions()):
        key = f"tal_fast, {amp}, {'with' if actionness else 'without'} actionness"
        steps[key] = our_step(name, features, mask, actionness, amp)
    return steps


def run(name: str, repetitions: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Times the steps of a model in turn, prints them and returns their rows."""
    features = torch.randn(BATCH, ROWS, CHANNELS, generator=torch.Generator().manual_seed(0))
    steps = steps_of(name, features, torch.zeros(BATCH, ROWS, dtype=torch.bool))
    times: dict[str, list[dict[str, float]]] = {key: [] for key in steps}
    for repetition in turns(repetitions + WARM_UP, seconds, fewest=WARM_UP + 3):
        for key, step in steps.items():
            taken = step()
            if repetition >= WARM_UP:
                times[key].append(taken)
    rows: list[dict[str, Any]] = []
    for key, taken_all in times.items():
        totals = [sum(taken.values()) for taken in taken_all]
        quarters = statistics.quantiles(totals, n=4)
        row = {
            "model": name,
            "implementation": key,
            "threads": threads,
            "repetitions": len(totals),
            "median_s": statistics.median(totals),
            "quartiles_s": [quarters[0], quarters[2]],
            **{
                f"{phase}_s": statistics.median(taken[phase] for taken in taken_all)
                for phase in PHASES
            },
        }
        official = rows[0]["median_s"] if rows else row["median_s"]
        row["of_official"] = row["median_s"] / official if OFFICIAL in times else None
        rows.append(row)
        print(
            f"{name:12} {key:42} {row['median_s'] * 1e3:7.1f} ms  "
            + "  ".join(f"{phase} {row[f'{phase}_s'] * 1e3:6.1f}" for phase in PHASES)
            + (f"  {row['of_official']:.2f} of official" if row["of_official"] else ""),
            flush=True,
        )
    return rows


def profile(names: list[str], threads: int) -> None:
    """Prints where our step (bfloat16, with actionness) spends its time, by kind of work."""
    torch.set_num_threads(threads)
    features = torch.randn(BATCH, ROWS, CHANNELS, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(BATCH, ROWS, dtype=torch.bool)
    for name in names:
        step = our_step(name, features, mask, True, "bfloat16")
        for _ in range(3):
            step()
        shares = time_by_kind(op_rows(profiled_steps(step), {}))
        total = sum(shares.values())
        print(name)
        for kind, spent in shares.items():
            print(f"  {spent / total:6.1%}  {kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="most time for a model")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--profile", action="store_true", help="only tell where our step goes")
    arguments = parser.parse_args()
    print(machine.header())
    if arguments.profile:
        profile(arguments.models, arguments.threads)
        return
    torch.set_num_threads(arguments.threads)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine.slug()}-training-step.json"
    content: dict[str, Any] = {
        "machine": machine.describe(),
        "command": f"python benchmarks/bench_training_step.py --repetitions "
        f"{arguments.repetitions} --threads {arguments.threads} --seconds {arguments.seconds:g}",
        "rows": [],
    }
    for name in arguments.models:
        content["rows"] += run(name, arguments.repetitions, arguments.threads, arguments.seconds)
        path.write_text(json.dumps(content, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
