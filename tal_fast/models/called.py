# SPDX-License-Identifier: Apache-2.0
"""The calls of a model, whose mistakes are told by class, method and shapes.

Anybody may write one (``docs/adding-a-model.md``). What its methods return is checked against what
:class:`~tal_fast.models.Detector` says, and an error in one of them names the method, the shapes it
was given and the line, instead of a page of this library's own calls.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tal_fast.errors import ConfigError, TalFastError
from tal_fast.models.base import Candidates, Detector, Targets, Whole

__all__ = ["check_labels", "losses_of", "output_of", "proposals_of"]


def output_of(model: Detector, features: Tensor, mask: Tensor) -> Any:
    """Returns what a model's ``forward`` gives; arguments as there.

    Raises:
        ConfigError: it fails in code of one's own, or gives nothing.
    """
    with _told(model, "forward", features=features, mask=mask):
        output = model(features, mask)
    if output is None:
        raise ConfigError(f"{_name(model)}.forward: expected a NamedTuple of tensors, got None")
    return output


def losses_of(model: Detector, output: Any, targets: Targets, whole: Whole) -> dict[str, Tensor]:
    """Returns what a model's ``loss`` gives; arguments as there.

    Raises:
        ConfigError: it fails in code of one's own, or gives something else than scalars by name.
    """
    with _told(model, "loss", output=output, labels=targets.labels, edges=targets.edges):
        losses: Any = model.loss(output, targets, whole)
    scalars = isinstance(losses, dict) and all(
        isinstance(value, Tensor) and value.dim() == 0 for value in losses.values()
    )
    if not scalars or "total" not in losses:
        got = type(losses).__name__
        if isinstance(losses, dict):
            shapes = {key: list(getattr(item, "shape", "?")) for key, item in losses.items()}
            got = f"a dict of shapes {shapes}"
        raise ConfigError(
            f"{_name(model)}.loss: expected a dict of scalar tensors with 'total' among them, got "
            f"{got}"
        )
    return dict(losses)


def proposals_of(model: Detector, output: Any, mask: Tensor) -> Candidates:
    """Returns what a model's ``candidates`` gives; arguments as there.

    Raises:
        ConfigError: it fails in code of one's own, or gives something else than candidates.
    """
    with _told(model, "candidates", output=output, mask=mask):
        given: Any = model.candidates(output, mask)
    return _checked(model, given, len(mask))


def _checked(model: Detector, given: Any, clips: int) -> Candidates:
    """Returns candidates that have the shapes and types of :class:`Candidates`.

    Waits for no device: labels are compared with the classes by :func:`check_labels`.

    Args:
        model: whose they are.
        given: what its ``candidates`` returned.
        clips: number of clips B.

    Raises:
        ConfigError: they have not.
    """
    where = f"{_name(model)}.candidates"
    if not isinstance(given, Candidates):
        raise ConfigError(f"{where}: expected Candidates, got {_shown(given)}")
    parts = {name: value for name, value in given._asdict().items() if value is not None}
    no_tensors = [name for name, value in parts.items() if not isinstance(value, Tensor)]
    if no_tensors or len(parts) < 3:
        raise ConfigError(
            f"{where}: expected the tensors scores, labels and segments, and valid or None, got "
            f"{_shown(given)}"
        )
    count = given.scores.shape[1] if given.scores.dim() == 2 else None
    whole = {"labels": (clips, count), "segments": (clips, count, 2), "valid": (clips, count)}
    wanted = {"scores": (clips, count), **whole}
    if any(tuple(value.shape) != wanted[name] for name, value in parts.items()):
        raise ConfigError(
            f"{where}: expected scores [{clips}, K], labels [{clips}, K], segments [{clips}, K, 2] "
            f"and valid [{clips}, K] or None, got {_shown(given)}"
        )
    kinds = {
        "scores": ("floating point", given.scores.is_floating_point()),
        "labels": ("int64", given.labels.dtype == torch.int64),
        "segments": ("floating point", given.segments.is_floating_point()),
        "valid": ("bool", given.valid is None or given.valid.dtype == torch.bool),
    }
    for name, (kind, fits) in kinds.items():
        if not fits:
            raise ConfigError(f"{where}: expected {name} of {kind}, got {parts[name].dtype}")
    return given


def check_labels(model: Detector, candidates: Candidates) -> None:
    """Checks on the host that candidates are of classes that there are.

    Args:
        model: whose they are.
        candidates: on the CPU.

    Raises:
        ConfigError: a label is no class.
    """
    labels = candidates.labels
    wrong = (labels < 0) | (labels >= model.num_classes)
    if candidates.valid is not None:
        wrong &= candidates.valid
    if bool(wrong.any()):
        raise ConfigError(
            f"{_name(model)}.candidates: expected labels in [0, {model.num_classes}), got "
            f"{int(labels[wrong][0])}"
        )


@contextlib.contextmanager
def _told(model: Detector, method: str, **given: Any) -> Iterator[None]:
    """Names the method, what it was given and the line where one's own code fails.

    A lack of memory is no mistake of the model, and a fault of this library keeps its traceback.
    """
    try:
        yield
    except (TalFastError, MemoryError):
        raise
    except Exception as error:
        # By their words: ops and torch have no type for it on a CPU.
        memory = "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
        if memory or type(model).__module__.partition(".")[0] == "tal_fast":
            raise
        shapes = ", ".join(f"{name} {_shown(value)}" for name, value in given.items())
        frame = _own_line(model, error)
        line = f", line {frame.lineno} of {frame.filename}" if frame is not None else ""
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{_name(model)}.{method}, given {shapes}: {type(error).__name__}: {reason}{line} "
            "(TAL_FAST_TRACEBACK=1 shows the traceback)"
        ) from error


def _own_line(model: Detector, error: BaseException) -> traceback.FrameSummary | None:
    """Returns where, in the file of a model's class, an error came from."""
    file = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame for frame in reversed(frames) if frame.filename == file), None)


def _name(model: Detector) -> str:
    return type(model).__name__


def _shown(value: Any) -> str:
    """Returns what a value is, tensors by their shape."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        words = [_shown(item) for item in value]
        if names is not None:
            words = [f"{name} {word}" for name, word in zip(names, words, strict=True)]
        return f"{type(value).__name__}({', '.join(words)})"
    return "None" if value is None else type(value).__name__
