# SPDX-License-Identifier: Apache-2.0
"""The tables of docs that compare models, from the tables of their studies.

No timing. A folder of studies holds one per data set and model, ``hapt-tridet`` and so on, each
with the ``trials.csv`` that ``tal-fast study run`` writes. Draws depend on the study's seed, the
repetition and p alone, so trials of different models, budgets and averages are paired by
repetition; differences have t-intervals over the draws, 90 % if nothing else is said.

    python benchmarks/four_models.py --page docs/data-efficiency.md --page docs/four-models.md

replaces what stands between the pages' markers; without ``--page`` it prints.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from model_choice import early, time_steps, which
from model_studies import (
    AVERAGES,
    DATA,
    MODELS,
    Mean,
    Study,
    mean_of,
    paired_text,
    read_short_studies,
    read_studies,
    table,
)
from poster_claims import claims_table

__all__ = ["Shape", "blocks", "draw", "read_step_times", "shape_of", "update_page", "word_of"]

_MARK = re.compile(r"(<!-- four models: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _percent(p: float) -> str:
    return f"{100 * p:g} %"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def curves(studies: Sequence[Study]) -> str:
    """Returns mean ± standard deviation of every level, a row per model, budget and average."""
    shares = sorted({p for study in studies for p in study.shares("epochs")})
    rows = []
    for study in studies:
        for budget in ("epochs", "steps"):
            for average in AVERAGES:
                draws = [list(study.draws(budget, average, p).values()) for p in shares]
                if any(draws):
                    name = MODELS[study.model]
                    rows.append([name, budget, average, *map(_spread, draws)])
    return table(["model", "trained for", "tested", *map(_percent, shares)], rows)


@dataclass(frozen=True)
class Shape:
    """How a curve bends.

    Attributes:
        first: rise from nothing to the smallest share, points per tenth of the data.
        steepest: the largest later rise.
        where: the two shares between which it lies.
        excess: steepest less first, over the draws that have all three levels.
    """

    first: float
    steepest: float
    where: tuple[float, float]
    excess: Mean

    @property
    def word(self) -> str:
        """Returns ``S``, ``concave`` or ``either``; of a single draw nothing is said."""
        if self.excess.count < 2:
            return "one draw"
        if not self.excess.is_clear:
            return "either"
        return "S" if self.excess.value > 0 else "concave"


def shape_of(study: Study, budget: str, average: str) -> Shape | None:
    """Says whether a curve is steepest at its start or later; None with fewer than three levels.

    The rise before the smallest share is that from 0 points at no data.
    """
    levels = [(0.0, {})] + [(p, study.draws(budget, average, p)) for p in study.shares(budget)]
    levels = [levels[0]] + [level for level in levels[1:] if level[1]]
    if len(levels) < 4:
        return None

    def slope(index: int, repetition: int) -> float:
        (before, low), (after, high) = levels[index], levels[index + 1]
        return (high[repetition] - (low[repetition] if low else 0.0)) / (after - before) / 10

    def common(*indices: int) -> list[int]:
        needed = [levels[i][1] for index in indices for i in (index, index + 1) if levels[i][1]]
        return sorted(set.intersection(*(set(draws) for draws in needed)))

    means = [
        statistics.mean(slope(index, r) for r in common(index)) for index in range(len(levels) - 1)
    ]
    steep = max(range(1, len(means)), key=means.__getitem__)
    excess = mean_of([slope(steep, r) - slope(0, r) for r in common(0, steep)])
    return Shape(means[0], means[steep], (levels[steep][0], levels[steep + 1][0]), excess)


def shapes(studies: Sequence[Study]) -> str:
    """Returns the shape of every curve."""
    rows = []
    for study in studies:
        for budget in ("epochs", "steps"):
            for average in AVERAGES:
                found = shape_of(study, budget, average)
                if found is not None:
                    low, high = found.where
                    rows.append(
                        [
                            MODELS[study.model],
                            budget,
                            average,
                            f"{found.first:.1f}",
                            f"{found.steepest:.1f} ({100 * low:g} to {_percent(high)})",
                            str(found.excess),
                            found.word,
                        ]
                    )
    head = ["model", "trained for", "tested", "first rise", "steepest later", "excess", "shape"]
    return table(head, rows)


def effects(studies: Sequence[Study]) -> str:
    """Returns what a plain average and fixed epochs cost at each share, paired by draw."""
    shares = sorted({p for study in studies for p in study.shares("epochs")})
    rows = []
    for study in studies:
        for what, one, other in (
            ("plain average, epochs", ("epochs", "plain"), ("epochs", "off")),
            ("plain average, steps", ("steps", "plain"), ("steps", "off")),
            ("epochs, last weights", ("epochs", "off"), ("steps", "off")),
            ("epochs and plain average", ("epochs", "plain"), ("steps", "off")),
        ):
            cells = [paired_text(study.draws(*one, p), study.draws(*other, p)) for p in shares]
            rows.append([MODELS[study.model], what, *cells])
    return table(["model", "what it changes", *map(_percent, shares)], rows)


def order(studies: Sequence[Study]) -> str:
    """Returns, at each share, how far the models are behind the best, paired by draw."""
    shares = sorted({p for study in studies for p in study.shares("steps")})
    rows = []
    for budget, average in (("steps", "off"), ("epochs", "off"), ("epochs", "plain")):
        cells: dict[str, list[str]] = {study.model: [] for study in studies}
        for p in shares:
            draws = {study.model: study.draws(budget, average, p) for study in studies}
            draws = {model: values for model, values in draws.items() if values}
            common = set.intersection(*map(set, draws.values())) if draws else set()
            means = {
                model: statistics.mean(values[r] for r in common)
                for model, values in draws.items()
                if common
            }
            best = max(means, key=means.__getitem__, default=None)
            for study in studies:
                if best is None or study.model not in means:
                    cells[study.model].append("")
                elif study.model == best:
                    cells[study.model].append(f"**{means[best]:.1f}**")
                else:
                    cells[study.model].append(paired_text(draws[study.model], draws[best]))
        rows += [[budget, average, MODELS[model], *own] for model, own in cells.items()]
    return table(["trained for", "tested", "model", *map(_percent, shares)], rows)


def word_of(study: Study, budget: str, average: str) -> str | None:
    """Returns a curve's :attr:`Shape.word`; None with fewer than three levels."""
    found = shape_of(study, budget, average)
    return None if found is None else found.word


