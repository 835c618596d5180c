# SPDX-License-Identifier: Apache-2.0
"""What studies of several models say about the claims of the poster and of its sister studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model_studies import MODELS, Study, mean_of, paired_text, table

__all__ = ["PUBLISHED", "Claim", "claims", "claims_table"]

# The average of the weights that each model's published curve was tested with.
PUBLISHED = {"tadtr": "off", "actionformer": "plain", "tridet": "plain", "temporalmaxer": "plain"}

_UNDECIDED = ("one draw", "either")
# A study, a budget, an average -> S, concave, either, one draw; None where there is no curve.
Shape = Callable[[Study, str, str], "str | None"]


@dataclass(frozen=True)
class Claim:
    """A claim and what the studies answer.

    Attributes:
        text: the claim.
        verdict: ``holds``, ``holds in part``, ``does not hold`` or ``open``.
        numbers: what the verdict rests on.
    """

    text: str
    verdict: str
    numbers: str


def _named(words: dict[str, str]) -> str:
    return ", ".join(f"{MODELS[model]} {word}" for model, word in words.items())


def _one_of(is_true: Sequence[bool | None]) -> str:
    known = [value for value in is_true if value is not None]
    if not known:
        return "open"
    if all(known) and len(known) == len(is_true):
        return "holds"
    return "holds in part" if any(known) else "does not hold"


def _one_shape(words: dict[str, str]) -> str:
    """Returns whether all have one shape; two that differ settle it, all others must be decided."""
    decided = [word for word in words.values() if word not in _UNDECIDED]
    if len(set(decided)) > 1:
        return "does not hold"
    return "holds" if decided and len(decided) == len(words) else "open"


def _shape_claims(studies: Sequence[Study], shape: Shape) -> list[Claim]:
    def words(budget: str, average: Callable[[str], str]) -> dict[str, str]:
        shapes = {s.model: shape(s, budget, average(s.model)) for s in studies}
        return {model: word for model, word in shapes.items() if word is not None}

    def are_s(found: dict[str, str]) -> list[bool | None]:
        return [None if word in _UNDECIDED else word == "S" for word in found.values()]

    published = words("epochs", PUBLISHED.__getitem__)
    equal = words("steps", lambda _: "off")
    same = _one_shape(published)
    return [
        Claim(
            "The curve of mAP over data has a sigmoidal shape",
            _one_of(are_s(published)),
            f"epochs and average as published: {_named(published)}",
        ),
        Claim(
            "… which comes from the data",
            _one_of(are_s(equal)),
            f"equal steps, last weights: {_named(equal)}",
        ),
        Claim(
            "The shape is the same for all models",
            same,
            f"as published: {_named(published)}; equal steps: {_named(equal)}",
        ),
    ]


def _last_rise(study: Study) -> tuple[str, bool | None]:
    """Returns the rise of the last segment, equal steps, and whether it is one; None: unclear."""
    before, last = study.shares("steps")[-2:]
    low, high = (study.draws("steps", "off", p) for p in (before, last))
    rise = mean_of([high[r] - low[r] for r in sorted(low.keys() & high.keys())])
    return str(rise), rise.value > 0 if rise.is_clear else None


def _size_claims(studies: Sequence[Study]) -> list[Claim]:
    rises = {s.model: _last_rise(s) for s in studies if len(s.shares("steps")) > 2}
    steps = {s.model: s.gains.get(("steps", "off")) for s in studies}
    epochs = {s.model: s.gains.get(("epochs", PUBLISHED[s.model])) for s in studies}

    def gains(found: dict[str, tuple[float, float, float] | None]) -> str:
        words = {
            model: f"{gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f})"
            for model, gain in found.items()
            if gain is not None
        }
        return _named(words) or "no fit yet"

    def brings_nine(gain: tuple[float, float, float] | None) -> bool | None:
        if gain is None or (gain[1] <= 9 <= gain[2] and gain[1] <= 0):
            return None  # an interval that holds 0 as well supports nothing
        return gain[1] <= 9 <= gain[2]

    shares = studies[0].shares("steps")[-2:]
    return [
        Claim(
            "Models do not saturate and would benefit from more data",
            _one_of([clear for _, clear in rises.values()]),
            f"from {100 * shares[0]:g} to {100 * shares[1]:g} %, equal steps: "
            + _named({model: rise for model, (rise, _) in rises.items()}),
        ),
        Claim(
            "Three times the data bring +9 points",
            _one_of([brings_nine(gain) for gain in steps.values()]),
            f"90 % interval of the gain, equal steps: {gains(steps)}; "
            f"as published: {gains(epochs)}",
        ),
    ]


def _little_data(studies: Sequence[Study]) -> list[Claim]:
    by_model = {s.model: s for s in studies}
    best = by_model.get("temporalmaxer")
    if best is None or len(by_model) < 2:
        return []
    result = []
    for budget, average, how in (
        ("epochs", None, "epochs and average as published"),
        ("steps", "off", "equal steps, last weights"),
    ):
        smallest = best.shares(budget)[:2]
        cells, ahead = [], []
        for p in smallest:
            own = best.draws(budget, average or PUBLISHED["temporalmaxer"], p)
            for model, study in by_model.items():
                if model == "temporalmaxer":
                    continue
                other = study.draws(budget, average or PUBLISHED[model], p)
                both = sorted(own.keys() & other.keys())
                if not both:
                    continue
                lead = mean_of([own[r] - other[r] for r in both])
                ahead.append(lead.value > 0 if lead.is_clear else None)
                cells.append(f"{100 * p:g} % {MODELS[model]} {paired_text(own, other)}")
        result.append(
            Claim(
                f"TemporalMaxer is the model for little data ({how})",
                _one_of(ahead),
                f"TemporalMaxer's lead: {', '.join(cells)}",
            )
        )
    return result


def claims(studies: Sequence[Study], shape: Shape) -> list[Claim]:
    """Returns the claims that studies of one data set can answer.

    A verdict is ``holds`` only if every model has a 90 % interval that says so; models whose
    interval says neither (or that have one draw) count for nothing, and ``open`` is what is left
    where all are such.

    Args:
        studies: of one data set.
        shape: says how a curve bends.
    """
    return [*_shape_claims(studies, shape), *_size_claims(studies), *_little_data(studies)]


def claims_table(studies: Sequence[Study], shape: Shape) -> str:
    """Returns the claims as a table."""
    rows = [[one.text, one.verdict, one.numbers] for one in claims(studies, shape)]
    return table(["claim", "here", "numbers"], rows)
