# SPDX-License-Identifier: Apache-2.0
"""What a profile says limits a training: a pure function of ``profile.json``.

It says what the figures show and no more: of a share of the time it says what the training would
gain at most without it, not that this gain is to be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tal_fast.errors import DataError
from tal_fast.profiling.profile import FORMAT, FORMATS

__all__ = ["Verdict", "verdict_of"]

_TAKEN = 0.1  # share of the cores that others may use before they come first
_LARGE = 0.2  # share of the time
_PARTLY = 0.05

_DATA = (
    "`tal-fast pack` the features, or raise data.threads: a batch reads {read:.1f} MB",
    "`tal-fast pack` the features, or raise data.threads",
)
# Parts of a step, and between steps, that need not be large, and what to do if they are.
_CURABLE = {
    "loss/matching": ("matching", "fewer queries or decoder layers"),
    "optimizer": ("the optimiser", "larger batches make fewer steps"),
    "transfer": ("copies to the device", "smaller features, or features in float16"),
    "rate": ("rating held-out videos", "raise training.check_every, or hold out fewer videos"),
    "save": ("saving", "a faster disk for --out"),
}


@dataclass(frozen=True)
class Verdict:
    """What limits a training.

    Attributes:
        kind: ``machine``, ``data``, ``loss/matching``, ``optimizer``, ``transfer``, ``rate``,
            ``save`` or ``work``, the network's own.
        share: of the time, or of the cores for ``machine``; None where it is not known.
        sentence: what limits it.
        action: what would lift that.
        notes: what else is to be known; first of all, that the machine was disturbed.
    """

    kind: str
    share: float | None
    sentence: str
    action: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Returns it for a terminal."""
        return [self.sentence, self.action, *self.notes]


def verdict_of(profile: dict[str, Any]) -> Verdict:
    """Returns what a profile says limits the training.

    Machine before data, data before what need not be large, that before the network's own work.

    Args:
        profile: content of a ``profile.json``.

    Raises:
        DataError: it is of another format.
    """
    if profile.get("format") not in FORMATS:
        raise DataError(f"profile: expected format {FORMAT}, got {profile.get('format')!r}")
    notes = _notes(profile)
    found = _machine(profile) or _data(profile) or _curable(profile) or _work(profile)
    return Verdict(found.kind, found.share, found.sentence, found.action, notes)


def _notes(profile: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if profile["disturbed"]:
        notes.append(
            "Disturbed: shares are of the clock's time, others' work included; read the CPU times."
        )
    elif profile["disturbed"] is None:
        notes.append("Whether others disturbed it is not known: this system does not say.")
    waiting = _share(profile, "data")
    if waiting is not None and _PARTLY <= waiting < _LARGE:
        notes.append(f"Partly data: it waited for batches {waiting:.0%} of the time.")
    return tuple(notes)


def _machine(profile: dict[str, Any]) -> Verdict | None:
    cores = profile["usable_cores"]
    throttled = profile["disturbance"]["throttled"]["value"]
    if throttled:
        return Verdict(
            "machine",
            None,
            f"Machine: the limit of its control group held it back {throttled:.0f} times.",
            "Ask for more cores, or use fewer threads (--threads).",
        )
    others = profile["disturbance"]["others"]["value"]
    if others is not None and others > _TAKEN * cores:
        return Verdict(
            "machine",
            others / cores,
            f"Machine: others used {others:.1f} of {cores} cores.",
            "Run it alone to see what limits it; meanwhile compare CPU times.",
        )
    return None


def _share(profile: dict[str, Any], phase: str) -> float | None:
    for part in ("phases", "between_steps"):
        if phase in profile[part]:
            value: float | None = profile[part][phase]["share"]["value"]
            return value
    return None


def _data(profile: dict[str, Any]) -> Verdict | None:
    waiting = _share(profile, "data")
    if waiting is None or waiting < _LARGE:
        return None
    read = profile["reading"]["read"]["value"]
    action = _DATA[1] if read is None else _DATA[0].format(read=read / 1e6)
    sentence = f"Data: it waited for batches {waiting:.0%} of the time"
    return Verdict("data", waiting, f"{sentence}{_gain(waiting)}.", f"{action}.")


def _gain(share: float) -> str:
    """Returns what would be gained without a share of the time."""
    return f"; without, {1 / (1 - share):.1f}x as fast at most" if share < 1 else ""


def _curable(profile: dict[str, Any]) -> Verdict | None:
    shares = {name: _share(profile, name) or 0.0 for name in _CURABLE}
    name = max(shares, key=lambda key: shares[key])
    if shares[name] < _LARGE:
        return None
    what, action = _CURABLE[name]
    sentence = f"{what[0].upper()}{what[1:]}: {shares[name]:.0%} of the time{_gain(shares[name])}."
    return Verdict(name, shares[name], sentence, f"{action[0].upper()}{action[1:]}.")


def _work(profile: dict[str, Any]) -> Verdict:
    shares = {name: _share(profile, name) or 0.0 for name in ("forward", "loss", "backward")}
    total = sum(shares.values())
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return Verdict(
        "work",
        total,
        f"The network's own work: {total:.0%} of the time ({parts}).",
        "`tal-fast profile model` says what it computes and touches; more cores, a smaller model "
        "or training.amp=bfloat16 lift it.",
    )
