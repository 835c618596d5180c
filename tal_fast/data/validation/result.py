# SPDX-License-Identifier: Apache-2.0
"""What a validation found: findings, counts, and whether training may start."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tal_fast.data.validation.timing import Proposal
from tal_fast.errors import counted

__all__ = ["CHECKS", "Finding", "SplitCounts", "ValidationResult", "VideoFacts"]

# Columns of text that a sentence takes.
_WIDTH = 100

# What each check looks for; the keys are what --accept takes.
CHECKS = {
    "repeated-video": "a video is listed twice in the annotations; all other commands refuse it",
    "duration": "a video without a duration > 0",
    "malformed": "an instance without a label or two finite numbers",
    "label": "a label outside the class list, or a label_id that contradicts another",
    "non-positive": "a segment that ends at or before its start",
    "out-of-range": "a segment that starts before 0 or ends after its video",
    "duplicate": "the same segment and label twice in one video",
    "no-instance": "a video of a split without any instance",
    "subset": "a video that no split uses, or a split without videos",
    "class-missing": "a class without an instance in the training split, or only there",
    "imbalance": "classes of very different frequency in the training split",
    "excluded": "a video that dataset.yaml leaves out by name",
    "never-learned": "an instance that no training window can hold",
    "missing-features": "an annotated video without features",
    "extra-features": "features without an annotation",
    "unreadable": "a feature file that is faulty or has to be packed first",
    "channels": "videos that differ in channels",
    "timing": "a duration that disagrees with rows x stride / fps",
    "not-finite": "NaN or infinity in features",
    "constant-channel": "a channel that never changes",
    "same-features": "two videos with the same features",
    "leakage": "what is in one split is also in another",
}


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Attributes:
        check: which one, a key of :data:`CHECKS`.
        severity: ``"error"`` (training may not start), ``"warning"`` or ``"accepted"`` (an error
            that the caller accepts).
        count: how often.
        message: what it is and what to do.
        examples: the first of them, in words.
    """

    check: str
    severity: str
    count: int
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitCounts:
    """One split in numbers.

    Attributes:
        name: of the split.
        videos: videos in it.
        instances: instances with a label and two numbers.
        seconds: length of its videos.
        per_class: instances by class.
    """

    name: str
    videos: int
    instances: int
    seconds: float
    per_class: dict[str, int]


@dataclass(frozen=True)
class VideoFacts:
    """A video as the pictures need it.

    Attributes:
        name: of the video.
        split: its split; empty if none.
        duration: seconds.
        fps: that the check of rows used, or None.
        rows: of its features, or None.
    """

    name: str
    split: str
    duration: float
    fps: float | None
    rows: int | None


@dataclass(frozen=True)
class ValidationResult:
    """All findings about annotations and features.

    Attributes:
        source: what was looked at.
        findings: errors first.
        splits: counts of each split.
        classes: class names, in order of the labels.
        videos: facts for pictures.
        lengths: instance lengths in seconds, per split.
        proposals: settings that fit the rows better than those given, best first.
        fitting: share of the videos whose rows fit the settings given; None without features.
        doubts: what could not be checked, in sentences: the rate, where every duration is just
            what the rows cover, as ``prepare csv`` makes them of the rows.
        channels: channels of the features, or None.
        content: whether the features themselves were read.
    """

    source: str
    findings: tuple[Finding, ...]
    splits: tuple[SplitCounts, ...]
    classes: tuple[str, ...]
    videos: tuple[VideoFacts, ...] = ()
    lengths: dict[str, tuple[float, ...]] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    fitting: float | None = None
    doubts: tuple[str, ...] = ()
    channels: int | None = None
    content: bool = False

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep training from starting."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether training may start."""
        return not self.errors

    def count(self, check: str) -> int:
        """Returns how often a check struck."""
        return sum(finding.count for finding in self.findings if finding.check == check)

    def verdict(self) -> str:
        """Says in a line whether training may start."""
        if self.ok:
            rest = len(self.findings)
            warnings = f" ({counted(rest, 'warning')})" if rest else ""
            return f"training may start{warnings}"
        names = ", ".join(dict.fromkeys(finding.check for finding in self.errors))
        return f"training may not start: {names}"

    def table(self) -> str:
        """Returns splits, findings, proposals and the verdict as text."""
        lines = [self.source, ""]
        rows = [["split", "videos", "instances", "classes", "hours"]]
        for split in self.splits:
            seen = sum(count > 0 for count in split.per_class.values())
            counts = [str(split.videos), str(split.instances), f"{seen} of {len(self.classes)}"]
            rows.append([split.name, *counts, f"{split.seconds / 3600:.2f}"])
        lines += [*_columns(rows), ""]
        if self.findings:
            rows = [["", "check", "count", "what"]]
            for finding in self.findings:
                rows.append([finding.severity, finding.check, str(finding.count), finding.message])
                rows += [["", "", "", f"  {example}"] for example in finding.examples[:3]]
                if finding.count > 3 and len(finding.examples) >= 3:
                    rows.append(["", "", "", f"  and {finding.count - 3} more"])
            lines += [*_columns(rows), ""]
        if self.proposals:
            lines += ["settings that fit rows and durations better:"]
            lines += [f"  {proposal}" for proposal in self.proposals]
            lines.append("")
        for doubt in self.doubts:
            lines += [*textwrap.wrap(doubt, _WIDTH), ""]
        return "\n".join([*lines, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the lists behind the pictures, for JSON."""
        return {
            "source": self.source,
            "ok": self.ok,
            "verdict": self.verdict(),
            "findings": [asdict(finding) for finding in self.findings],
            "splits": [asdict(split) for split in self.splits],
            "classes": list(self.classes),
            "fitting": self.fitting,
            "doubts": list(self.doubts),
            "proposals": [asdict(proposal) for proposal in self.proposals],
            "channels": self.channels,
            "content": self.content,
        }


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lays out rows in columns; the last one is as long as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return [
        "  ".join(
            [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]
