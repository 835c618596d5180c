# SPDX-License-Identifier: Apache-2.0
"""Which features are meant: folders and files, and what the names of videos become there.

A *stream* is a folder with a file per video, one file with an array per video, or a folder of
safetensors shards. A video's features are the columns of its streams side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tal_fast.data.feature_folder import is_file_name
from tal_fast.data.formats.safetensors_files import store_index
from tal_fast.errors import ConfigError
from tal_fast.typing import FilePath

__all__ = ["Stream", "streams_of"]


@dataclass(frozen=True)
class Stream:
    """Where one stream of features lies.

    Attributes:
        path: a folder of files, a folder of safetensors shards, or a file with an array per video.
        template: what the video's name becomes: a file name in the folder (``"v_%s.npy"``), or the
            name of an array in the file or store (``"%s"``, ``"%s/feats"``). None takes ``"%s"``
            with the ending that all files of the folder share.
        key: name of the array in each video's own file, when such a file holds several.
    """

    path: str
    template: str | None = None
    key: str | None = None


def streams_of(
    paths: FilePath | Iterable[FilePath],
    template: str | Sequence[str] | None = None,
    key: str | Sequence[str] | None = None,
    *,
    around: tuple[str, str] | None = None,
) -> tuple[Stream, ...]:
    """Makes a stream per path.

    Args:
        paths: a folder of files, a folder of safetensors shards, or a file with an array per video;
            several of them are streams whose channels follow each other.
        template: for all of them, or one each (:class:`Stream`).
        key: for all of them, or one each.
        around: text before and after the video's name in file names, where no template is given;
            before it in an array's name, which ends with it.

    Raises:
        ConfigError: if there is no path, a template (or the texts around names) has not one ``%s``
            or cannot be part of a file's name, there are fewer or more templates than paths, or a
            template comes with a text other than ``.npy`` around names.
    """
    chosen = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not chosen:
        raise ConfigError("features: expected at least one folder or file, got none")
    columns = []
    for name, value in (("template", template), ("key", key)):
        each = [value] * len(chosen) if value is None or isinstance(value, str) else list(value)
        if len(each) == 1:
            each *= len(chosen)
        if len(each) != len(chosen):
            raise ConfigError(
                f"features: expected one {name} or {len(chosen)}, one per folder, got {len(each)}"
            )
        columns.append(each)
    if around is not None and template is not None and around not in (("", ""), ("", ".npy")):
        raise ConfigError("features: expected a template, or prefix and suffix, got both")
    streams = tuple(
        Stream(os.fspath(path), _template(path, around) if template is None else given, name)
        for path, given, name in zip(chosen, *columns, strict=True)
    )
    for stream in streams:
        if stream.template is not None:
            _check_template(stream.template)
    return streams


def _check_template(template: str) -> None:
    """Checks that one video's name makes one name of a file or array."""
    if template.count("%s") != 1:
        raise ConfigError(
            f"features: expected a template with one %s for the video's name, got {template!r}"
        )
    if not is_file_name(template):
        raise ConfigError(
            f"features: expected a template that the name of a file can have, got {template!r}"
        )


def _template(path: FilePath, around: tuple[str, str] | None) -> str | None:
    if around is None:
        return None
    before, after = around
    if os.path.isdir(path):
        has_files = store_index(os.fspath(path)) is None
    else:
        has_files = not os.path.lexists(path)  # what is not there is reported as a folder
    return f"{before}%s{after}" if has_files else f"{before}%s"
