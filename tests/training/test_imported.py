# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of official codes, and what is wrong with others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tal_fast import cli
from tal_fast.errors import ConfigError, TrainingError
from tal_fast.models import build_model
from tal_fast.training import import_checkpoint, load_config, predict
from tal_fast.training.checkpoint import load_model

SIZES = {"width": 32, "head_width": 32, "levels": 3, "heads": 2}
OVERRIDES = [
    *(f"model.{key}={value}" for key, value in SIZES.items()),
    "loss.ranges=[[0, 4], [4, 8], [8, 10000]]",
    "data.max_length=256",
    "training.amp=float32",
]


@pytest.fixture
def config():
    return load_config(preset="actionformer-small", overrides=OVERRIDES)


def official(data, config, seed):
    """A state dict as ActionFormer's code saves it: within DataParallel, no running number."""
    torch.manual_seed(seed)
    model = type(build_model("actionformer", in_channels=1, num_classes=1))(
        data.channels, data.num_classes, config.detector
    )
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    del state["module.normaliser"]
    return state


@pytest.fixture
def file(data, config, tmp_path):
    path = tmp_path / "epoch_034.pth.tar"
    content = {
        "epoch": 35,
        "state_dict": official(data, config, 1),
        "state_dict_ema": official(data, config, 2),
        "mAP": np.float64(0.5),  # TemporalMaxer's has one
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("weights", "seed"), [(None, 2), ("ema", 2), ("raw", 1)])
def test_official_weights_predict(data, config, file, tmp_path, weights, seed):
    classes = data.annotations.classes
    made = import_checkpoint(file, config, classes, tmp_path / "out", weights=weights)
    model, loaded, names = load_model(made)
    assert (loaded, names) == (config, classes)
    for key, value in official(data, config, seed).items():
        assert torch.equal(model.state_dict()[key.removeprefix("module.")], value)
    predict(made, data, data.splits["test"], tmp_path / "new" / "results.json")
    assert (tmp_path / "new" / "results.json").exists()
    assert load_config(tmp_path / "out" / "config.yaml") == config


def test_a_bare_state_dict(data, config, tmp_path):
    torch.save(official(data, config, 3), tmp_path / "weights.pt")
    import_checkpoint(tmp_path / "weights.pt", config, data.annotations.classes, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds no ema weights, but raw"):
        import_checkpoint(
            tmp_path / "weights.pt", config, data.annotations.classes, tmp_path, weights="ema"
        )


def test_on_the_command_line(data, config, file, tmp_path, capsys):
    settings = [word for item in OVERRIDES for word in ("--set", item)]
    done = cli.main(
        ["import-checkpoint", str(file), "--preset", "actionformer-small", "--data",
         str(data.path), "--out", str(tmp_path / "out"), *settings]
    )  # fmt: skip
    assert done == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "checkpoint.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.neck.fpn_norms.1.bias"), r"missing: neck\.fpn_norms\.1\.bias$"),
        (lambda s: s.update({"module.x.weight": torch.zeros(1)}), r"not of it: x\.weight$"),
        (
            lambda s: s.update({"module.backbone.stem.0.ln1.bias": torch.zeros(1, 8, 1)}),
            r"other sizes: backbone\.stem\.0\.ln1\.bias is \[1, 8, 1\], expected \[1, 32, 1\]$",
        ),
        (lambda s: s.pop("module.cls_head.cls_head.conv.bias"), "found the keys backbone"),
    ],
)
def test_other_weights_are_named(data, config, tmp_path, change, message):
    state = official(data, config, 0)
    change(state)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(TrainingError, match=r"x\.pth: .*ActionFormer.*" + message):
        import_checkpoint(tmp_path / "x.pth", config, data.annotations.classes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "expected a tensor for each of the raw weights, found str for 'module.cls_head.c"),
        (None, "not finite; the first is the parameter 'cls_head.cls_head.c"),
    ],
)
def test_values_that_are_no_weights(data, config, tmp_path, value, message):
    state = official(data, config, 3)
    key = "module.cls_head.cls_head.conv.bias"
    value = torch.full_like(state[key], torch.nan) if value is None else value
    torch.save({"state_dict": {**state, key: value}}, tmp_path / "weights.pt")
    with pytest.raises(TrainingError, match=message):
        import_checkpoint(
            tmp_path / "weights.pt", config, data.annotations.classes, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_other_models_classes_words_and_files(data, config, file, tmp_path):
    classes = data.annotations.classes
    with pytest.raises(ConfigError, match=r"has 20 classes, the data has 2: a, b"):
        import_checkpoint(file, config, ("a", "b"), tmp_path / "out")
    with pytest.raises(TrainingError, match=r"expected the weights of TadTR \(tadtr\), found the"):
        import_checkpoint(file, load_config(preset="tadtr"), classes, tmp_path / "out")
    with pytest.raises(ConfigError, match="weights: expected ema or raw, got 'best'"):
        import_checkpoint(file, config, classes, tmp_path / "out", weights="best")
    sizes = ["model.width=32", "model.head_width=32", "data.max_length=256"]
    other = load_config(preset="tridet", overrides=sizes)
    message = (
        r"epoch_034\.pth\.tar: not the weights of TriDet \(tridet\); missing: backbone\.stem\."
    )
    with pytest.raises(
        TrainingError, match=message + r".*not of it: backbone\.stem\..* and \d+ more"
    ):
        import_checkpoint(file, other, classes, tmp_path / "out")
    torch.save({"x": object()}, tmp_path / "objects.pt")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        import_checkpoint(tmp_path / "objects.pt", config, classes, tmp_path / "out")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TrainingError, match="expected a checkpoint, found an object of type list"):
        import_checkpoint(tmp_path / "list.pt", config, classes, tmp_path / "out")


def test_tadtrs_checkpoints(data, tmp_path):
    config = load_config(preset="tadtr-small", overrides=["model.actionness=false"])
    model = build_model(
        "tadtr-small", in_channels=data.channels, num_classes=data.num_classes, actionness=False
    )
    state = model.state_dict()
    twice = {
        f"transformer.decoder.{key}": value
        for key, value in state.items()
        if key.startswith("segment_embed.")
    }
    torch.save({"model": {**state, **twice}, "epoch": 1}, tmp_path / "best.pth")
    made = import_checkpoint(
        tmp_path / "best.pth", config, data.annotations.classes, tmp_path / "out"
    )
    loaded = load_model(made)[0].state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
