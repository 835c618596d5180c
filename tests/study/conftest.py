# SPDX-License-Identifier: Apache-2.0
"""One tiny data set for all study tests, and a quiet console."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tal_fast.data.synthetic import make_synthetic
from tal_fast.study import StudySpec


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training and 6 test videos of 8 channels."""
    out = tmp_path_factory.mktemp("data") / "tiny"
    return make_synthetic(out, size="demo", train_videos=20, test_videos=6, channels=8)


@pytest.fixture
def spec(tiny_data: Path, tmp_path: Path) -> StudySpec:
    return StudySpec(data=tiny_data, out=tmp_path / "s", fractions=(0.1, 0.5, 1.0), repetitions=2)


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, which takes longer than all else in these studies."""
    monkeypatch.setattr("tal_fast.study.report.page.write_report", lambda *args, **kwargs: {})
