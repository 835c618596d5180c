# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what prediction needs, and what going on with a training needs.

Files hold tensors and plain values only and are read with ``weights_only=True``: loading one never
runs code. They are written under a temporary name and renamed, so a killed run leaves the last
complete one.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tal_fast.errors import TrainingError
from tal_fast.models import Detector, detector_of
from tal_fast.training.config import ExperimentConfig, config_from_dict, config_to_dict

__all__ = ["load_model", "read_checkpoint", "save_model", "write_checkpoint"]

_FORMAT = 1


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        TrainingError: the file cannot be written (disk full, no permission).
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": _FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"cannot write the checkpoint {path}: {error}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Raises:
        TrainingError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"no checkpoint at {path}") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise TrainingError(f"{path}: expected checkpoint format {_FORMAT}, found {found}")
    return content


def save_model(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: ExperimentConfig,
    classes: tuple[str, ...],
    in_channels: int,
) -> None:
    """Writes weights with all that is needed to use them."""
    content = {
        "model": dict(weights),
        "config": config_to_dict(config),
        "classes": list(classes),
        "in_channels": in_channels,
    }
    write_checkpoint(path, content)


def load_model(path: str | Path) -> tuple[Detector, ExperimentConfig, tuple[str, ...]]:
    """Builds the model of a checkpoint written by :func:`save_model`, in evaluation mode.

    Returns:
        The model, the settings it was trained with, and the class names in label order.

    Raises:
        TrainingError: the file is missing or damaged, or its weights do not fit its settings.
    """
    content = read_checkpoint(path)
    missing = {"model", "config", "classes", "in_channels"} - content.keys()
    if missing:
        raise TrainingError(f"{path}: not a model checkpoint, it lacks {sorted(missing)}")
    config = config_from_dict(content["config"])
    classes = tuple(content["classes"])
    # Without initial weights: drawing them took longer than reading the trained ones.
    with torch.device("meta"):
        model = detector_of(config.name)(content["in_channels"], len(classes), config.detector)
    try:
        model.load_state_dict(content["model"], assign=True)
    except RuntimeError as error:
        raise TrainingError(f"{path}: weights do not fit the model: {error}") from error
    return model.float().eval(), config, classes
