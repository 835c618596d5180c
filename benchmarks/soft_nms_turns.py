# SPDX-License-Identifier: Apache-2.0
"""How often the loops of soft-NMS on a GPU turn, and what that costs by the instructions of each.

``python benchmarks/soft_nms_turns.py`` follows the kernel (csrc/cuda/nms_soft.cuh) over some of the
problems of 213 videos with 2000 detections in 20 classes: turns of its marked loops for a warp,
times the instructions that tests/cuda/kernel_limits.json has for them. That is the issue floor of
the kernel, slow paths and all; no GPU is needed, and none is measured.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

LIMITS = Path(__file__).resolve().parents[1] / "tests/cuda/kernel_limits.json"
KERNEL = "NmsSoft<2, float, true>"
WARP = 32
#: Multiprocessors, their schedulers, and the clock of an H200.
SCHEDULERS, CLOCK = 132 * 4, 1.98e9
#: Instructions of a turn around the loops in it, on the path of a pick, traced by hand.
TURN = 90


def turns(count: int, generator: np.random.Generator, sigma: float, least: float) -> Counter[str]:
    """Turns of the loops for one problem of ``count`` random segments, solved by a warp."""
    scores = np.sort(generator.random(count))[::-1]
    start = generator.random(count) * 200.0
    end = start + 0.5 + 5.0 * generator.random(count)
    length = end - start
    current = np.full(count, -1.0)
    found: Counter[str] = Counter()
    frontier, picks = 0, list[int]()

    def lowered(places: np.ndarray, pick: int) -> np.ndarray:
        """The places that the pick overlaps, after their decay."""
        inside = np.minimum(end[places], end[pick]) - np.maximum(start[places], start[pick])
        hit = places[(inside > 0) & (current[places] >= 0)]
        inside = np.minimum(end[hit], end[pick]) - np.maximum(start[hit], start[pick])
        iou = inside / (length[hit] + length[pick] - inside)
        after = current[hit] * np.exp(-iou * iou / sigma)
        current[hit] = np.where(after >= least, after, -1.0)
        return hit

    while True:
        found["turn"] += 1
        best = int(current.argmax())
        if frontier < count and scores[frontier] >= max(least, current[best]):
            fresh = np.arange(frontier, min(count, frontier + WARP))
            current[fresh] = np.where(scores[fresh] >= least, scores[fresh], -1.0)
            found["earlier picks"] += -(-len(picks) // 4)  # four at once
            for base in range(0, len(picks), WARP):
                decays: Counter[int] = Counter()
                for pick in picks[base : base + WARP]:
                    decays.update(lowered(fresh, pick).tolist())
                found["late decay"] += max(decays.values(), default=0)
            frontier += WARP
            continue
        if current[best] < 0:
            return found
        picks.append(best)
        current[best] = -1.0
        joined = np.arange(min(frontier, count))
        found["candidate"] += -(-len(joined) // WARP)
        found["decay"] += max(Counter((lowered(joined, best) % WARP).tolist()).values(), default=0)


def main() -> None:
    """Prints turns and instructions per problem, and the issue floor of all problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200, help="how many of the 4260 to follow")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    total: Counter[str] = Counter()
    for size in generator.poisson(100, arguments.problems):
        total.update(turns(int(size), generator, 0.5, 0.001))
    loops = json.loads(LIMITS.read_text())["kernels"][KERNEL]["loops"]
    instructions = 0.0
    for name, count in total.items():
        each = TURN if name == "turn" else loops[name][0]
        mean = count / arguments.problems
        instructions += each * mean
        print(f"{name:>13}: {mean:6.1f} turns per problem x {each:.0f} instructions")
    floor = 4260 * instructions / SCHEDULERS / CLOCK * 1e6
    print(
        f"{instructions:.0f} instructions per problem; issue floor of 4260 problems {floor:.0f} us"
    )


if __name__ == "__main__":
    main()
