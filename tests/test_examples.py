# SPDX-License-Identifier: Apache-2.0
"""Every example runs; own_model.py is tested with the models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED_HERE = {
    "evaluate_results", "features_from_numpy", "ops_in_a_foreign_model", "own_data",
}  # fmt: skip


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED_HERE | {"own_model"}


def test_features_from_numpy(tmp_path):
    module = load("features_from_numpy")
    module.main(tmp_path)
    name, signal, segments = next(module.recordings())
    rows = np.load(tmp_path / "features" / f"{name}.npy")
    assert rows.dtype == np.float32
    assert len(rows) == (len(signal) - module.FRAMES) // module.STRIDE + 1
    # Row i sees the samples from i x STRIDE on, as the command beside it says.
    seen = signal[7 * module.STRIDE : 7 * module.STRIDE + module.FRAMES]
    np.testing.assert_allclose(rows[7, :3], seen.mean(0), rtol=1e-5, atol=1e-6)
    assert len(segments) == 6


def test_own_data(tmp_path, capsys):
    load("features_from_numpy").main(tmp_path / "raw")
    small = {"training.epochs": 1}
    average = load("own_data").main(tmp_path / "raw", tmp_path / "own", small)
    assert 0.0 <= average <= 1.0
    out = capsys.readouterr().out
    assert "split test: 4 of 14 videos, drawn with seed 0" in out
    assert "mAP at tIoU 0.5: " in out


@pytest.mark.slow
def test_own_data_learns(tmp_path):
    load("features_from_numpy").main(tmp_path / "raw")
    assert load("own_data").main(tmp_path / "raw", tmp_path / "own") > 0.8


def test_evaluate_results(capsys):
    pages = EXAMPLES.parent / "docs" / "dialects"
    files = (str(pages / "annotations.json"), str(pages / "predictions.json"))
    averages = load("evaluate_results").main(*files, "test")
    assert averages["actionformer"] > averages["activitynet"] > averages["thumos"] > 0.0
    assert "interval over videos" in capsys.readouterr().out


def test_ops_in_a_foreign_model():
    module = load("ops_in_a_foreign_model")
    assert "tal_fast.models" not in vars(module)
    assert module.main(steps=60) > 0.2
    assert "torch" in sys.modules
