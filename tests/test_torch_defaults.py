# SPDX-License-Identifier: Apache-2.0
"""Nothing depends on torch's default dtype and device, which a script may have set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tal_fast import ops
from tal_fast.data import ClipDataset, CropSet, FeatureLoader, WindowSet, open_dataset
from tal_fast.data.packing.rounding import narrowed
from tal_fast.data.synthetic import make_synthetic
from tal_fast.models import build_model
from tal_fast.training import run_experiment
from tal_fast.training.checkpoint import read_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "training"))

from small_settings import small


@contextmanager
def defaults(dtype: torch.dtype | None, device: str | None) -> Iterator[None]:
    """Sets torch's defaults; nothing may be made by them on a device that holds no values."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype or before)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


OTHERS = [(torch.float64, None), (None, "meta"), (torch.float64, "meta"), (torch.bfloat16, "meta")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("defaults") / "data"
    make_synthetic(out, train_videos=4, test_videos=2, channels=16, seed=3)
    return out


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    return experiment(folder, tmp_path_factory.mktemp("defaults") / "run")


def experiment(folder, out):
    """Returns everything that a training with averages, a hold-out and a test writes."""
    data = open_dataset(folder)
    settings = small(("training.ema=[off, corrected]", "training.holdout=0.3"))
    train, test = data.splits["train"], data.splits["test"]
    run_experiment(settings, data, train_videos=train, test_videos=test, out=out)
    weights = {
        f"{path.name} {key}": value
        for path in sorted(out.glob("*.pt"))
        for key, value in read_checkpoint(path)["model"].items()
    }
    return weights, [path.read_bytes() for path in sorted(out.glob("predictions*.json"))]


@pytest.mark.parametrize(("dtype", "device"), OTHERS)
def test_an_experiment_gives_the_same_bytes(folder, trained, tmp_path, dtype, device):
    with defaults(dtype, device):
        weights, predictions = experiment(folder, tmp_path / "run")
    assert weights.keys() == trained[0].keys()
    for key, value in trained[0].items():
        assert weights[key].dtype == torch.float32
        assert weights[key].device.type == "cpu"
        assert torch.equal(weights[key], value), key
    assert predictions == trained[1]


def batches(folder, resident):
    """Returns the tensors of an epoch of both loaders."""
    data = open_dataset(folder)
    videos = data.splits["train"]
    windows = WindowSet(data, videos, length=32, overlap=0.5, min_inside=0.5, drop_empty=True)
    crops = CropSet(data, videos, max_length=64)
    store = {"resident_bytes": 2**24} if resident else {}
    found = []
    with FeatureLoader(crops, 2, shuffle=True, seed=1, feature_dropout=0.2, **store) as loader:
        for batch in loader:
            found += [batch.features, batch.mask, batch.labels, batch.edges]
    found += [item for item in ClipDataset(windows)[0].values() if isinstance(item, torch.Tensor)]
    with FeatureLoader(windows, 4, seed=1) as loader:
        for batch in loader:
            found += [batch.features, batch.mask, batch.labels, batch.edges]
    return found


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(("dtype", "device"), OTHERS[:3])
def test_loaders_give_the_same_bytes(folder, dtype, device, resident):
    expected = batches(folder, resident)
    with defaults(dtype, device):
        found = batches(folder, resident)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert torch.equal(one, other)


def test_a_model_is_float32_on_the_default_device():
    with defaults(torch.float64, "meta"):
        model = build_model("tadtr-small", in_channels=4, num_classes=2)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert {weight.device.type for weight in model.state_dict().values()} == {"meta"}


def test_ops_and_packing_make_nothing_by_default():
    with defaults(torch.float64, "meta"):
        empty = ops.linear_assignment([])
        dropped = ops.dropout(torch.ones(8, device="cpu", dtype=torch.float32), 0.5)
        packed, _ = narrowed("v", np.ones((2, 3), "f4"), "float16")
    assert {tensor.device.type for tensor in (*empty, dropped, packed)} == {"cpu"}
