# SPDX-License-Identifier: Apache-2.0
"""The numbers of the epochs: ``log.csv``, and TensorBoard events where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tal_fast.data.files import file_in_one_step
from tal_fast.errors import TrainingError, os_reason

__all__ = ["EventWriter", "write_log"]


def write_log(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``log.csv``, a row per epoch; columns in the order in which they first occur.

    Raises:
        TrainingError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*dict.fromkeys(key for row in rows for key in row)])
    writer.writeheader()
    writer.writerows(rows)
    try:
        with file_in_one_step(path) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {os_reason(error)}") from error


class EventWriter:
    """Writes the numbers of an epoch as TensorBoard scalars; does nothing without TensorBoard.

    Args:
        folder: where the event file goes.
        mode: ``auto`` or ``never``.
    """

    def __init__(self, folder: Path, mode: str) -> None:
        self._writer: Any = None
        if mode == "auto" and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Writes every number of ``row`` under ``train/``."""
        if self._writer is not None:
            for key, value in row.items():
                if key not in ("epoch", "step"):
                    self._writer.add_scalar(f"train/{key}", value, step)
