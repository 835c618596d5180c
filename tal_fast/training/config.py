# SPDX-License-Identifier: Apache-2.0
"""Settings of an experiment: one set of dataclasses for YAML files, command line and results.

Every field can be set in a YAML file (``training: {epochs: 30}``) or as an override
(``training.epochs=30``). A key that does not exist is an error that suggests the nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BeforeValidator, Field

from tal_fast.data.files import file_in_one_step
from tal_fast.data.text_files import not_utf8
from tal_fast.data.yaml_files import parse_yaml
from tal_fast.errors import ConfigError, argument, os_reason
from tal_fast.models import available, detector_config, detector_of, recipe
from tal_fast.models.base import STRICT, NonNegative, Positive, Share
from tal_fast.models.settings import checked, merge, plain

__all__ = [
    "ExperimentConfig",
    "TrainingConfig",
    "config_from_dict",
    "config_to_dict",
    "deciding",
    "load_config",
    "named_model",
    "parse_overrides",
    "preset",
    "preset_names",
    "save_config",
]

# Section, key, and the value with which all is as it was before there was the setting.
_CAME_LATER = (("training", "cuda_graph", "off"), ("model", "offset_start", 0.0))

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


def _off(given: Any) -> Any:
    """Reads ``off``, which YAML calls false."""
    return "off" if given is False else given


EmaMode = Literal["off", "plain", "warmup", "corrected"]
EmaModes = Annotated[tuple[EmaMode, ...], BeforeValidator(_modes)]


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
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
        sampling_lr_scale: factor on the learning rate of the parameters that a model calls slow
            (TadTR: reference points and sampling offsets).
        weight_decay: of AdamW, on the parameters that a model lets decay (TadTR: all).
        clip_norm: largest gradient norm; 0 turns clipping off.
        schedule: of the learning rate: ``drops``; or ``cosine``, which rises linearly, step by
            step, from 0 in the first step, and then falls as half a cosine.
        lr_drops: ``drops``: when the learning rate falls, as shares of the budget (0.875 of 16
            epochs is epoch 14); the budget ``convergence`` takes only their number.
        lr_drop_factor: ``drops``: what it falls by.
        warmup: ``cosine``: share of the budget in which it rises.
        lr_end: ``cosine``: what it falls to.
        seed: of weights, dropout and batch order.
        amp: precision of matrix products; ``auto`` takes bfloat16 where the hardware multiplies it
            natively, ``float16`` needs CUDA. Weights, normalisation, locations and losses stay
            float32.
        ema: weights to test: ``off`` those of the training, ``plain``, ``warmup`` or ``corrected``
            an exponential moving average of them (:mod:`tal_fast.training.ema`). Several, with
            commas, are tested after one training; ``checkpoint.pt`` holds the first.
        ema_decay: decay of the average.
        ema_repeats: ``plain``: take a weight in once per name that the model holds it under, and
            not once a step. So do official codes; it matters where levels share a module
            (TemporalMaxer with ``model.neck=layernorm``).
        holdout: share of the *training* videos kept back to pick the best weights; 0 keeps the
            last.
        check_every: steps between two ratings of the held-out videos; None rates after each epoch,
            or every 50 steps where no number of epochs is set.
        device: ``auto`` takes CUDA where there is one.
        cuda_graph: ``auto`` records whole steps as CUDA graphs and replays them, where device and
            model allow it, and says why not elsewhere (:mod:`tal_fast.training.cuda_graph`).
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
    schedule: Literal["drops", "cosine"] = "drops"
    lr_drops: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (0.875,)
    lr_drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    warmup: Share = 0.0
    lr_end: NonNegative = 1e-8
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 42
    amp: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    ema: EmaModes = ("off",)
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    ema_repeats: bool = False
    holdout: Share = 0.0
    check_every: Positive | None = None
    device: str = "auto"
    cuda_graph: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = "off"
    tensorboard: Literal["auto", "never"] = "auto"


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides a training's outcome besides the data.

    In files and overrides the sections of the model lie beside ``training``: ``name``, ``model``,
    ``data``, ``loss``, ``postprocess``, and whatever else the model's ``Config`` has.

    Attributes:
        name: the model (:func:`tal_fast.models.recipe`) that the settings started from.
        detector: settings of the model, of its ``Config``.
        training: the optimisation.
    """

    name: str
    detector: Any
    training: TrainingConfig


