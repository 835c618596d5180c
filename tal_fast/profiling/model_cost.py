# SPDX-License-Identifier: Apache-2.0
"""What a model costs by its sizes alone: counted without data, weights or arithmetic.

The model is built on torch's ``meta`` device, where tensors have shapes and no values. What is
counted is the mathematics of the model in float32 and run eagerly, on a full batch; kernels that a
device replaces by others (convolutions as products per row of the kernel on a CPU, say) have the
same multiply-adds and other bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tal_fast.errors import ConfigError, counted
from tal_fast.models.base import Detector, Targets, Whole, plain_defaults
from tal_fast.models.registry import recipe
from tal_fast.profiling.cost import Cost, CostCounter, part_of
from tal_fast.training.config import ExperimentConfig, load_config

__all__ = [
    "LengthCost",
    "ModelCost",
    "PerMinute",
    "clips_per_minute",
    "made_targets",
    "model_cost",
    "prediction_macs",
    "step_macs",
    "timing_of",
]

_INSTANCES = 4  # per clip, in a training step
_NO_RECIPE = 256  # rows to count by default, of a model whose recipe names no length
# AdamW reads parameter, gradient and two averages and writes all but the gradient; before that the
# gradients are read for their norm, read again and written, scaled.
_OPTIMIZER_BYTES = 7 * 4 + 3 * 4


@dataclass(frozen=True)
class PerMinute:
    """What a minute of video costs, by clips of one length.

    Attributes:
        clips: number of clips that begin in a minute.
        macs: multiply-adds of the rows of our batches.
        macs_of_recipe: of the rows that the recipe pads clips to.
    """

    clips: float
    macs: float
    macs_of_recipe: float


@dataclass(frozen=True)
class LengthCost:
    """What clips of one length cost.

    Attributes:
        rows: real rows of a clip.
        rows_of_batch: rows that we compute, padding included; everything is counted for these.
        rows_of_recipe: rows that the model's recipe pads the clip to.
        formula: multiply-adds of a forward pass over a clip by part, as ``Detector.flops`` has it;
            None where the model does not say.
        macs: of a forward pass over a clip, by the formula, else counted.
        macs_of_recipe: of the rows of the recipe.
        forward: what a forward pass over one clip in prediction costs.
        step: what forward, loss and backward of a training step cost, by phase.
        by_part: the same of all phases, ``prediction`` and those of the step, by (phase, part).
        by_op: the same by (phase, op).
        left_out: what the step lacks, and why.
        per_minute: None where nobody says how long a row is.
    """

    rows: int
    rows_of_batch: int
    rows_of_recipe: int
    formula: dict[str, int] | None
    macs: float
    macs_of_recipe: float
    forward: Cost
    step: dict[str, Cost]
    by_part: dict[tuple[str, str], Cost]
    by_op: dict[tuple[str, str], Cost]
    left_out: tuple[str, ...]
    per_minute: PerMinute | None

    @property
    def whole_step(self) -> Cost:
        """Forward, loss and backward together."""
        total = Cost()
        for cost in self.step.values():
            total.add(cost)
        return total


@dataclass(frozen=True)
class ModelCost:
    """What a model costs.

    Attributes:
        name: as it was asked for.
        detector: its class.
        channels: channels of a feature row.
        classes: number of classes.
        parameters: learned numbers, those that several names share once.
        parameters_by_part: the same by part.
        batch: clips of a training step.
        timing: frames per second and frames between rows, if known.
        overlap: share of a clip that the next one repeats in prediction.
        optimizer_bytes: what clipping and AdamW touch per step, by formula.
        lengths: of each length that was asked for.
    """

    name: str
    detector: str
    channels: int
    classes: int
    parameters: int
    parameters_by_part: dict[str, int]
    batch: int
    timing: tuple[float, float] | None
    overlap: float
    optimizer_bytes: int
    lengths: tuple[LengthCost, ...]


def model_cost(
    name: str,
    *,
    channels: int,
    classes: int,
    lengths: Sequence[int] = (),
    batch: int | None = None,
    settings: Sequence[str] = (),
    fps: float | None = None,
    stride: float | None = None,
) -> ModelCost:
    """Counts what a model costs.

    Args:
        name: of the model (:func:`tal_fast.models.recipe`).
        channels: channels of a feature row.
        classes: number of classes.
        lengths: real rows of clips; the length that the model's recipe names when empty.
        batch: clips of a training step; the model's own when None.
        settings: over those of the model, ``section.field=value``.
        fps: frames per second of the videos; those that the preset is made for when None.
        stride: frames between rows; likewise.

    Raises:
        ConfigError: an argument does not fit, or the model cannot be built or run on ``meta``.
    """
    for argument, value in (("channels", channels), ("classes", classes), ("batch", batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{argument}: expected at least 1, got {value}")
    for length in lengths:
        if length < 1:
            raise ConfigError(f"lengths: expected at least 1 row, got {length}")
    chosen = recipe(name)
    timing = timing_of(chosen.detector, name, fps, stride)
    config = load_config(preset=name, overrides=settings)
    model = _on_meta(chosen.detector, name, channels, classes, config)
    batch = config.training.batch_size if batch is None else batch
    sizes: dict[str, int] = {}
    for parameter, count in ((n, p.numel()) for n, p in model.named_parameters()):
        part = part_of(parameter.rpartition(".")[0])
        sizes[part] = sizes.get(part, 0) + count
    if not lengths:
        smallest = model.rows_of_recipe(config.detector, 1)
        lengths = (smallest if smallest > 1 else _NO_RECIPE,)
    parameters = sum(sizes.values())
    return ModelCost(
        name=name,
        detector=f"{chosen.detector.__module__}:{chosen.detector.__qualname__}",
        channels=channels,
        classes=classes,
        parameters=parameters,
        parameters_by_part=sizes,
        batch=batch,
        timing=timing,
        overlap=model.overlap(config.detector),
        optimizer_bytes=_OPTIMIZER_BYTES * parameters,
        lengths=tuple(_of_length(model, name, config, rows, batch, timing) for rows in lengths),
    )


def timing_of(
    detector: type[Detector], name: str, fps: float | None, stride: float | None
) -> tuple[float, float] | None:
    """Returns frames per second and frames between two rows, where they are known.

    Args:
        detector: the model's class.
        name: the preset, whose timing holds where none is given.
        fps: frames per second, or None.
        stride: frames between two rows, or None.

    Raises:
        ConfigError: one is out of range, or only one is known.
    """
    for argument, value in (("fps", fps), ("stride", stride)):
        if value is not None and not value > 0:
            raise ConfigError(f"{argument}: expected more than 0, got {value}")
    of_preset = detector.timing.get(name)
    if of_preset is not None:
        return (of_preset[0] if fps is None else fps, of_preset[1] if stride is None else stride)
    if (fps is None) != (stride is None):
        lacking = "fps" if fps is None else "stride"
        raise ConfigError(f"{lacking}: expected with the other, {name!r} does not say: give both")
    return None if fps is None or stride is None else (fps, stride)


def _on_meta(
    detector: type[Detector], name: str, channels: int, classes: int, config: ExperimentConfig
) -> Detector:
    try:
        with plain_defaults("meta"):
            return detector(channels, classes, config.detector)
    except (ValueError, RuntimeError) as error:
        sizes = f"{counted(channels, 'channel')} and {counted(classes, 'class')}"
        raise ConfigError(f"model {name!r} for {sizes}: {_first_sentence(error)}") from error


def _first_sentence(error: BaseException) -> str:
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return sentence.removesuffix(".") or type(error).__name__


def _of_length(
    model: Detector,
    name: str,
    config: ExperimentConfig,
    rows: int,
    batch: int,
    timing: tuple[float, float] | None,
) -> LengthCost:
    padded = model.rows_needed(config.detector, rows)
    of_recipe = model.rows_of_recipe(config.detector, rows)
    counter = CostCounter(model)
    with _plain_attention():
        _predict(model, name, counter, rows, padded)
        left_out = _step(model, name, counter, rows, padded, batch)
        counted = counter.total("prediction").macs
        formula = _formula(model, padded)
        macs: float = counted if formula is None else sum(formula.values())
        longer = macs
        if of_recipe != padded:
            recipes = _formula(model, of_recipe)
            if recipes is not None:
                longer = sum(recipes.values())
            else:
                apart = CostCounter(model)
                _predict(model, name, apart, rows, of_recipe)
                longer = apart.total("prediction").macs
    phases = dict.fromkeys(phase for phase, _ in counter.by_part if phase != "prediction")
    per_minute = None
    if timing is not None:
        clips = clips_per_minute(model, config, timing, rows, padded)
        per_minute = PerMinute(clips, clips * macs, clips * longer)
    return LengthCost(
        rows=rows,
        rows_of_batch=padded,
        rows_of_recipe=of_recipe,
        formula=formula,
        macs=macs,
        macs_of_recipe=longer,
        forward=counter.total("prediction"),
        step={phase: counter.total(phase) for phase in phases},
        by_part=counter.by_part,
        by_op=counter.by_op,
        left_out=left_out,
        per_minute=per_minute,
    )


def clips_per_minute(
    model: Detector, config: ExperimentConfig, timing: tuple[float, float], rows: int, padded: int
) -> float:
    """Returns how many clips begin in a minute of video.

    Args:
        model: gives the overlap of clips.
        config: its settings.
        timing: frames per second, and frames between two rows.
        rows: real rows of a clip.
        padded: rows with padding.
    """
    # A video that is shorter than a clip has no second one to share rows with.
    new = rows * (1.0 - model.overlap(config.detector)) if padded == rows else rows
    return 60.0 * timing[0] / timing[1] / new


def prediction_macs(
    config: ExperimentConfig, channels: int, classes: int, padded: int
) -> tuple[float, str]:
    """Returns the multiply-adds of a forward pass over a clip, and how they are known.

    Args:
        config: of the model.
        channels: channels of a feature row.
        classes: number of classes.
        padded: rows of the clip, padding included.

    Returns:
        The number, and ``formula`` (the model's own) or ``counted``.
    """
    model = _on_meta(recipe(config.name).detector, config.name, channels, classes, config)
    formula = _formula(model, padded)
    if formula is not None:
        return float(sum(formula.values())), "formula"
    counter = CostCounter(model)
    with _plain_attention():
        _predict(model, config.name, counter, padded, padded)
    return counter.total("prediction").macs, "counted"


def step_macs(
    config: ExperimentConfig, channels: int, classes: int, rows: int, padded: int
) -> float:
    """Returns the multiply-adds of a training step on one clip, counted over all its rows.

    Args:
        config: of the model.
        channels: channels of a feature row.
        classes: number of classes.
        rows: real rows of the clip.
        padded: rows with padding.
    """
    model = _on_meta(recipe(config.name).detector, config.name, channels, classes, config)
    counter = CostCounter(model)
    with _plain_attention():
        _step(model, config.name, counter, rows, padded, 1)
    return counter.total(*{phase for phase, _ in counter.by_part}).macs


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Has torch's encoder layers run op by op: it counts its fused ones as nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _formula(model: Detector, rows: int) -> dict[str, int] | None:
    try:
        return model.flops(rows)
    except NotImplementedError:
        return None


def _batch(model: Detector, clips: int, rows: int, length: int) -> tuple[Tensor, ...]:
    features = torch.empty(clips, length, model.in_channels, dtype=torch.float32, device="meta")
    return features, torch.empty(clips, length, dtype=torch.bool, device="meta")


def _predict(model: Detector, name: str, counter: CostCounter, rows: int, length: int) -> None:
    """Counts a forward pass over one clip in prediction."""
    model.eval().requires_grad_(False)
    features, mask = _batch(model, 1, rows, length)
    try:
        with counter.counting("prediction"):
            model(features, mask)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model {name!r}: a forward pass over {counted(length, 'row')} on the meta device, "
            "where tensors "
            f"have no values: {_first_sentence(error)}"
        ) from error
    finally:
        model.train().requires_grad_(True)


def _step(
    model: Detector, name: str, counter: CostCounter, rows: int, length: int, batch: int
) -> tuple[str, ...]:
    """Counts forward, loss and backward of a batch; returns what had to be left out."""
    left_out = ["optimizer: the fused AdamW has no meta kernel; its bytes are a formula"]
    features, mask = _batch(model, batch, rows, length)
    with counter.counting("forward"):
        output = model(features, mask)
    targets = made_targets(model.num_classes, batch, rows, length)
    try:
        with counter.counting("loss"):
            total = model.loss(output, targets, Whole(targets))["total"]
    except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
        counter.forget("loss")
        left_out.append(f"loss: it asks for values ({_first_sentence(error)})")
        outputs = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
        if not outputs:
            left_out.append("backward: no output asks for a gradient")
            return tuple(left_out)
        total = torch.stack([x.sum() for x in outputs]).sum()
    with counter.counting("backward"):
        total.backward()
    model.zero_grad(set_to_none=True)
    return tuple(left_out)


def made_targets(classes: int, batch: int, rows: int, length: int) -> Targets:
    """Returns instances side by side in each clip.

    Args:
        classes: number of classes.
        batch: clips.
        rows: real rows of each.
        length: rows with padding.
    """
    edges = torch.linspace(0, rows, 2 * _INSTANCES + 1, dtype=torch.float64)[1:]
    labels = torch.arange(_INSTANCES) % classes
    return Targets(
        labels.repeat(batch), edges.view(-1, 2).repeat(batch, 1), [_INSTANCES] * batch, length
    )
