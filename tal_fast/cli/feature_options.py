# SPDX-License-Identifier: Apache-2.0
"""Options that say which features are meant, and what may be done about faults of the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tal_fast.errors import ConfigError

if TYPE_CHECKING:
    from tal_fast.data.prepare import FeatureChoice, Repairs

__all__ = [
    "FAULTS",
    "FORM",
    "TIMING",
    "AllowPickle",
    "Features",
    "FormOptions",
    "OutOfRange",
    "PackOptions",
    "RepairOptions",
    "SomeFeatures",
    "TimingOptions",
    "feature_choice",
    "named_subsets",
]

FORM, TIMING, FAULTS = "Form of the features", "Rows and seconds", "Faults of the files"

_FEATURES = "Folder or file of features; repeated: streams side by side."
Features = Annotated[list[Path], typer.Option("--features", help=_FEATURES)]
SomeFeatures = Annotated[list[Path] | None, typer.Option("--features", help=_FEATURES)]
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps",
        help="Frames per second of all videos; default: each video's own.",
        rich_help_panel=TIMING,
    ),
]
OutOfRange = Annotated[
    str,
    typer.Option(help="Segments beyond their video: error, clamp or keep.", rich_help_panel=FAULTS),
]


@dataclass(frozen=True)
class FormOptions:
    """How feature files are called and what lies in them."""

    template: Annotated[
        list[str] | None,
        typer.Option(
            help="File or array name with %s for the video; one, or one per --features.",
            rich_help_panel=FORM,
        ),
    ] = None
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Array in each video's file, if that holds several.", rich_help_panel=FORM
        ),
    ] = None
    layout: Annotated[
        str, typer.Option(help="TC for arrays [T, C], CT for [C, T].", rich_help_panel=FORM)
    ] = "TC"


AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickles that hold arrays and nothing else.",
        rich_help_panel=FORM,
    ),
]


@dataclass(frozen=True)
class PackOptions:
    """Whether features are converted."""

    pack: Annotated[
        str | None,
        typer.Option(
            help="Convert into a store: float32, float16 or bfloat16; else left in place.",
            rich_help_panel=FORM,
        ),
    ] = None
    allow_pickle: AllowPickle = False


@dataclass(frozen=True)
class TimingOptions:
    """What a row of features is in time."""

    stride: Annotated[
        float | None, typer.Option(help="Frames between two rows.", rich_help_panel=TIMING)
    ] = None
    frames: Annotated[
        float | None,
        typer.Option(
            help="Frames that a row sees; as the stride, if not given.", rich_help_panel=TIMING
        ),
    ] = None
    fps: Fps = None


@dataclass(frozen=True)
class RepairOptions:
    """What may be done about known faults; nothing by default."""

    out_of_range: OutOfRange = "error"
    non_positive: Annotated[
        str, typer.Option(help="Segments without length: error or drop.", rich_help_panel=FAULTS)
    ] = "error"
    missing: Annotated[
        str,
        typer.Option(
            help="Videos without features: error, or skip in training and prediction.",
            rich_help_panel=FAULTS,
        ),
    ] = "error"
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Leave a video out; may be repeated.", rich_help_panel=FAULTS),
    ] = None

    def repairs(self) -> Repairs:
        """Returns them as :mod:`tal_fast.data.prepare` takes them."""
        from tal_fast.data.prepare import Repairs

        return Repairs(self.out_of_range, self.non_positive, self.missing, self.exclude or ())


def feature_choice(
    paths: Sequence[Path],
    form: FormOptions,
    timing: TimingOptions,
    packing: PackOptions,
    *,
    resized: bool = False,
) -> FeatureChoice:
    """Returns the features that some options choose, as :mod:`tal_fast.data.prepare` takes them."""
    from tal_fast.data.prepare import FeatureChoice

    assert timing.stride is not None  # a command has a default, or finds it out before
    return FeatureChoice(
        paths,
        form.template,
        form.key,
        form.layout,
        stride=timing.stride,
        frames=timing.stride if timing.frames is None else timing.frames,
        fps=timing.fps,
        resized=resized,
        pack=packing.pack,
        allow_pickle=packing.allow_pickle,
    )


def named_subsets(given: list[str] | None) -> dict[str, list[str]] | None:
    """Returns split -> its subsets, from NAME=SUBSET; None where none is given.

    Raises:
        ConfigError: one has another form.
    """
    splits: dict[str, list[str]] = {}
    for pair in given or ():
        name, equal, subset = pair.partition("=")
        if not (name and equal and subset):
            raise ConfigError(f"--split: expected NAME=SUBSET, got {pair!r}")
        splits.setdefault(name, []).append(subset)
    return splits or None
