# SPDX-License-Identifier: Apache-2.0
"""The calls of a model, whose mistakes are told by class, method and shapes.

Anybody may write one (``docs/adding-a-model.md``). What its methods return is checked against what
:class:`~tal_fast.models.Detector` says, and an error in one of them names the method, the shapes it
was given and the line, instead of a page of this library's own calls.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tal_fast.data.clips import ClipSet
from tal_fast.data.dataset import TALDataset
from tal_fast.errors import ConfigError, TalFastError
from tal_fast.models.base import Candidates, Detector, ParameterGroup, Targets, Whole

__all__ = [
    "built",
    "check_proposals",
    "clip_set_of",
    "groups_of",
    "is_own",
    "learn_once",
    "losses_of",
    "not_finite",
    "output_of",
    "proposals_of",
    "started",
]

# What gives a total that nothing can be learned from.
_CUT = "detach(), item(), numpy(), no_grad() or an argmax on the way cuts it off"


def is_own(detector: type[Detector]) -> bool:
    """Tells whether a class is somebody's own, and none of this library."""
    return detector.__module__.partition(".")[0] != "tal_fast"


def built(detector: type[Detector], in_channels: int, num_classes: int, config: Any) -> Detector:
    """Returns a new model; arguments as of :class:`~tal_fast.models.Detector`.

    Raises:
        ConfigError: its constructor takes other arguments, fails in code of one's own, or does not
            hand them on.
    """
    where = f"{_name(detector)}.__init__"
    expected = "(self, in_channels, num_classes, config)"
    try:
        # Of the function: __new__ or a metaclass would show another signature.
        parameters = inspect.signature(detector.__init__)
        parameters.bind(None, in_channels, num_classes, config)
    except TypeError:
        raise ConfigError(f"{where}: expected {expected}, found {parameters}") from None
    given = {"in_channels": in_channels, "num_classes": num_classes, "config": config}
    with _told(detector, "__init__", **given):
        model = detector(in_channels, num_classes, config)
    lost = [key for key, value in given.items() if getattr(model, key, None) != value]
    if lost and is_own(detector):
        raise ConfigError(
            f"{where}: expected it to call super().__init__(in_channels, num_classes, config); "
            f"afterwards {lost[0]} is {_shown(getattr(model, lost[0], None))}, not "
            f"{_shown(given[lost[0]])}"
        )
    return model


def started(model: Detector, instances: Sequence[int]) -> Detector:
    """Has a model adapt its weights to the training data, and returns it.

    Args:
        model: with fresh weights.
        instances: number of training instances of each class.

    Raises:
        ConfigError: it fails in code of one's own.
    """
    with _told(model, "start", instances=instances):
        model.start(instances)
    return model


def clip_set_of(
    detector: type[Detector],
    config: Any,
    data: TALDataset,
    videos: Sequence[str],
    *,
    training: bool,
) -> ClipSet:
    """Returns what a model learns from or looks at; arguments as of its ``clips``.

    Raises:
        ConfigError: it fails in code of one's own, or gives something else.
    """
    with _told(detector, "clips", config=config, dataset=data, videos=videos, training=training):
        clips: Any = detector.clips(config, data, videos, training=training)
    members = [member for member in vars(ClipSet) if not member.startswith("_")]
    lacking = [member for member in ("__len__", *members) if not hasattr(clips, member)]
    if lacking:
        raise ConfigError(
            f"{_name(detector)}.clips: expected a tal_fast.data.ClipSet, got {_shown(clips)}, "
            f"which has no {lacking[0]}"
        )
    return clips


def groups_of(model: Detector) -> list[ParameterGroup]:
    """Returns a model's groups of parameters.

    Raises:
        ConfigError: it fails in code of one's own, or gives something else or no parameter.
    """
    with _told(model, "parameter_groups"):
        groups: Any = model.parameter_groups()
        fits = isinstance(groups, list) and all(isinstance(g, ParameterGroup) for g in groups)
    if not fits:
        raise ConfigError(
            f"{_name(model)}.parameter_groups: expected a list of ParameterGroup, got "
            f"{_shown(groups)}"
        )
    if not any(group.parameters for group in groups):
        raise ConfigError(f"{_name(model)}.parameter_groups: expected parameters, got none")
    return groups


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
        ConfigError: it fails in code of one's own, gives something else than scalars by name, or a
            total that does not depend on the parameters where gradients are recorded.
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
    if torch.is_grad_enabled() and not losses["total"].requires_grad:
        raise ConfigError(
            f"{_name(model)}.loss: expected a 'total' that depends on the parameters, got one "
            f"without a gradient: {_CUT}"
        )
    return dict(losses)


