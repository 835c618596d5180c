# SPDX-License-Identifier: Apache-2.0
"""Settings: presets, files, overrides, and errors that help."""

from __future__ import annotations

import pytest

from tal_fast import api
from tal_fast.errors import ConfigError
from tal_fast.training.config import (
    config_from_dict,
    config_to_dict,
    load_config,
    named_model,
    preset,
    preset_names,
    save_config,
)


def test_presets_are_the_recipes():
    paper, small = preset("tadtr"), preset("tadtr-small")
    assert {"tadtr", "tadtr-small"} <= set(preset_names())
    sizes = paper.detector.model
    assert (sizes.d_model, sizes.encoder_layers, sizes.decoder_layers) == (256, 4, 4)
    sizes = small.detector.model
    assert (sizes.d_model, sizes.encoder_layers, sizes.feedforward) == (128, 2, 512)
    for config in (paper, small):
        assert config.detector.model.num_queries == 40
        assert (config.training.epochs, config.training.batch_size) == (16, 16)
        assert config.training.learning_rate == 2e-4
        clips = config.detector.data
        assert (clips.window, clips.train_overlap, clips.test_overlap) == (128, 0.75, 0.25)


def test_file_then_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: tadtr-small\ntraining: {epochs: 3, seed: 7}\nmodel: {dropout: 0}\n")
    config = load_config(path, overrides=["training.epochs=5", "loss.actionness_targets=batch"])
    assert config.name == "tadtr-small"
    assert (config.training.epochs, config.training.seed) == (5, 7)
    assert (config.detector.model.dropout, config.detector.model.d_model) == (0.0, 128)
    assert config.detector.loss.actionness_targets == "batch"


def test_a_file_is_of_the_model_that_it_names(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: tridet-small\n")
    assert load_config(path).name == named_model(path) == "tridet-small"
    assert load_config(path, preset="tridet-small").name == "tridet-small"
    message = (
        r"config.yaml: its settings are those of the model 'tridet-small', expected of 'tadtr'"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(path, preset="tadtr")
    spec = api.study_spec("data", "out", config=path)
    assert spec.model == "tridet-small"
    assert api.study_spec("data", "out", config=path, model="tadtr").model == "tadtr"
    path.write_text("training: {epochs: 3}\n")
    assert named_model(path) is named_model(None) is None
    assert api.study_spec("data", "out", config=path).model == "tadtr-small"


def test_a_list_without_brackets_is_told_how_to_be_written():
    message = (
        r"crop_ratio: .*, got '2,1'; write a list in brackets, as in --set 'data.crop_ratio=\[2"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(preset="actionformer-small", overrides=["data.crop_ratio=2,1"])


def test_round_trip(tmp_path):
    config = load_config(preset="tadtr", overrides=["training.lr_drops=[0.5, 0.75]"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown setting 'training.epoch'; did you mean 'training.epochs'"),
        ("trainng.epochs=3", "unknown setting 'trainng'; did you mean 'training'"),
        ("epochs=3", "unknown setting 'epochs'; did you mean 'training.epochs'"),
        ("model.d_modl=3", "did you mean 'model.d_model'"),
        ("training.epochs=0", "training.epochs: .*greater than 0, got 0"),
        ("postprocess.max_detections=100000000000000000000", "max_detections: .*less than"),
        ("training.seed=18446744073709551616", "training.seed: .*less than"),
        ("training.learning_rate=.inf", "training.learning_rate: .*finite number, got inf"),
        ("training.epochs=many", "training.epochs: .*integer.*, got 'many'"),
        ("training.amp=int8", "training.amp: .*'bfloat16'.*, got 'int8'"),
        ("data.train_overlap=1.0", "data.train_overlap: .*less than 1, got 1.0"),
        ("training=3", "setting 'training': expected a section, got 3"),
        ("training.epochs", "expected section.field=value"),
        ("training.epochs=[", "not valid YAML"),
        ("model.d_model=100", "expected num_heads to divide d_model = 100"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset="tadtr", overrides=[override])


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the settings .*No such file"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected sections of settings, got list"):
        load_config(path)
    for text, message in (
        (b"training: {epochs: [}", "not valid YAML"),
        (b"name: tadtr\xe9\n", "expected YAML in UTF-8"),
        (
            b"training: {epochs: 3}\ntraining: {seed: 7}\n",
            "once, got 'training' in line 1",
        ),
        (b"1: 2\n", "unknown setting '1'"),
    ):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    with pytest.raises(ConfigError, match="unknown model 'tadr'; did you mean 'tadtr'"):
        preset("tadr")
