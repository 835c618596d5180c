# SPDX-License-Identifier: Apache-2.0
"""What subsets of annotation files are called, and which split each of them is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["USUAL_NAMES", "usual_split", "whole_choice"]

USUAL_NAMES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing"),
}
"""Split -> what its subset is called, in small letters."""

# What other names have in them, for advice alone: train_1, Test_Set, val2017.
_PARTS = {"train": ("train",), "val": ("val", "dev"), "test": ("test", "eval")}


def usual_split(subset: str) -> str | None:
    """Returns the split that a subset of this name is, in any case; None where none is usual."""
    small = subset.lower()
    return next((split for split, names in USUAL_NAMES.items() if small in names), None)


def whole_choice(
    subsets: Sequence[str], given: Mapping[str, Iterable[str]] | None = None
) -> dict[str, list[str]]:
    """Returns split -> subsets as somebody may mean them, to be proposed and not to be taken.

    All of them, as one split that is named makes all others be named: those of usual or similar
    names, the only one left for the only split left, and ``SUBSET`` where nothing tells.

    Args:
        subsets: all subsets.
        given: split -> subsets that are decided.
    """
    choice = {split: list(names) for split, names in (given or {}).items()}
    taken = {name for names in choice.values() for name in names}
    found: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name in subsets:
        if name not in taken:
            split = usual_split(name) or _similar(name)
            (unknown if split is None else found.setdefault(split, [])).append(name)
    for split in ("test", "train"):  # THUMOS14 trains on what it calls validation
        if split not in {**choice, **found} and "val" in found and not unknown:
            found[split] = found.pop("val")
    for split in ("train", "val", "test"):
        if split in found and split not in choice:
            choice[split] = found[split]
    lacking = [split for split in ("train", "test") if split not in choice]
    alone = len(lacking) == len(unknown) == 1
    choice |= {split: unknown if alone else ["SUBSET"] for split in lacking}
    return {split: choice[split] for split in sorted(choice, key=_place)}


def _similar(name: str) -> str | None:
    small = name.lower()
    found = [split for split, parts in _PARTS.items() if any(part in small for part in parts)]
    return found[0] if found else None


def _place(split: str) -> int:
    order = list(USUAL_NAMES)
    return order.index(split) if split in order else len(order)
