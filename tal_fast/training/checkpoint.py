# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what prediction needs, and what going on with a training needs.

Files hold tensors and plain values only and are read with ``weights_only=True``: loading one never
runs code. They are written under a temporary name, synced and renamed, so a killed run or a
power cut leaves the last complete one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from tal_fast.data.files import file_in_one_step
from tal_fast.data.formats.torch_files import load_torch_file
from tal_fast.data.row_meaning import RowMeaning
from tal_fast.data.unpacked import check_archive
from tal_fast.errors import ConfigError, DataError, TrainingError, listing, os_reason
from tal_fast.models import Detector, detector_of
from tal_fast.models.base import plain_defaults
from tal_fast.models.called import built
from tal_fast.training.config import ExperimentConfig, config_from_dict, config_to_dict
from tal_fast.training.finite import not_finite_weights
from tal_fast.training.foreign_files import foreign_file

__all__ = [
    "Trained",
    "described_content",
    "load_model",
    "load_trained",
    "read_checkpoint",
    "read_torch_file",
    "save_model",
    "write_checkpoint",
]

_FORMAT = 1
# A model may make a few parameters that it does not keep.
_SPARE = 8


class _Sink:
    """A file for torch to write into, which remembers why it could not.

    Torch itself tells a full disk by a line of its own source.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        TrainingError: the file cannot be written (disk full, no permission).
    """
    sink = None
    try:
        with file_in_one_step(path, sync=True) as file:
            sink = _Sink(file)
            torch.save({"format": _FORMAT, **content}, cast(Any, sink))
    except (OSError, RuntimeError) as error:
        cause = error if sink is None or sink.error is None else sink.error
        raise TrainingError(f"cannot write the checkpoint {path}: {os_reason(cause)}") from cause


def read_torch_file(path: str | Path) -> Any:
    """Reads tensors, plain values and NumPy's arrays that torch has saved, onto the CPU.

    Raises:
        TrainingError: the file is missing or damaged, or holds anything else.
    """
    path = Path(path)
    try:
        other = foreign_file(path)
        if other is not None:
            raise TrainingError(f"{path} is not a checkpoint: it is {other}")
        check_archive(path)
        return load_torch_file(path)
    except FileNotFoundError:
        raise TrainingError(f"no checkpoint at {path}") from None
    except TrainingError:
        raise
    except DataError as error:
        raise TrainingError(str(error)) from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {os_reason(error)}") from error
    except Exception as error:  # a broken pickle fails in any way it likes
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise  # no fault of the file
        raise TrainingError(f"{path} is not a readable checkpoint: {_why(error)}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this library onto the CPU.

    Raises:
        TrainingError: the file is missing, damaged or of another kind.
    """
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
        raise TrainingError(
            f"{path}: expected checkpoint format {_FORMAT} of tal_fast, "
            f"found {described_content(checkpoint)}"
        )
    return checkpoint


def _why(error: Exception) -> str:
    """Says in one line why torch cannot read a file; its advice to run what is in it is no help."""
    foreign = re.search(r"Unsupported (?:global|class):? *(?:GLOBAL *)?([\w.]+)", str(error))
    if foreign:
        return (
            f"it holds objects of {foreign[1]}; only tensors and plain values are read, since "
            "anything else may run code"
        )
    return "its content is damaged"


def described_content(loaded: Any) -> str:
    """Says what a file of another tool holds."""
    if not isinstance(loaded, dict):
        return f"an object of type {type(loaded).__name__}"
    if "format" in loaded and not isinstance(loaded["format"], Tensor):
        return f"format {loaded['format']!r:.40}"
    keys = listing([repr(key) for key in loaded], 4, ", ")
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return f"a bare state dict of {len(loaded)} tensors ({keys})"
    return f"the keys {keys}" if loaded else "an empty dict"


def save_model(
    path: Path,
    weights: Mapping[str, Tensor],
    config: ExperimentConfig,
    classes: tuple[str, ...],
    in_channels: int,
    rows: RowMeaning | None = None,
) -> None:
    """Writes weights with all that is needed to use them.

    Args:
        path: the file.
        weights: of the model.
        config: its settings.
        classes: their names in label order.
        in_channels: channels of a feature row.
        rows: what the rows of the training stand for; None where nobody knows.
    """
    checkpoint = {
        "model": dict(weights),
        "config": config_to_dict(config),
        "classes": list(classes),
        "in_channels": in_channels,
        **({} if rows is None else {"rows": rows.to_dict()}),
    }
    write_checkpoint(path, checkpoint)


def _is_weight(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


@contextlib.contextmanager
def _at_most(count: int, path: str | Path) -> Iterator[None]:
    """Stops the building of a model that has far more parameters than its file has weights.

    A damaged number of layers would else take all time and memory there are.
    """
    made = 0

    def note(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > count:
            raise TrainingError(
                f"{path}: weights do not fit the model: its settings make more than {count} "
                "parameters"
            )

    handle = register_module_parameter_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()


class Trained(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: in evaluation mode.
        config: the settings that it was trained with.
        classes: their names in label order.
        rows: what the rows of its training stand for; None in a checkpoint that does not say.
    """

    model: Detector
    config: ExperimentConfig
    classes: tuple[str, ...]
    rows: RowMeaning | None


def load_model(path: str | Path) -> tuple[Detector, ExperimentConfig, tuple[str, ...]]:
    """Returns model, settings and classes of :func:`load_trained`; errors as there."""
    return load_trained(path)[:3]


def load_trained(path: str | Path) -> Trained:
    """Builds the model of a checkpoint written by :func:`save_model`.

    Raises:
        TrainingError: the file is missing or damaged, or its weights do not fit its settings or
            are not finite.
    """
    checkpoint = read_checkpoint(path)
    missing = {"model", "config", "classes", "in_channels"} - checkpoint.keys()
    if missing:
        unfinished = (
            "; it is the state of an unfinished training" if "identity" in checkpoint else ""
        )
        raise TrainingError(
            f"{path}: not a model checkpoint, it lacks {sorted(missing)}{unfinished}"
        )
    weights, classes = checkpoint["model"], checkpoint["classes"]
    if not isinstance(weights, dict) or not all(map(_is_weight, weights, weights.values())):
        raise TrainingError(f"{path}: expected a state dict of real tensors under 'model'")
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise TrainingError(f"{path}: expected names under 'classes', got {classes!r:.60}")
    channels = checkpoint["in_channels"]
    if not isinstance(channels, int) or channels < 1:
        raise TrainingError(f"{path}: expected 'in_channels' above 0, got {channels!r}")
    settings = checkpoint["config"]
    if not isinstance(settings, dict):
        raise TrainingError(f"{path}: expected settings under 'config', got {settings!r:.60}")
    try:
        config = config_from_dict(settings)
        rows = None if "rows" not in checkpoint else RowMeaning.from_dict(checkpoint["rows"])
    except (ConfigError, DataError) as error:
        raise TrainingError(f"{path}: {error}") from error
    # Without initial weights: drawing them took longer than reading the trained ones.
    with plain_defaults("meta"), _at_most(_SPARE * (len(weights) + _SPARE), path):
        model = built(detector_of(config.name), channels, len(classes), config.detector)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(lines[1:] or lines)
        raise TrainingError(
            f"{path}: weights do not fit the model: {reason[:300]}{'…' * (len(reason) > 300)}"
        ) from error
    first = not_finite_weights(weights)
    if first is not None:
        raise TrainingError(f"{path}: the weights are not finite; the first is {first}")
    return Trained(model.float().eval(), config, tuple(classes), rows)
