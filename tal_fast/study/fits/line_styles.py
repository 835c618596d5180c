# SPDX-License-Identifier: Apache-2.0
"""How families and measured levels look, the same in every picture of fits."""

from __future__ import annotations

from typing import Any

from tal_fast.study.picture import INK

__all__ = ["COLOURS", "draw_levels"]

# One colour per family, the same in every picture, told apart in grey and by colour-blind eyes by
# the dashes.
COLOURS: dict[str, tuple[str, Any]] = {
    "wbl4": ("#00a0c8", "-"),
    "mmf4": ("#1f9e9a", (0, (6, 2))),
    "pow4": ("#5aa02c", (0, (4, 1, 1, 1))),
    "hill": ("#7a3b8f", (0, (2, 1))),
    "pow3": ("#c77d0a", "-"),
    "exp3": ("#b5402a", (0, (6, 2))),
    "bnsl1": ("#16307a", (0, (1, 1))),
    "log2": ("#8a6d3b", (0, (4, 1, 1, 1))),
    "gompertz": ("#d0527f", (0, (2, 1))),
    "logistic": ("#707782", (0, (6, 2, 1, 2))),
    "last1": ("#1a1c20", (0, (1, 3))),
}


def draw_levels(axes: Any, share: Any, mean: Any, spread: Any, label: str) -> None:
    """Draws measured levels.

    Args:
        axes: the panel.
        share: p in percent, [n].
        mean: mAP in points, [n].
        spread: standard deviation in points, [n].
        label: what the bars are.
    """
    axes.errorbar(
        share,
        mean,
        yerr=spread,
        linestyle="none",
        marker="o",
        markersize=4.5,
        capsize=2,
        elinewidth=1,
        color=INK,
        zorder=5,
        label=label,
    )
