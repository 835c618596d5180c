# SPDX-License-Identifier: Apache-2.0
"""A data set that trains in a second or two."""

from pathlib import Path

import pytest
from small_settings import small

from tal_fast.data.dataset import TALDataset, open_dataset
from tal_fast.data.synthetic import make_synthetic
from tal_fast.training.config import ExperimentConfig


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> TALDataset:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    make_synthetic(folder, train_videos=6, test_videos=4, channels=16, seed=3)
    return open_dataset(folder)


@pytest.fixture
def config() -> ExperimentConfig:
    return small()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