def claims_of(studies: Sequence[Study]) -> str:
    """Returns the claims of the poster and what the studies answer."""
    return claims_table(studies, word_of)


def blocks(
    studies: Sequence[Study],
    step_ms: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    short: Sequence[Study] = (),
) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every block of the page.

    Args:
        studies: of all data sets.
        step_ms: data set -> model -> milliseconds of a step.
        short: studies of trainings planned for a short time, of all data sets.
    """
    for data in dict.fromkeys(study.data for study in studies):
        own = [study for study in studies if study.data == data]
        for name, made in (
            ("curves", curves),
            ("shapes", shapes),
            ("effects", effects),
            ("order", order),
            ("claims", claims_of),
        ):
            yield f"{name}-{data}", made(own)
        if len(own) > 1:
            yield f"early-{data}", early(own)
        if data in step_ms:
            yield f"which-{data}", which(own, step_ms[data])
            planned = [study for study in short if study.data == data]
            if planned:
                yield f"which-short-{data}", which(own, step_ms[data], planned)


def read_step_times(folder: Path) -> dict[str, dict[str, float]]:
    """Reads what ``--time-steps`` measured: data set -> model -> milliseconds."""
    path = folder / "steps.json"
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {data: found["milliseconds"] for data, found in content.items()}


def update_page(
    text: str,
    studies: Sequence[Study],
    step_ms: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    short: Sequence[Study] = (),
) -> str:
    """Returns a page with its blocks made anew.

    Args:
        text: the page.
        studies: of all data sets.
        step_ms: of :func:`read_step_times`.
        short: studies of trainings planned for a short time.

    Raises:
        ValueError: the page has a block that no study fills.
    """
    made = dict(blocks(studies, step_ms, short))

    def fill(match: re.Match[str]) -> str:
        if match[2] not in made:
            raise ValueError(f"block {match[2]!r}: expected one of {', '.join(made)}")
        return f"{match[1]}{made[match[2]]}\n{match[3]}"

    return _MARK.sub(fill, text)


def draw(studies: Sequence[Study], path: Path) -> None:
    """Draws the curves of each data set in a row: as published, without average, equal steps.

    Args:
        studies: of one data set or more.
        path: of the PNG.
    """
    from tal_fast.curves.figures import INK, SERIES, blank_figure

    panels = (
        ("epochs", "plain", "same epochs, plain average"),
        ("epochs", "off", "same epochs, last weights"),
        ("steps", "off", "same steps, last weights"),
    )
    for data in dict.fromkeys(study.data for study in studies):
        own = [study for study in studies if study.data == data]
        figure, axes = blank_figure(len(panels), size=(12.0, 4.0))
        for ax, (budget, average, title) in zip(axes, panels, strict=True):
            for model, (colour, dashes, mark) in zip(MODELS, SERIES, strict=False):
                for study in own:
                    if study.model != model:
                        continue
                    levels = [(p, study.draws(budget, average, p)) for p in study.shares(budget)]
                    points = [(100 * p, list(draws.values())) for p, draws in levels if draws]
                    means = [statistics.mean(draws) for _, draws in points]
                    spread = [
                        statistics.stdev(draws) if len(draws) > 1 else 0.0 for _, draws in points
                    ]
                    ax.errorbar([p for p, _ in points], means, spread, color=colour, marker=mark,
                                linestyle=dashes, linewidth=1.6, markersize=5, capsize=2.5,
                                label=MODELS[model])  # fmt: skip
            ax.set_title(title, color=INK, fontsize=11)
            ax.set_xlabel("share of the training videos (%)")
            ax.set_xlim(0, 104)
            ax.set_ylim(bottom=0)
        axes[0].set_ylabel(f"average mAP on {DATA[data]} (points)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False,
                      labelcolor=INK)  # fmt: skip
        figure.savefig(path.with_name(f"{path.stem}-{data}{path.suffix}"), dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=Path, default=Path("docs/results/four-models"))
    parser.add_argument(
        "--page", type=Path, action="append", help="write the tables into this page; repeatable"
    )
    parser.add_argument("--picture", type=Path, help="draw NAME-<data>.png, too")
    parser.add_argument(
        "--time-steps", nargs=2, metavar=("DATA", "FOLDER"),
        help="measure steps of a data set's studies, such as: hapt data/hapt; then stop",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.time_steps:
        import machine

        data, folder = arguments.time_steps
        path = arguments.studies / "steps.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        own = [study for study in read_studies(arguments.studies) if study.data == data]
        found = time_steps(Path(folder), own)
        content[data] = {"milliseconds": found, "machine": machine.describe()}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(found)
        return
    studies = read_studies(arguments.studies)
    step_ms = read_step_times(arguments.studies)
    short = read_short_studies(arguments.studies)
    if arguments.picture is not None:
        draw(studies, arguments.picture)
    if not arguments.page:
        for name, text in blocks(studies, step_ms, short):
            print(f"\n{name}\n\n{text}")
    for path in arguments.page or ():
        page = path.read_text(encoding="utf-8")
        path.write_text(update_page(page, studies, step_ms, short), encoding="utf-8")


if __name__ == "__main__":
    main()
