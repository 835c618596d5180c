# SPDX-License-Identifier: Apache-2.0
"""What small samples of THUMOS14 cover: videos, stratified videos and windows side by side.

::

    python benchmarks/sampling_coverage.py thumos14.json

``thumos14.json`` holds the annotations in the form of ActionFormer. Windows are those of TadTR: 128
rows of 8 frames at each video's own rate, overlapping by 75 %, with at least 75 % of an instance
inside. No features are needed, and nothing is trained.
"""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from tal_fast.data.annotations import load_annotations
from tal_fast.data.grid import Grid
from tal_fast.data.windows import WindowSet
from tal_fast.study.sampling import draw_sample

STRIDE = 8
SHARES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
SAMPLINGS = ("video", "stratified", "window")


def stand_in(annotations: Any) -> Any:
    """Returns what looks like a data set of these videos, with grids and without features."""
    return SimpleNamespace(
        name="thumos14",
        annotations=annotations,
        features={
            name: SimpleNamespace(rows=math.floor(video.duration * video.fps / STRIDE))
            for name, video in annotations.videos.items()
        },
        grid=lambda name: Grid(STRIDE, STRIDE, annotations.videos[name].fps),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    found = load_annotations(arguments.annotations, out_of_range="keep").subset("Validation")
    names = sorted(found.videos)
    windows = WindowSet(stand_in(found), names)
    print(
        f"{len(names)} videos, {found.num_instances} instances, {len(windows)} training windows, "
        f"{arguments.draws} draws each\n"
    )
    print("| p | sampling | videos | instances | classes | all of them |")
    print("|---|---|---|---|---|---|")
    for share in SHARES:
        for sampling in SAMPLINGS:
            samples = [
                draw_sample(
                    sampling,
                    names,
                    found.videos,
                    found.classes,
                    fraction=share,
                    repetition=repetition,
                    seed=0,
                    clips=windows,
                )
                for repetition in range(arguments.draws)
            ]
            videos = np.mean([len(sample.videos) for sample in samples])
            instances = np.array([sample.instances for sample in samples])
            classes = np.array([len(sample.classes) for sample in samples])
            print(
                f"| {share:.0%} | {sampling} | {videos:.1f} "
                f"| {instances.mean():.0f} ± {instances.std():.0f} "
                f"| {classes.mean():.1f} ± {classes.std():.1f} "
                f"| {np.mean(classes == len(found.classes)):.0%} |"
            )


if __name__ == "__main__":
    main()
