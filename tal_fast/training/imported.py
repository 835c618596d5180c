# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the models' official code, turned into ones that prediction takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tal_fast.errors import ConfigError, TrainingError, counted, listing, os_reason
from tal_fast.models import Detector, detector_of
from tal_fast.models.base import plain_defaults
from tal_fast.models.called import built
from tal_fast.training.checkpoint import described_content, read_torch_file, save_model
from tal_fast.training.config import ExperimentConfig, save_config
from tal_fast.training.finite import not_finite_weights

__all__ = ["WEIGHTS", "import_checkpoint"]

WEIGHTS = ("ema", "raw")
"""Which weights of an official checkpoint: their moving average, or those of the last step."""

# Where the official codes keep them; a file that is a state dict itself has one kind alone.
_KEYS = {"ema": ("state_dict_ema", "model_ema"), "raw": ("state_dict", "model")}
_SHOWN = 4


def import_checkpoint(
    path: str | Path,
    config: ExperimentConfig,
    classes: tuple[str, ...],
    out: str | Path,
    *,
    weights: str | None = None,
) -> Path:
    """Writes the weights of an official checkpoint as ``checkpoint.pt`` beside ``config.yaml``.

    Args:
        path: written by the official code of the model; a bare state dict will do.
        config: settings of the model; sizes must be those of the checkpoint.
        classes: names of its classes, in the order of its outputs.
        out: directory, made when missing.
        weights: among :data:`WEIGHTS`; the average where there is one when None.

    Returns:
        The new checkpoint.

    Raises:
        ConfigError: ``weights`` is unknown or not in the file, or the number of classes differs.
        TrainingError: the file cannot be read, or its weights are not those of the model.
    """
    if weights not in (None, *WEIGHTS):
        raise ConfigError(f"weights: expected {' or '.join(WEIGHTS)}, got {weights!r}")
    state = _weights(Path(path), read_torch_file(path), weights)
    detector = detector_of(config.name)
    in_channels, num_classes = detector.sizes_of(state) or (None, None)
    if in_channels is None or num_classes is None:
        raise TrainingError(f"{path}: expected the weights of {_named(detector, config)}, "
                            f"found the keys {listing(list(state), _SHOWN, ', ')}")  # fmt: skip
    if num_classes != len(classes):
        raise ConfigError(
            f"{path}: has {counted(num_classes, 'class')}, the data has {len(classes)}: "
            f"{listing(classes, _SHOWN, ', ')}"
        )
    with plain_defaults("meta"):
        model = built(detector, in_channels, num_classes, config.detector)
    _check_fit(path, model, state, _named(detector, config))
    first = not_finite_weights(state)
    if first is not None:
        raise TrainingError(f"{path}: the weights are not finite; the first is {first}")
    model.load_state_dict(state, assign=True)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / "config.yaml")
    except OSError as error:
        raise TrainingError(f"cannot write to {out}: {os_reason(error)}") from error
    save_model(out / "checkpoint.pt", model.state_dict(), config, classes, in_channels)
    return out / "checkpoint.pt"


def _weights(path: Path, loaded: Any, wanted: str | None) -> dict[str, Tensor]:
    """Returns the state dict that is asked for, without the prefix of a wrapper."""
    if not isinstance(loaded, Mapping) or not loaded:
        raise TrainingError(f"{path}: expected a checkpoint, found {described_content(loaded)}")
    there = {
        kind: loaded[key]
        for kind, keys in _KEYS.items()
        for key in keys
        if isinstance(loaded.get(key), Mapping)
    }
    if not there and all(isinstance(value, Tensor) for value in loaded.values()):
        there = {"raw": loaded}
    if wanted is None:
        wanted = next((kind for kind in WEIGHTS if kind in there), "ema")
    if wanted not in there:
        raise ConfigError(
            f"{path}: holds no {wanted} weights, but {' and '.join(there) or 'none at all'}; "
            f"found {described_content(loaded)}"
        )
    state = there[wanted]
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise TrainingError(
                f"{path}: expected a tensor for each of the {wanted} weights, found "
                f"{type(value).__name__} for {key!r}"
            )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _named(detector: type[Detector], config: ExperimentConfig) -> str:
    return f"{detector.__name__} ({config.name})"


def _check_fit(path: str | Path, model: Detector, state: Mapping[str, Tensor], what: str) -> None:
    """Refuses weights that are not those of a model, and names what differs.

    What the model has beyond the official one is its own to fill in (``Detector.unofficial``).
    """
    mine = model.state_dict()
    missing = [key for key in mine if key not in state and key not in model.unofficial]
    surplus = [key for key in state if key not in mine and not model.is_repeated(key)]
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(mine[key].shape)}"
        for key in mine
        if key in state and state[key].shape != mine[key].shape
    ]
    faults = [
        f"{fault}: {listing(names, _SHOWN, ', ')}"
        for fault, names in (("missing", missing), ("not of it", surplus), ("other sizes", shapes))
        if names
    ]
    if faults:
        raise TrainingError(f"{path}: not the weights of {what}; {'; '.join(faults)}")