def learn_once(model: Detector, losses: dict[str, Tensor]) -> None:
    """Goes back from a loss to the parameters, whose gradients it leaves.

    Args:
        model: in training, without gradients.
        losses: of :func:`losses_of`.

    Raises:
        ConfigError: that fails in code of one's own, or reaches no parameter.
    """
    with _told(model, "loss", backward=losses["total"]):
        losses["total"].backward()
    if all(parameter.grad is None for parameter in model.parameters()):
        raise ConfigError(
            f"{_name(model)}.loss: expected a 'total' that depends on the parameters, its gradient "
            f"reaches none of them: {_CUT}"
        )


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

    Waits for no device: labels are compared with the classes by :func:`check_proposals`.

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


def check_proposals(model: Detector, candidates: Candidates) -> None:
    """Checks on the host that candidates are of classes that there are, and end after they start.

    What is not finite is for :func:`not_finite`: it may have other causes.

    Args:
        model: whose they are.
        candidates: on the CPU.

    Raises:
        ConfigError: a label is no class, or a segment ends before its start.
    """
    labels, segments = candidates.labels, candidates.segments
    wrong = (labels < 0) | (labels >= model.num_classes)
    turned = segments[..., 0] > segments[..., 1]
    if candidates.valid is not None:
        wrong &= candidates.valid
        turned &= candidates.valid
    if bool(wrong.any()):
        raise ConfigError(
            f"{_name(model)}.candidates: expected labels in [0, {model.num_classes}), got "
            f"{int(labels[wrong][0])}"
        )
    if bool(turned.any()):
        start, end = (f"{edge:g}" for edge in segments[turned][0].double().tolist())
        raise ConfigError(
            f"{_name(model)}.candidates: expected segments with start <= end, got [{start}, {end}]"
        )


def not_finite(model: Detector, candidates: Candidates) -> ConfigError | None:
    """Returns the error of candidates that are not finite, made of an output that is.

    Args:
        model: whose they are; of one of this library there is none to return.
        candidates: on the CPU.
    """
    if not is_own(type(model)):
        return None
    for name, values in (("scores", candidates.scores), ("segments", candidates.segments)):
        bad = values[~torch.isfinite(values)]
        if len(bad):
            return ConfigError(
                f"{_name(model)}.candidates: expected finite scores and segments, got "
                f"{float(bad[0])} in {len(bad)} of {values.numel()} values of {name}; the output "
                "of forward is finite"
            )
    return None


@contextlib.contextmanager
def _told(model: Detector | type[Detector], method: str, **given: Any) -> Iterator[None]:
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
        if memory or not is_own(_class(model)):
            raise
        shapes = ", ".join(f"{name} {_shown(value)}" for name, value in given.items())
        frame = _own_line(model, error)
        line = f", line {frame.lineno} of {frame.filename}" if frame is not None else ""
        reason = str(error).strip().partition("\n")[0]
        given_words = f", given {shapes}" if shapes else ""
        raise ConfigError(
            f"{_name(model)}.{method}{given_words}: {type(error).__name__}: {reason}{line} "
            "(TAL_FAST_TRACEBACK=1 shows the traceback)"
        ) from error


def _own_line(
    model: Detector | type[Detector], error: BaseException
) -> traceback.FrameSummary | None:
    """Returns where, in the file of a model's class, an error came from."""
    file = getattr(sys.modules.get(_class(model).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame for frame in reversed(frames) if frame.filename == file), None)


def _class(model: Detector | type[Detector]) -> type[Detector]:
    return model if isinstance(model, type) else type(model)


def _name(model: Detector | type[Detector]) -> str:
    return _class(model).__name__


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
    return str(value) if value is None or isinstance(value, int) else type(value).__name__
