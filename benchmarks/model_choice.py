# SPDX-License-Identifier: Apache-2.0
"""Which model for how many videos and how many seconds, and how few trainings tell so.

From studies and the time of a step.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_studies import MODELS, Mean, Study, mean_of, table

from tal_fast.curves.curve_files import curve_named, read_curves
from tal_fast.curves.ranking import rank_models

__all__ = ["Choice", "best_within", "choices", "early", "time_steps", "which"]

SECONDS = (5, 10, 20, 40, 80, 160)
DRAWS = (1, 2, 3, 5)


@dataclass(frozen=True)
class Choice:
    """A model trained for a time on some videos.

    Attributes:
        study: of the model.
        budget: what ended its training.
        seconds: that it takes.
        draws: average mAP in points by repetition.
    """

    study: Study
    budget: str
    seconds: float
    draws: dict[int, float]


def choices(studies: Sequence[Study], step_ms: Mapping[str, float], p: float) -> list[Choice]:
    """Returns what can be trained on a share of the data, tested with the last weights."""
    found = []
    for study in studies:
        for budget in ("epochs", "steps"):
            draws = study.draws(budget, "off", p)
            if draws and study.model in step_ms:
                steps = statistics.mean(study.steps[budget, "off", p, r] for r in draws)
                found.append(Choice(study, budget, steps * step_ms[study.model] / 1e3, draws))
    return found


def best_within(
    options: Sequence[Choice], seconds: float
) -> tuple[Choice, float, Mean | None] | None:
    """Returns the best of what can be trained in a time, and its margin over the next model.

    Args:
        options: of one share.
        seconds: limit of a training.

    Returns:
        The choice with the highest mean over all its own draws, that mean, and its paired margin
        over the best choice of another model, over the draws that both have; None in place of the
        margin where there is no other or no draw in common; None where nothing is so fast.
    """
    fast = [one for one in options if one.seconds <= seconds]
    if not fast:
        return None

    # Of all draws of each: a study with few would else take those of all others away.
    def points(one: Choice) -> float:
        return statistics.mean(one.draws.values())

    fast.sort(key=points, reverse=True)
    best = fast[0]
    other = next((one for one in fast if one.study.model != best.study.model), None)
    common = [] if other is None else sorted(best.draws.keys() & other.draws.keys())
    if other is None or not common:
        return best, points(best), None
    return best, points(best), mean_of([best.draws[r] - other.draws[r] for r in common])


def which(
    studies: Sequence[Study], step_ms: Mapping[str, float], short: Sequence[Study] = ()
) -> str:
    """Returns the best model by training videos and seconds; in brackets where noise may decide.

    Args:
        studies: of long trainings.
        step_ms: milliseconds of a step, by model. Times in which nothing can be trained, and those
            that add nothing to shorter ones, have no row.
        short: studies of trainings planned for a short time. Where there are some, the table has
            their shares alone: elsewhere, there is nothing to choose for a short time.
    """
    shares = sorted({p for study in short or studies for p in study.shares("steps")})
    studies = [*studies, *short]
    options = {p: choices(studies, step_ms, p) for p in shares}
    videos = {
        p: round(
            statistics.mean(v for study in studies for k, v in study.videos.items() if k[2] == p)
        )
        for p in shares
    }
    rows = []
    for seconds in SECONDS:
        cells = []
        for p in shares:
            found = best_within(options[p], seconds)
            if found is None:
                cells.append("")
                continue
            best, points, margin = found
            name = MODELS[best.study.model]
            value = f"{points:.1f}"
            if margin is None:
                cells.append(f"{name} {value}")
            else:
                told = f"{name} {value}, {margin}"
                cells.append(told if margin.is_clear else f"({told})")
        if any(cells) and (not rows or cells != rows[-1][1:]):
            rows.append([f"{seconds:g} s", *cells])
    return table(["a training of", *(f"{videos[p]} videos" for p in shares)], rows)


def early(studies: Sequence[Study]) -> str:
    """Returns how often a small study orders the models otherwise than they are with all the data.

    Of these are only pairs of models that 100 % tells apart. Tested are the last weights.
    """
    rows, lines = [], []
    for budget in ("steps", "epochs"):
        curves = [
            replace(
                curve_named(read_curves(study.table), f"video, {budget}, off", study.table),
                name=MODELS[study.model],
            )
            for study in studies
        ]
        ranking = rank_models(curves)
        pairs = [
            f"{pair.better} over {pair.worse} ({100 * pair.certainty:.0f} %)"
            for pair in ranking.pairs
            if pair.told
        ]
        lines.append(f"Told apart at 100 %, {budget}: {', '.join(pairs) or 'none'}.")
        for level in ranking.levels:
            chances = [f"{100 * level.wrong[n - 1]:.0f} %" if level.wrong else "" for n in DRAWS]
            rows.append([budget, f"{level.share:g} %", *chances])
    head = ["trained for", "p", *map(_draws_text, DRAWS)]
    return "\n\n".join([*lines, table(head, rows)])


def _draws_text(count: int) -> str:
    return "1 draw per model" if count == 1 else str(count)


def time_steps(folder: Path, studies: Sequence[Study], seconds: float = 60.0) -> dict[str, float]:
    """Returns the CPU milliseconds of a training step of each study's model, one thread, in turn.

    Args:
        folder: prepared data directory.
        studies: on that data, one a model; their ``config.yaml`` says what a step is.
        seconds: to spend, or about.
    """
    import torch

    from tal_fast.data import open_dataset
    from tal_fast.profiling.rig import Rig, Variant, in_turn
    from tal_fast.training import load_config

    torch.set_num_threads(1)
    data = open_dataset(folder)
    rigs = {
        study.model: Rig(
            load_config(study.table.with_name("config.yaml")), data, data.splits["train"]
        )
        for study in studies
    }
    try:
        took, failed = in_turn(
            {model: Variant(rig.as_it_is, timed=4) for model, rig in rigs.items()}, 12, seconds
        )
    finally:
        for rig in rigs.values():
            rig.close()
    if failed:
        raise RuntimeError(f"steps were not timed: {failed}")
    return {model: 1e3 * statistics.median(found.cpu) for model, found in took.items()}
