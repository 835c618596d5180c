# SPDX-License-Identifier: Apache-2.0
r"""Scores the results file of any other code, by the rules of several evaluators.

python examples/evaluate_results.py docs/dialects/annotations.json \
  docs/dialects/predictions.json test

Annotations are JSON of ActivityNet's form; results are JSON or JSON lines, plain or gzipped, with
labels as names or numbers.
"""

from __future__ import annotations

import sys
import warnings

import tal_fast
from tal_fast import evaluation

DIALECTS = ("tal_fast", "activitynet", "actionformer", "opentad", "thumos")


def main(annotations: str, results: str, subset: str | None = None) -> dict[str, float]:
    """Prints tables; returns average mAP, 0 to 1, by dialect."""
    averages = {}
    for dialect in DIALECTS:
        with warnings.catch_warnings():  # what the rules leave out is printed below instead
            warnings.simplefilter("ignore", evaluation.EvaluationWarning)
            score = tal_fast.evaluate(annotations, results, subset=subset, dialect=dialect)
        each = "  ".join(f"{100 * value:5.2f}" for value in score.map_at.values())
        print(f"{dialect:13} {each}   average {100 * score.average_map:.2f}")
        for note in score.notes:
            print(f"{'':13} {note}")
        averages[dialect] = score.average_map

    score = tal_fast.evaluate(annotations, results, subset=subset)
    of_class = dict(zip(score.classes, score.ap.mean(1), strict=True))  # NaN without an instance
    present = [name for name in score.classes if name not in score.absent_classes]
    worst = sorted(present, key=of_class.__getitem__)[:3]
    print("lowest AP:", ", ".join(f"{name} {100 * of_class[name]:.1f}" for name in worst))
    print(evaluation.analyse_errors(score).table())
    interval = evaluation.bootstrap(score, replicates=200)
    print(f"average mAP {interval.average_map}, {interval.confidence:.0%} interval over videos")
    return averages


if __name__ == "__main__":
    main(*sys.argv[1:])
