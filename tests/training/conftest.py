# SPDX-License-Identifier: Apache-2.0
"""A data set that trains in a second or two."""

from pathlib import Path

import pytest

from tal_fast.data.dataset import TALDataset, open_dataset
from tal_fast.data.synthetic import make_synthetic
from tal_fast.training import load_config
from tal_fast.training.config import ExperimentConfig

#: Settings of a model and a training that are as small as they can be and still whole.
SMALL = (
    "model.d_model=32", "model.num_heads=4", "model.encoder_layers=1", "model.decoder_layers=2",
    "model.feedforward=32", "model.num_queries=8", "model.roi_bins=4", "training.epochs=2",
    "training.batch_size=4", "data.window=32", "training.amp=float32", "training.tensorboard=never",
)  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TALDataset:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    make_synthetic(folder, train_videos=6, test_videos=4, channels=16, seed=3)
    return open_dataset(folder)


@pytest.fixture
def config() -> ExperimentConfig:
    return load_config(preset="tadtr-small", overrides=SMALL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
