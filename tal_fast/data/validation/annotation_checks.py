# SPDX-License-Identifier: Apache-2.0
"""Checks that need the annotation file alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from tal_fast.data.annotation_file import AnnotatedVideo, AnnotationFile
from tal_fast.data.annotations import TOLERANCE
from tal_fast.data.class_ids import ordered_classes
from tal_fast.data.validation.result import Finding, SplitCounts
from tal_fast.errors import counted, nearest

__all__ = ["Faults", "annotation_faults", "class_faults", "classes_of", "count_splits", "leaks"]

SHOWN = 5
# As ActionFormer: instances of one label this close (s) at both ends are one.
SAME = 1e-3
IMBALANCE = 50

# What becomes of segments that reach beyond their video, and of those that lie outside it.
_CUT = "training sees them cut to the video (out_of_range: clamp), scoring takes them as they are"
_GONE = "outside the video; training leaves them out (out_of_range: clamp), scoring does not"
_KEPT = "will be kept as they are (out_of_range: keep)"
_ASK = "out_of_range: clamp would cut them for training"
_RULES = {
    "clamp": (_CUT, _GONE),
    "keep": (_KEPT, f"outside the video; {_KEPT}"),
    "error": (_ASK, "outside the video; out_of_range: clamp would leave them out of training"),
}


class Faults:
    """Collects faults by check and turns them into findings."""

    def __init__(self, accepted: Collection[str]) -> None:
        self._accepted = accepted
        self._examples: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(
        self, check: str, severity: str, message: str, example: str = "", count: int = 1
    ) -> None:
        """Counts one fault, or several at once; ``message`` is that of all of its kind."""
        key = (check, severity, message)
        self._counts[key] += count
        if example and len(self._examples[key]) < SHOWN:
            self._examples[key].append(example)

    def findings(self) -> tuple[Finding, ...]:
        """Returns one finding per kind, errors first."""
        rank = {"error": 0, "warning": 1, "accepted": 2}
        findings = []
        for key, count in self._counts.items():
            check, severity, message = key
            if severity == "error" and check in self._accepted:
                severity = "accepted"
            findings.append(Finding(check, severity, count, message, tuple(self._examples[key])))
        return tuple(sorted(findings, key=lambda finding: rank[finding.severity]))


def classes_of(
    file: AnnotationFile, given: Sequence[str] | None, ignored: Collection[str]
) -> tuple[str, ...]:
    """Returns the class list: the given one, or the labels in their order."""
    if given is not None:
        return tuple(given)
    return ordered_classes(file.labels(ignored), file.class_ids(ignored))


def annotation_faults(
    file: AnnotationFile,
    classes: Sequence[str],
    splits: Mapping[str, Sequence[str]],
    ignored: Collection[str],
    out_of_range: str,
    faults: Faults,
) -> None:
    """Looks at every video and instance.

    Args:
        file: what was read.
        classes: class names.
        splits: split -> subsets of the file.
        ignored: labels that are left out.
        out_of_range: the rule that training will follow: ``"error"``, ``"clamp"`` or ``"keep"``.
        faults: takes what is found.
    """
    for name in file.repeated:
        faults.add("repeated-video", "error", "listed more than once in the annotation file, which "
                   "no other command reads", f"video {name!r}")  # fmt: skip
    used = {subset for subsets in splits.values() for subset in subsets}
    names_by_id: dict[int, str] = {}
    ids_by_name: dict[str, int] = {}
    known = set(classes)
    stray = "warning" if out_of_range in ("clamp", "keep") else "error"
    rule, outside = _RULES[out_of_range]
    labelled = {video.subset for video in file.videos if video.instances}
    for split, subsets in splits.items():
        if not labelled.intersection(subsets):
            faults.add("no-instance", "warning", "a split without any instance", f"split {split!r}")
    for video in file.videos:
        if video.subset not in used:
            faults.add("subset", "warning", "in no split",
                       f"video {video.name!r}: subset {video.subset!r}")  # fmt: skip
        if video.duration is None:
            faults.add("duration", "error", "no duration > 0", f"video {video.name!r}")
        if not video.instances and video.subset in used & labelled:
            faults.add("no-instance", "warning", "without instances", f"video {video.name!r}")
        seen: list[tuple[str, float, float, int]] = []
        for item in video.instances:
            where = f"video {video.name!r}, {item.place}"
            span = item.span
            if item.label is None or span is None:
                faults.add("malformed", "error", "no label or no segment [start, end]", where)
                continue
            if item.label in ignored:
                continue
            if item.label not in known:
                faults.add("label", "error", f"not among the {counted(len(known), 'class')}",
                           f"{where}: {item.label!r}{nearest(item.label, known)}")  # fmt: skip
            if item.label_id is not None:
                other = names_by_id.setdefault(item.label_id, item.label)
                class_id = ids_by_name.setdefault(item.label, item.label_id)
                if other != item.label or class_id != item.label_id:
                    faults.add("label", "error", "label and label_id contradict another annotation",
                               f"{where}: {item.label!r} with {item.label_id}, elsewhere "
                               f"{other!r} with {class_id}")  # fmt: skip
            start, end = span
            segment = f"{where}: [{start:g}, {end:g}]"
            if end <= start:
                faults.add("non-positive", "error", "end is not after the start", segment)
            elif video.duration is not None and (
                start < -TOLERANCE or end > video.duration + TOLERANCE
            ):
                gone = min(end, video.duration) <= max(start, 0.0)
                faults.add("out-of-range", stray,
                           outside if gone else f"not inside the video; {rule}",
                           f"{segment} in a video of {video.duration:g} s")  # fmt: skip
            same = next((p for label, s, e, p in seen if label == item.label
                         and abs(s - start) <= SAME and abs(e - end) <= SAME), None)  # fmt: skip
            if same is not None:
                faults.add("duplicate", "warning", "same segment (to 1 ms) and label as another",
                           f"{segment} {item.label} as annotation {same}")  # fmt: skip
            seen.append((item.label, start, end, item.position))


def count_splits(
    everything: Sequence[AnnotatedVideo],
    classes: Sequence[str],
    splits: Mapping[str, Sequence[str]],
) -> tuple[tuple[SplitCounts, ...], dict[str, tuple[float, ...]]]:
    """Returns counts and instance lengths (s) of each split."""
    counts, lengths = [], {}
    for name, subsets in splits.items():
        videos = [video for video in everything if video.subset in subsets]
        per_class = dict.fromkeys(classes, 0)
        spans: list[float] = []
        for video in videos:
            for item in video.instances:
                if item.label in per_class and item.span is not None:
                    per_class[item.label] += 1
                    spans.append(item.span[1] - item.span[0])
        seconds = sum(video.duration or 0.0 for video in videos)
        counts.append(SplitCounts(name, len(videos), len(spans), seconds, per_class))
        lengths[name] = tuple(spans)
    return tuple(counts), lengths


def class_faults(counts: Sequence[SplitCounts], train: str, faults: Faults) -> None:
    """Compares the classes of the splits.

    Args:
        counts: of :func:`count_splits`.
        train: name of the training split.
        faults: takes what is found.
    """
    training = next((split for split in counts if split.name == train), None)
    for split in counts:
        if not split.videos:
            faults.add("subset", "error", "a split without videos", f"split {split.name!r}")
    if training is None or not training.videos:
        return
    others = [split for split in counts if split is not training and split.instances]
    for label, count in training.per_class.items():
        elsewhere = sum(split.per_class[label] for split in others)
        if not count:
            faults.add("class-missing", "error", f"no instance in split {train!r}: cannot be "
                       "learned", f"{label!r}, {counted(elsewhere, 'instance')} "
                                  "elsewhere")  # fmt: skip
        elif others and not elsewhere:
            faults.add("class-missing", "warning", f"only in split {train!r}: cannot be tested",
                       f"{label!r}, {counted(count, 'instance')}")  # fmt: skip
    present = {label: count for label, count in training.per_class.items() if count}
    if present:
        rare = min(present, key=present.__getitem__)
        common = max(present, key=present.__getitem__)
        if present[common] > IMBALANCE * present[rare]:
            faults.add("imbalance", "warning", f"more than {IMBALANCE} times as many instances of "
                       "one class as of another",
                       f"{common!r} {present[common]}, {rare!r} {present[rare]}")  # fmt: skip


def leaks(
    videos: Sequence[AnnotatedVideo],
    split_of: Callable[[AnnotatedVideo], str],
    group: str | None,
    faults: Faults,
) -> None:
    r"""Looks for videos of two splits that are one by their names.

    Args:
        videos: all of them.
        split_of: the split of a video; empty if none.
        group: regular expression whose first group names what must stay in one split, such as the
            person (``user(\d+)``); a name that does not match is a fault.
        faults: takes what is found.
    """
    by_name: dict[str, AnnotatedVideo] = {}
    by_group: dict[str, AnnotatedVideo] = {}
    for video in videos:
        split = split_of(video)
        if not split:
            continue
        # v_abc and abc, or ABC, are one video under two names in more than one data set.
        plain = video.name.lower().removeprefix("v_")
        first = by_name.setdefault(plain, video)
        if split_of(first) != split:
            faults.add("leakage", "error", "the same video under two names in two splits",
                       f"{first.name!r} in {split_of(first)}, {video.name!r} in "
                       f"{split}")  # fmt: skip
        if group is None:
            continue
        match = re.search(group, video.name)
        if match is None:
            faults.add("leakage", "error", f"the group {group!r} is not in the name",
                       f"video {video.name!r}")  # fmt: skip
            continue
        key = match[1] if match.groups() else match[0]
        first = by_group.setdefault(key, video)
        if split_of(first) != split:
            faults.add("leakage", "error", "one group in two splits",
                       f"{key!r}: {first.name!r} in {split_of(first)}, {video.name!r} in "
                       f"{split}")  # fmt: skip
