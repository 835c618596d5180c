# SPDX-License-Identifier: Apache-2.0
"""Settings of an experiment: one set of dataclasses for YAML files, command line and results.

Every field can be set in a YAML file (``training: {epochs: 30}``) or as an override
(``training.epochs=30``). A key that does not exist is an error that suggests the nearest one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError
from tal_fast.models import TadTRConfig, available, model_config

__all__ = [
    "DataConfig",
    "ExperimentConfig",
    "LossConfig",
    "PostprocessConfig",
    "TrainingConfig",
    "config_from_dict",
    "config_to_dict",
    "load_config",
    "preset",
    "preset_names",
    "save_config",
]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(gt=0, lt=2**63)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Above = Annotated[float, Field(gt=0.0)]


def _modes(given: Any) -> Any:
    """Reads ``off,plain`` and single words; ``off`` alone is what YAML calls false."""
    items = given.split(",") if isinstance(given, str) else given
    items = [items] if isinstance(items, bool) else items
    if not isinstance(items, (list, tuple)):
        return items
    modes = ["off" if item is False else item for item in items]
    modes = [item.strip() if isinstance(item, str) else item for item in modes]
    if not modes or len(set(map(str, modes))) != len(modes):
        raise ValueError("expected one or more modes, each once")
    return tuple(modes)


EmaModes = Annotated[
    tuple[Literal["off", "plain", "warmup", "corrected"], ...], BeforeValidator(_modes)
]


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """How videos become windows.

    Attributes:
        window: rows of a window.
        train_overlap: share of a window that the next one repeats, in training.
        test_overlap: the same in prediction.
        min_inside: share of an instance that must lie in a window for the window to own it.
        threads: reader threads.
    """

    window: Positive = 128
    train_overlap: Share = 0.75
    test_overlap: Share = 0.25
    min_inside: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    threads: Positive = 1


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """Weights of losses and matching costs (TadTR, section III-D and its released settings).

    Attributes:
        classification: weight of the focal loss.
        l1: weight of the L1 distance between (centre, width).
        iou: weight of 1 - IoU.
        actionness: weight of the actionness regression.
        focal_alpha: weight of positives in the focal loss.
        focal_gamma: focusing exponent of the focal loss.
        cost_classification: weight of the class in the matching cost.
        cost_l1: weight of the L1 distance in the matching cost.
        cost_iou: weight of the IoU in the matching cost.
        actionness_targets: ``video`` rates a segment by its best IoU with the instances of its own
            window, ``batch`` with those of the whole batch, as the released TadTR code does.
    """

    classification: NonNegative = 2.0
    l1: NonNegative = 5.0
    iou: NonNegative = 2.0
    actionness: NonNegative = 4.0
    focal_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    focal_gamma: NonNegative = 2.0
    cost_classification: NonNegative = 6.0
    cost_l1: NonNegative = 5.0
    cost_iou: NonNegative = 2.0
    actionness_targets: Literal["video", "batch"] = "video"


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """The optimisation.

    Attributes:
        budget: what ends the training: ``epochs``, ``steps``, ``wall-clock`` or ``convergence`` of
            the score of held-out videos (:mod:`tal_fast.training.budget`).
        epochs: passes over the training windows, of the budget ``epochs``.
        steps: optimiser steps, of the budget ``steps``.
        seconds: time, of the budget ``wall-clock``.
        patience: ratings of held-out videos without a gain before the learning rate falls and, at
            its last, before the training ends, of the budget ``convergence``.
        max_steps: end of a training that does not converge.
        batch_size: windows per step, of all processes together; the last, smaller batch of an
            epoch is dropped.
        learning_rate: of AdamW.
        sampling_lr_scale: factor on the learning rate of reference points and sampling offsets.
        weight_decay: of AdamW, on every parameter.
        clip_norm: largest gradient norm; 0 turns clipping off.
        lr_drops: when the learning rate falls, as shares of the budget (0.875 of 16 epochs is
            epoch 14); ``convergence`` takes only their number.
        lr_drop_factor: what it falls by.
        seed: of weights, dropout and batch order.
        amp: precision of matrix products; ``auto`` takes bfloat16 where the hardware multiplies it
            natively, ``float16`` needs CUDA. Weights, normalisation, locations and losses stay
            float32.
        ema: weights to test: ``off`` those of the training, ``plain``, ``warmup`` or ``corrected``
            an exponential moving average of them (:mod:`tal_fast.training.ema`). Several, with
            commas, are tested after one training; ``checkpoint.pt`` holds the first.
        ema_decay: decay of the average.
        holdout: share of the *training* videos kept back to pick the best weights; 0 keeps the
            last.
        check_every: steps between two ratings of the held-out videos; None rates after each epoch,
            or every 50 steps where no number of epochs is set.
        device: ``auto`` takes CUDA where there is one.
        tensorboard: ``auto`` writes events where TensorBoard is installed.
    """

    budget: Literal["epochs", "steps", "wall-clock", "convergence"] = "epochs"
    epochs: Positive = 16
    steps: Positive | None = None
    seconds: Above | None = None
    patience: Positive = 5
    max_steps: Positive = 20_000
    batch_size: Positive = 16
    learning_rate: Above = 2e-4
    sampling_lr_scale: NonNegative = 0.1
    weight_decay: NonNegative = 1e-4
    clip_norm: NonNegative = 0.1
    lr_drops: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (0.875,)
    lr_drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 42
    amp: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    ema: EmaModes = ("off",)
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    holdout: Share = 0.0
    check_every: Positive | None = None
    device: str = "auto"
    tensorboard: Literal["auto", "never"] = "auto"


@dataclass(frozen=True, config=_STRICT)
class PostprocessConfig:
    """From raw outputs to detections.

    Attributes:
        top_k: (query, class) pairs kept per window.
        nms_threshold: largest IoU that two detections of a class in a video may have.
        nms_scope: ``all`` detections of a video suppress each other, or only those that touch
            ``overlaps`` of its windows (TadTR).
        min_score: detections below it are dropped.
        max_detections: most detections per video.
    """

    top_k: Positive = 100
    nms_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    nms_scope: Literal["all", "overlaps"] = "all"
    min_score: NonNegative = 0.0
    max_detections: Positive = 1000


@dataclass(frozen=True, config=_STRICT)
class ExperimentConfig:
    """Everything that decides a training's outcome besides the data.

    Attributes:
        name: the preset that the settings started from.
        model: sizes of the model.
        data: windows.
        loss: loss and matching weights.
        training: the optimisation.
        postprocess: from raw outputs to detections.
    """

    name: str
    model: TadTRConfig
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    postprocess: PostprocessConfig = PostprocessConfig()


_ADAPTER = TypeAdapter(ExperimentConfig)


def preset_names() -> tuple[str, ...]:
    """Returns the names that :func:`preset` knows."""
    return available()


def preset(name: str) -> ExperimentConfig:
    """Returns the settings of a named experiment.

    Raises:
        ConfigError: there is no such preset; the nearest is suggested.
    """
    return ExperimentConfig(name=name, model=model_config(name))


_named = preset  # for load_config, which has an argument `preset`


def load_config(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentConfig:
    """Resolves settings: preset, then YAML file, then overrides.

    Args:
        path: YAML file; its top-level ``name`` is the preset when ``preset`` is not given.
        preset: the preset to start from; ``tadtr`` when neither names one.
        overrides: ``section.field=value``, the value in YAML.

    Raises:
        ConfigError: the file cannot be read, a key is unknown or a value does not fit.
    """
    from_file: dict[str, Any] = {}
    if path is not None:
        from_file = _read_yaml(Path(path))
    name = str(from_file.get("name", "tadtr")) if preset is None else preset
    settings = config_to_dict(_named(name))
    _merge(settings, {**from_file, "name": name}, "")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected section.field=value")
        value: Any = parse_yaml(text, f"override {override!r}", ConfigError)
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(settings, value, "")
    return config_from_dict(settings)


def config_from_dict(settings: Mapping[str, Any]) -> ExperimentConfig:
    """Builds settings from what :func:`config_to_dict` gave.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    try:
        return _ADAPTER.validate_python(settings)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}, got {item['input']!r}"
            for item in error.errors()
        ]
        raise ConfigError("bad setting " + "; ".join(lines)) from None


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the settings as nested dicts of plain values (tuples become lists)."""
    return _plain(asdict(config))


def save_config(config: ExperimentConfig, path: str | Path) -> None:
    """Writes the settings as YAML that :func:`load_config` reads back."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _merge(base: dict[str, Any], changes: Mapping[str, Any], prefix: str) -> None:
    for key, value in changes.items():
        if key not in base:
            near = difflib.get_close_matches(str(key), list(base), n=1)
            # The right field in the wrong section is a common slip: look through all of them.
            home = near[0] if near else _section_of(key)
            hint = f"; did you mean {(prefix if near else '') + home!r}?" if home else ""
            raise ConfigError(f"unknown setting {prefix + str(key)!r}{hint}")
        if isinstance(base[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"setting {prefix + key!r}: expected a section, got {value!r}")
            _merge(base[key], value, f"{prefix}{key}.")
        else:
            base[key] = value


def _section_of(name: str) -> str | None:
    for section in fields(ExperimentConfig):
        default = section.default if is_dataclass(section.default) else TadTRConfig()
        if section.name == "name":
            continue
        if name in (field.name for field in fields(default)):
            return f"{section.name}.{name}"
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    loaded = parse_yaml(text, str(path), ConfigError)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected sections of settings, got {type(loaded).__name__}")
    return loaded
