# SPDX-License-Identifier: Apache-2.0
"""What a preparation of videos is told, and what it tells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tal_fast.data.dataset import shown_names
from tal_fast.errors import argument, counted
from tal_fast.typing import FilePath

__all__ = ["FeatureChoice", "Repairs", "VideoReport"]


@dataclass(frozen=True)
class FeatureChoice:
    """Which features, and what a row of them is.

    Attributes:
        paths: a folder of files, a folder of shards or a file with an array per video; several are
            streams whose channels follow each other.
        template: file or array name with ``%s`` for the video's name; None looks for ``%s`` and
            ``v_%s`` with the ending that all files have.
        key: name of the array in each video's own file, when such a file holds several.
        layout: ``"TC"`` or ``"CT"``.
        stride: frames between two rows.
        frames: frames that a row sees.
        fps: of all videos; None takes each video's own.
        resized: every video has the same number of rows, whatever its duration; stride, frames and
            fps then follow from rows and duration.
        pack: ``"float32"``, ``"float16"`` or ``"bfloat16"``: convert into a store in the data
            directory; None leaves the features where they are.
        allow_pickle: read pickles of arrays while packing.
    """

    paths: Sequence[FilePath]
    template: str | Sequence[str] | None = None
    key: str | Sequence[str] | None = None
    layout: str = "TC"
    stride: float = 4
    frames: float = 16
    fps: float | None = None
    resized: bool = False
    pack: str | None = None
    allow_pickle: bool = False

    @classmethod
    def at_rate(cls, paths: Sequence[FilePath], rate: float, **form: Any) -> FeatureChoice:
        """Returns features of which there are so many rows a second, from 0 s on.

        A row then is one frame at ``rate`` frames per second: row i stands for i / rate to
        (i + 1) / rate seconds.

        Args:
            paths: as the attribute.
            rate: rows per second.
            form: the other attributes, those of time aside.
        """
        return cls(paths, stride=1.0, frames=1.0, fps=rate, **form)


@dataclass(frozen=True)
class Repairs:
    """What may be done about known faults; nothing, unless asked for.

    Attributes:
        out_of_range: rule for segments beyond the video, written into ``dataset.yaml``:
            ``"error"``, ``"clamp"`` or ``"keep"``.
        non_positive: ``"error"``, or ``"drop"`` to leave out segments that end at or before their
            start.
        missing: ``"error"``, or ``"skip"`` to leave videos without features out of training and
            prediction: ``dataset.yaml`` names them under ``exclude``. They stay in the annotations,
            so scoring counts them.
        exclude: videos to leave out of the data set altogether.
    """

    out_of_range: str = "error"
    non_positive: str = "error"
    missing: str = "error"
    exclude: Collection[str] = ()


@dataclass(frozen=True)
class VideoReport:
    """What a preparation found and wrote.

    Attributes:
        path: the data directory.
        splits: split -> number of its videos.
        instances: over all splits, as the annotations have them: what evaluation counts.
        classes: number of classes.
        channels: of the features.
        rows: feature rows of all videos.
        fitting: share of the videos whose rows fit stride and fps, of those whose duration the
            annotations tell; None where none does, and for resized features.
        dropped: segments that were left out (``non_positive="drop"``).
        out_of_range: segments that reach beyond the video.
        missing: videos that are annotated and not used, for want of features.
        excluded: videos that were left out by name.
        template: of the file or array names.
        notes: what else is worth knowing, in sentences.
        cut: of the segments beyond the video, those that training sees cut to it.
        outside: and those that lie outside it altogether, which training leaves out.
    """

    path: Path
    splits: dict[str, int]
    instances: int
    classes: int
    channels: int
    rows: int
    fitting: float | None
    dropped: int
    out_of_range: int
    missing: tuple[str, ...]
    excluded: tuple[str, ...]
    template: str
    notes: tuple[str, ...] = ()
    cut: int = 0
    outside: int = 0

    def lines(self) -> list[str]:
        """Says in a few lines what was found, and everything that was left out."""
        splits = ", ".join(f"{count} {name}" for name, count in self.splits.items())
        used = sum(self.splits.values())
        annotated = counted(used + len(self.missing) + len(self.excluded), "annotated video")
        instances = f"{counted(self.instances, 'instance')} of {counted(self.classes, 'class')}"
        if self.outside:
            instances += f", {self.instances - self.outside} of them for training"
        lines = [
            f"{counted(used, 'video')} ({splits}), {instances}",
            f"{counted(self.rows, 'feature row')} of {counted(self.channels, 'channel')} "
            f"({self.template})",
        ]
        if self.fitting is not None:
            lines.append(
                f"rows agree with stride and fps in {100 * self.fitting:.1f} % of the videos "
                "whose duration is known (tal-fast validate lists the others)"
            )
        for names, why in (
            (self.excluded, f"as {argument('exclude')} asks"),
            (self.missing, "of training and prediction for want of features (exclude in "
             "dataset.yaml), and counted by scoring"),
        ):  # fmt: skip
            if names:
                lines.append(f"{len(names)} of {annotated} left out {why}: {shown_names(names)}")
        if self.dropped:
            lines.append(
                f"{counted(self.dropped, 'segment')} without length left out (end <= start)"
            )
        if self.out_of_range:
            lines.append(self._beyond())
        return [*lines, *self.notes, f"written to {self.path}"]

    def _beyond(self) -> str:
        """Says what becomes of segments beyond the video, and where they count."""
        beyond = f"{counted(self.out_of_range, 'segment', 'reach')} beyond the video"
        if not (self.cut or self.outside):
            return f"{beyond}, for training and scoring as they are (out_of_range: keep)"
        seen = [f"{self.cut} cut to it"] * bool(self.cut)
        seen += [f"{self.outside} outside it left out"] * bool(self.outside)
        return (
            f"{beyond}: for training {' and '.join(seen)} (out_of_range: clamp); the annotations "
            "keep them, and validate and evaluate count them as they are"
        )
