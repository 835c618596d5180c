# SPDX-License-Identifier: Apache-2.0
"""The numbers of classes, ``label_id``: the order they give, and if predictions may use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tal_fast.errors import counted

__all__ = ["ClassIds", "collect_class_ids", "ordered_classes"]


@dataclass(frozen=True)
class ClassIds:
    """The numbers that a source gives its classes.

    Attributes:
        numbers: class name -> number, of each class whose number is beyond doubt.
        fault: why a number cannot be taken for a class here, for messages; empty where it can.
        complete: every annotation has a ``label_id``, and none contradicts another.
        contradiction: the first that does, in words; empty if none.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""
    complete: bool = False
    contradiction: str = ""


def collect_class_ids(
    annotations: Iterable[tuple[str, int, str, int | None]], *lists: Sequence[str] | None
) -> ClassIds:
    """Returns the numbers of the classes that all annotations of a file together give.

    Args:
        annotations: (video, position, label, ``label_id`` or None) of all of them, those of other
            subsets too.
        lists: lists of classes in order, as there are. They number classes only where no annotation
            does, or where they agree with those that do.
    """
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    labels: dict[str, None] = {}
    doubtful: set[str] = set()
    contradiction = missing = ""
    total = without = 0
    for video, position, label, value in annotations:
        total += 1
        labels.setdefault(label)
        if value is None:
            without += 1
            missing = missing or f"video {video!r}, annotation {position} ({label!r})"
            continue
        first_id = ids.setdefault(label, value)
        other = names.setdefault(value, label)
        if first_id != value or other != label:
            doubtful |= {label, other}
            contradiction = contradiction or (
                f"video {video!r}, annotation {position}: label {label!r} with label_id {value} "
                f"contradicts label_id {first_id} of {other!r} elsewhere in the file"
            )
    ordered = [tuple(names) for names in lists if names is not None]
    places = [{name: i for i, name in enumerate(names)} for names in ordered]
    if not ids:
        return _of_lists(labels, places)
    numbers = {name: value for name, value in ids.items() if name not in doubtful}
    if contradiction:
        return ClassIds(numbers, f"their numbers contradict each other ({contradiction})",
                        contradiction=contradiction)  # fmt: skip
    if without:
        return ClassIds(
            numbers,
            f"their numbers are incomplete ({without} of {counted(total, 'annotation', 'have')} no "
            "integer "
            f"label_id, the first is {missing})",
        )
    for place in places:
        # A class without an annotation has a number where the list counts as the annotations do.
        if all(place.get(name) == value for name, value in ids.items()):
            taken = set(numbers.values())
            more = {n: i for n, i in place.items() if n not in numbers and i not in taken}
            numbers = {**numbers, **more}
    return ClassIds(numbers, complete=True)


def _of_lists(labels: Iterable[str], places: Sequence[Mapping[str, int]]) -> ClassIds:
    """Returns positions in lists of classes, where there is one and they agree."""
    if not places:
        return ClassIds(fault="they have no numbers (no label_id in any annotation, no class list)")
    for other in places[1:]:
        if any(place != other.get(name) for name, place in places[0].items()):
            return ClassIds(fault="two lists of classes order them differently")
    outside = next((name for name in labels if name not in places[0]), None)
    if outside is not None:
        return ClassIds(
            dict(places[0]),
            f"their numbers are incomplete ({outside!r} has no label_id and is not in the list)",
        )
    return ClassIds(dict(places[0]))


def ordered_classes(
    labels: Iterable[str], class_ids: ClassIds, listed: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Returns the names of all classes in the order of their indices.

    That is by number where every annotation has one and they do not contradict each other; else by
    name. A list of classes stands in front, in its own order, where it names others, too, or there
    is no such number.

    Args:
        labels: those of the annotations.
        class_ids: their numbers.
        listed: a list of classes that counts what it names, also without an annotation.
    """
    names = set(labels)
    if class_ids.complete and names.issuperset(listed or ()):
        return tuple(sorted(names, key=class_ids.numbers.__getitem__))
    return (*(listed or ()), *sorted(names.difference(listed or ())))
