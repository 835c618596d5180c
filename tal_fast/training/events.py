# SPDX-License-Identifier: Apache-2.0
"""TensorBoard events, where TensorBoard is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EventWriter"]


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
