# SPDX-License-Identifier: Apache-2.0
"""What a training gains without a suspect: the same steps without it, a few of each, in turn.

Times of phases and ops say where time goes; where work overlaps, or waits for a core that other
work has, that is not what would be gained. So every suspect is taken away, and the clock decides.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tal_fast.data.dataset import TALDataset
from tal_fast.errors import counted
from tal_fast.profiling.figures import figure
from tal_fast.profiling.rig import Rig, Took, Variant, in_turn, short_batch
from tal_fast.training.config import ExperimentConfig, config_to_dict
from tal_fast.training.device import resolve_amp
from tal_fast.training.environment import usable_cores

__all__ = ["AS_IT_IS", "tried"]

AS_IT_IS, CACHED, FLOOR = "as it is", "cached", "floor"
_FLOOR_ROWS = 8
_FEWER = "fewer clips"
_TURNS = 2
_START = 8.0  # seconds that a process of its own takes at least


def tried(
    rig: Rig,
    data: TALDataset,
    videos: list[str],
    *,
    seconds: float,
    step_seconds: float,
) -> dict[str, Any]:
    """Runs a training without each of its suspects.

    Args:
        rig: the training.
        data: the data set, for a process of its own.
        videos: names of the training videos.
        seconds: that all may take together; what does not fit is left out, and told.
        step_seconds: what a step takes.

    Returns:
        ``runs``: what was tried by name, each with what it is and either its times and the gain
        over the training as it is, or the reason why it was not run; and the fit of time over
        clips, ``fixed`` and ``marginal``.
    """
    variants, what = _variants(rig)
    left_out = _left_out(rig)
    turns, fitting = _that_fit(variants, seconds, step_seconds)
    left_out |= {name: "there was no time" for name in variants if name not in fitting}
    began = time.perf_counter()
    took, failed = in_turn(fitting, turns, seconds)
    if "passive" not in left_out:
        left = seconds - (time.perf_counter() - began)
        found = _passive(rig.config, data, videos, left)
        if isinstance(found, Took):
            took["passive"] = found
        else:
            left_out["passive"] = found
    reasons = {**left_out, **failed}
    base = took.get(AS_IT_IS)
    runs = {
        name: _entry(description, took.get(name), base, reasons.get(name, "it was not run"))
        for name, description in what.items()
    }
    fixed, marginal = _fit(took, rig.config.training.batch_size)
    why = "fewer than three sizes of batches were timed"
    return {
        "runs": runs,
        "fixed": figure(fixed, "ms per step", "clock", why),
        "marginal": figure(marginal, "ms per clip", "clock", why),
    }


def _variants(rig: Rig) -> tuple[dict[str, Variant], dict[str, str]]:
    """Returns what to run, the most telling first, and what each is."""
    detector, batch = rig.config.detector, rig.cached[0]
    rows = min(_FLOOR_ROWS, batch.padded)
    padded = rig.model.rows_needed(detector, rows)
    short = short_batch(batch, rows, padded)
    # The loader has read some batches ahead: they are not what is to be timed.
    variants = {
        AS_IT_IS: Variant(rig.as_it_is, warm_up=3, timed=2),
        CACHED: Variant(rig.from_memory),
        FLOOR: Variant(partial(rig.train, short)),
    }
    what = {
        AS_IT_IS: "the training",
        CACHED: "batches that are in memory",
        FLOOR: f"1 clip of {counted(rows, 'row')}, {padded} with padding",
    }
    clips = len(batch)
    for part in dict.fromkeys((clips // 4, clips // 2)):
        if 0 < part < clips:
            variants[f"batch {part}"] = Variant(partial(rig.from_memory, part))
            what[f"batch {part}"] = f"{_FEWER}: {part} of {clips}, in memory"
    other = _other_precision(rig)
    if other is not None:
        variants[f"amp {other}"] = Variant(partial(rig.from_memory, None, other))
        what[f"amp {other}"] = f"training.amp={other}, batches in memory"
    for threads in _thread_counts():
        variants[f"threads {threads}"] = Variant(rig.from_memory, threads)
        what[f"threads {threads}"] = f"{threads} torch threads, batches in memory"
    what["passive"] = "OMP_WAIT_POLICY=passive in a process of its own, batches in memory"
    return variants, what


def _thread_counts() -> list[int]:
    cores, now = usable_cores(), torch.get_num_threads()
    powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    return [threads for threads in (*powers, cores) if threads != now]


def _other_precision(rig: Rig) -> str | None:
    """Returns the precision to try; None where the device does not multiply another natively."""
    now = resolve_amp(rig.device, rig.config.training.amp)
    if now != "float32":
        return "float32"
    native = resolve_amp(rig.device, "auto")
    return native if native != "float32" else None


def _left_out(rig: Rig) -> dict[str, str]:
    if torch.get_num_threads() == 1:
        return {"passive": "one thread waits for no other"}
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return {"passive": "threads wait passively already"}
    return {}


def _that_fit(
    variants: Mapping[str, Variant], seconds: float, step_seconds: float
) -> tuple[int, dict[str, Variant]]:
    """Returns how many turns there is time for, and whose."""

    def cost(chosen: Mapping[str, Variant]) -> float:
        return step_seconds * sum(v.warm_up + v.timed for v in chosen.values())

    chosen = dict(variants)
    if cost(chosen) > seconds:  # one step of each says more than many of some
        chosen = {
            name: replace(variant, warm_up=min(variant.warm_up, 1), timed=1)
            for name, variant in variants.items()
        }
    while len(chosen) > 1 and cost(chosen) > seconds:
        chosen.popitem()
    turns = int(seconds // max(cost(chosen), 1e-9))
    return max(1, min(_TURNS, turns)), chosen


def _passive(
    config: ExperimentConfig, data: TALDataset, videos: list[str], seconds: float
) -> Took | str:
    """Runs cached batches in a process whose threads wait passively; else says why not."""
    if seconds < _START:
        return "there was no time"
    given = {
        "config": config_to_dict(config),
        "data": str(Path(data.path).resolve()),
        "videos": videos,
        "threads": torch.get_num_threads(),
    }
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    environment.pop("GOMP_SPINCOUNT", None)  # it would win
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tal_fast.profiling.apart"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"it failed: {lines[-1] if lines else f'exit {done.returncode}'}"
    told = json.loads(done.stdout.splitlines()[-1])
    return Took(told["wall"], told["cpu"])


def _entry(name: str, took: Took | None, base: Took | None, reason: str) -> dict[str, Any]:
    if took is None or not took.wall:
        why = reason
        return {"what": name, **{key: figure(None, unit, "clock", why) for key, unit in _UNITS}}
    wall, cpu = statistics.median(took.wall), statistics.median(took.cpu)
    # Fewer clips are another amount of work.
    same = base is not None and not name.startswith(_FEWER)
    gain = statistics.median(base.wall) / wall if base is not None and same else None
    values = {"wall": 1e3 * wall, "cpu": 1e3 * cpu, "gain": gain}
    return {
        "what": name,
        "steps": len(took.wall),
        **{key: figure(values[key], unit, "clock", "nothing to compare with")
           for key, unit in _UNITS},
    }  # fmt: skip


_UNITS = (("wall", "ms"), ("cpu", "ms"), ("gain", "times as fast"))


def _fit(took: Mapping[str, Took], clips: int) -> tuple[float | None, float | None]:
    """Returns the milliseconds of a step that it takes anyway, and those of each clip."""
    sizes = {clips: took[CACHED]} if CACHED in took else {}
    for name, variant in took.items():
        if name.startswith("batch "):
            sizes[int(name.split()[1])] = variant
    if len(sizes) < 3:
        return None, None
    times = [1e3 * statistics.median(variant.wall) for variant in sizes.values()]
    marginal, fixed = np.polyfit(list(sizes), times, 1)
    return float(fixed), float(marginal)
