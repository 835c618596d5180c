# SPDX-License-Identifier: Apache-2.0
"""A small data directory that tests bend in one place and open."""

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from own_files import Own


class TinyData:
    """Four videos of 4 channels; change ``features``, ``database`` or ``spec``, then write.

    Row i of video v holds v * 10000 + i * 10 + channel, so a wrong row, channel or file shows.
    """

    ROWS: ClassVar = {"a": 40, "b": 100, "c": 333, "d": 64}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.features = {
            name: self.values(i, rows) for i, (name, rows) in enumerate(self.ROWS.items())
        }
        self.database: dict[str, dict[str, Any]] = {}
        for name, rows in self.ROWS.items():
            self.database[name] = {
                "subset": "validation" if name == "d" else "training",
                "duration": rows / 10,
                "fps": 10.0,
                "annotations": [
                    {"label": "run", "label_id": 1, "segment": [1.0, 2.5]},
                    {"label": "jump", "label_id": 0, "segment": [3.0, 3.5]},
                ],
            }
        self.spec: dict[str, Any] = {
            "format": 1,
            "name": "tiny",
            "feature": {"channels": 4, "stride": 1, "frames": 1, "fps": None},
            "splits": {"train": "training", "test": "validation"},
        }

    @staticmethod
    def values(video: int, rows: int) -> np.ndarray:
        return (video * 10000 + np.arange(rows)[:, None] * 10 + np.arange(4)[None, :]).astype(
            np.float32
        )

    def file(self, name: str) -> Path:
        return self.path / "features" / f"{name}.npy"

    def write(self) -> Path:
        (self.path / "features").mkdir(parents=True, exist_ok=True)
        for name, values in self.features.items():
            self.file(name).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.file(name), values)
        content = json.dumps({"version": "1", "database": self.database})
        (self.path / "annotations.json").write_text(content)
        (self.path / "dataset.yaml").write_text(yaml.safe_dump(self.spec, sort_keys=False))
        return self.path


@pytest.fixture
def tiny(tmp_path: Path) -> TinyData:
    return TinyData(tmp_path / "tiny")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that tests may read; they are skipped where there is none."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("TAL_FAST_TEST_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder} (TAL_FAST_TEST_DATA)")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)
