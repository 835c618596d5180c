# SPDX-License-Identifier: Apache-2.0
"""Training: settings, loop, losses, checkpoints and prediction."""

from tal_fast.training.config import (
    ExperimentConfig,
    config_to_dict,
    load_config,
    parse_overrides,
    preset,
    preset_names,
    save_config,
)
from tal_fast.training.experiment import ExperimentResult, run_experiment, train
from tal_fast.training.imported import import_checkpoint
from tal_fast.training.inference import detect, predict
from tal_fast.training.told import ProgressEvent, TrainingSummary

__all__ = [
    "ExperimentConfig",
    "ExperimentResult",
    "ProgressEvent",
    "TrainingSummary",
    "config_to_dict",
    "detect",
    "import_checkpoint",
    "load_config",
    "parse_overrides",
    "predict",
    "preset",
    "preset_names",
    "run_experiment",
    "save_config",
    "train",
]