def preset_names() -> tuple[str, ...]:
    """Returns the names that :func:`preset` knows, those of one's own models aside."""
    return available()


def preset(name: str) -> ExperimentConfig:
    """Returns the settings of a named model.

    Raises:
        ConfigError: there is no such model; the nearest is suggested.
    """
    return config_from_dict(_defaults(name))


_named = preset  # for load_config, which has an argument `preset`


def load_config(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    fallback: str = "tadtr",
) -> ExperimentConfig:
    """Resolves settings: the model's, then YAML file, then overrides.

    Args:
        path: YAML file; its top-level ``name`` is the model, and so is ``preset`` where both are
            given.
        preset: the model to start from.
        overrides: ``section.field`` -> value, or texts as of :func:`parse_overrides`.
        fallback: the model when neither file nor ``preset`` names one.

    Raises:
        ConfigError: the file cannot be read or is of another model than ``preset``, a key is
            unknown or a value does not fit.
    """
    from_file: dict[str, Any] = {}
    if path is not None:
        from_file = _read_yaml(Path(path))
    named = from_file.get("name")
    if preset is not None and named is not None and str(named) != preset:
        raise ConfigError(
            f"{path}: its settings are those of the model {str(named)!r}, expected of {preset!r}, "
            f"which {argument('model')} names; leave one of the two out"
        )
    name = str(fallback if named is None else named) if preset is None else preset
    settings = _defaults(name)
    merge(settings, {**from_file, "name": name}, model=name)
    chosen = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    for key, value in chosen.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(settings, value, model=name)
    return config_from_dict(settings)


def named_model(path: str | Path | None) -> str | None:
    """Returns the model that a YAML file of settings names; None without file or name.

    Raises:
        ConfigError: the file cannot be read.
    """
    name = None if path is None else _read_yaml(Path(path)).get("name")
    return None if name is None else str(name)


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Reads settings as the command line has them, ``section.field=value``, the value in YAML.

    Returns:
        ``section.field`` -> value; of one that is given twice the last.

    Raises:
        ConfigError: a text has another form.
    """
    overrides: dict[str, Any] = {}
    for override in texts:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected section.field=value")
        overrides[key.strip()] = parse_yaml(value, f"override {override!r}", ConfigError)
    return overrides


def _defaults(name: str) -> dict[str, Any]:
    """Returns the settings of a named model as nested dicts."""
    chosen = recipe(name)
    training = plain(asdict(TrainingConfig()))
    merge(training, chosen.settings.get("training", {}), "training.", model=name)
    sections = plain(asdict(detector_config(name)))
    return {"name": name, **sections, "training": training}


def config_from_dict(settings: Mapping[str, Any]) -> ExperimentConfig:
    """Builds settings from what :func:`config_to_dict` gave; what is missing is the model's own.

    Raises:
        ConfigError: the model is not known, a key is unknown or a value does not fit.
    """
    name = settings.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"bad setting name: expected that of a model, got {name!r}")
    merged = _defaults(name)
    merge(merged, settings, model=name)
    del merged["name"]
    training = checked(TrainingConfig, merged.pop("training"), "training.")
    return ExperimentConfig(name, checked(detector_of(name).Config, merged), training)


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the settings as nested dicts of plain values (tuples become lists)."""
    sections = plain(asdict(config.detector))
    return {"name": config.name, **sections, "training": plain(asdict(config.training))}


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what :func:`config_to_dict` gave without what changes nothing.

    A setting that came later is left out where it is as if there were none, so that studies and
    interrupted trainings from before go on.
    """
    found = {**settings}
    for section, key, neutral in _CAME_LATER:
        part = found.get(section)
        if isinstance(part, Mapping) and part.get(key) == neutral:
            found[section] = {name: value for name, value in part.items() if name != key}
    return found


def save_config(config: ExperimentConfig, path: str | Path) -> None:
    """Writes the settings as YAML that :func:`load_config` reads back."""
    with file_in_one_step(path) as file:
        file.write(yaml.safe_dump(config_to_dict(config), sort_keys=False).encode())


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {os_reason(error)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(not_utf8(path, "YAML")) from error
    loaded = parse_yaml(text, str(path), ConfigError)
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected sections of settings, got {type(loaded).__name__}")
    return loaded
