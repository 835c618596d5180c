# SPDX-License-Identifier: Apache-2.0
"""From a CSV of segments and a folder of features to mAP, in Python.

python examples/features_from_numpy.py data/raw   # or files of your own
python examples/own_data.py data/raw runs/own

The same with commands: docs/own-data.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tal_fast
from tal_fast.data.prepare import FeatureChoice, prepare_csv


def main(source: Path, out: Path, settings: dict[str, Any] | None = None) -> float:
    """Prepares, trains, detects and scores; returns average mAP, 0 to 1."""
    # A row of features sees 50 samples, the next begins 10 later, and there are 50 a second.
    # Where all you know is a number of rows per second: FeatureChoice.at_rate([...], 5).
    features = FeatureChoice([source / "features"], stride=10, frames=50, fps=50)
    # The table has no column `subset`, so a share of the videos is drawn for the test.
    report = prepare_csv(
        source / "segments.csv", features, out / "data", test_share=0.3, seed=0, overwrite=True
    )
    print("\n".join(report.lines()))

    data = tal_fast.open_dataset(out / "data")
    run = tal_fast.train(
        data,
        out / "run",
        model="tadtr-small",
        settings={"training.epochs": 40, "training.learning_rate": 5e-4, **(settings or {})},
        resume=False,
    )
    print(run)

    found = tal_fast.predict(run, data)  # the split `test`, unless told otherwise
    score = tal_fast.evaluate(data, found)
    print(score)  # the table: a row per class, a column per tIoU
    for tiou, value in score.map_at.items():
        print(f"mAP at tIoU {tiou}: {100 * value:.1f}")
    return score.average_map


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
