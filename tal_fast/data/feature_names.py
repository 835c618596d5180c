# SPDX-License-Identifier: Apache-2.0
"""Features that are there under names that differ from the videos' in capitals alone."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping

from tal_fast.data.feature_streams import OpenStream
from tal_fast.errors import counted

__all__ = ["other_capitals", "rename"]


def other_capitals(opened: OpenStream, missing: Iterable[str]) -> dict[str, str]:
    """Returns the videos whose file or array is there with other capitals -> its name.

    Args:
        opened: the stream.
        missing: videos without features in it.

    Raises:
        DataError: the folder cannot be read.
    """
    names = list(missing)
    entries = opened.entries(names)
    there = {entry.casefold(): entry for entry in entries}
    there |= {entry: entry for entry in entries}  # what is there as it should is no other name
    found = {}
    for video in names:
        entry = opened.entry(video)
        twin = there.get(entry, there.get(entry.casefold(), entry))
        if twin != entry:
            found[video] = twin
    return found


def rename(
    opened: OpenStream, twins: Mapping[str, str], missing: int, origin: str = "the annotations"
) -> str:
    """Says what to do about such videos. Nothing does it for the user: names are never guessed.

    Args:
        opened: the stream.
        twins: what :func:`other_capitals` returned, with one at least.
        missing: videos without features.
        origin: what names the videos.
    """
    video, entry = next(iter(twins.items()))
    how = f"the videos in {origin}"
    if opened.is_folder:
        paths = (os.path.join(opened.stream.path, name) for name in (entry, opened.entry(video)))
        how = f"the files ({shlex.join(('mv', *paths))}) or {how}"
    which = f"{len(twins)} of {counted(missing, 'video', 'are')}" if missing > 1 else "it is"
    return (
        f"{which} there with other capitals, such as {entry!r} for {video!r}: names must be the "
        f"same letter by letter; rename {how}"
    )
