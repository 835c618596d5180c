# SPDX-License-Identifier: Apache-2.0
"""mAP is in points from 0 to 100: numbers that look as if they were of the scale from 0 to 1."""

from __future__ import annotations

from tal_fast.errors import ConfigError

__all__ = ["note_on_difference", "require_level"]

# A spread or a width below it is far smaller than that of any study; of 0..1 it is 10 points.
_LEAST_DIFFERENCE = 0.1


def require_level(option: str, value: float) -> None:
    """Refuses an mAP that is not in points above 1: nobody means less, but many write 0..1.

    Args:
        option: as the message names it.
        value: that was given.

    Raises:
        ConfigError: it is not above 1 and at most 100; the message has both readings of one that is
            at most 1.
    """
    if 1.0 < value <= 100.0:
        return
    hint = ""
    if 0.0 < value <= 1.0:
        hint = (
            f": {value:g} points are next to nothing; if the scale from 0 to 1 is meant, that is "
            f"{option} {100.0 * value:g}"
        )
    raise ConfigError(
        f"{option}: expected mAP in points, above 1 and at most 100, got {value:g}{hint}"
    )


def note_on_difference(option: str, value: float, wanted: str = "") -> str | None:
    """Returns a note on a width or spread that is hardly meant in points; None of others.

    Args:
        option: as the note names it.
        value: above 0.
        wanted: how to write the other reading; ``{}`` stands for its number.
    """
    if value >= _LEAST_DIFFERENCE:
        return None
    other = (wanted or option + " {}").format(f"{100.0 * value:g}")
    return (
        f"{option}: {value:g} is taken as points of 100; if the scale from 0 to 1 is meant, that "
        f"is {other}"
    )
