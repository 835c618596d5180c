# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is read, and what a file is that is none."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle

import numpy as np
import pytest
import torch

from tal_fast.errors import TrainingError
from tal_fast.models import TadTR
from tal_fast.training.checkpoint import load_model, read_checkpoint, save_model, write_checkpoint


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def array(save, *values):
    file = io.BytesIO()
    save(file, *values)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pt"


class Foreign:
    pass


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FOREIGN = r"holds objects of test_checkpoint\.Foreign; only tensors and plain"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is an empty file"),
        (b"not a checkpoint", "it is a text file that begins 'not a checkpoint'"),
        ("ä".encode() * 300, "it is a text file that begins 'ä"),
        (POINTER, r"it is a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in", "it is an HTML page"),
        (saved({"a": torch.zeros(1000)})[:2000], "it is a truncated archive of 2,000 bytes"),
        (gzip.compress(b"a", mtime=0), "it is a gzip archive: unpack it first"),
        (array(np.save, np.zeros(3)), "it is a NumPy array"),
        (array(np.savez, np.zeros(3)), r"it is a zip archive of other things \(arr_0.npy\)"),
        (b"\x10\0\0\0\0\0\0\0{}" + b" " * 14, "it is a safetensors file"),
        (pickle.dumps({"a": 1}), "it is a pickle that torch.save did not write"),
        (b"\xff\xfe" * 200, "not a readable checkpoint: its content is damaged"),
        (saved(Foreign()), FOREIGN),
        (saved(Foreign(), _use_new_zipfile_serialization=False), FOREIGN),
        (saved([1]), "expected checkpoint format 1 of tal_fast, found an object of type list"),
        (saved({}), "found an empty dict"),
        (saved({"format": 99}), "expected checkpoint format 1 of tal_fast, found format 99"),
        (saved({"state_dict": {}, "epoch": 3}), "found the keys 'state_dict', 'epoch'"),
        (saved({"module.a": torch.zeros(1)}), r"a bare state dict of 1 tensors \('module.a'\)"),
        (saved({"format": 1}), r"not a model checkpoint, it lacks .*'model'"),
        (saved({"format": 1, "identity": 1}), "it is the state of an unfinished training"),
    ],
)
def test_what_is_no_checkpoint_is_named(path, content, message):
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_full_disk_is_named_as_such(tmp_path, monkeypatch):
    """And not by a line of torch's source; a study stops for the one and not for the other."""

    @contextlib.contextmanager
    def full(path, *, sync):
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr("tal_fast.training.checkpoint.file_in_one_step", full)
    with pytest.raises(TrainingError, match=r"a\.pt: .*No space left on device") as caught:
        write_checkpoint(tmp_path / "a.pt", {"model": {"weight": torch.zeros(100_000)}})
    assert isinstance(caught.value.__cause__, OSError)


def test_no_file(path, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint at"):
        read_checkpoint(path)
    with pytest.raises(TrainingError, match="it is a directory, give the file in it"):
        read_checkpoint(tmp_path)


@pytest.fixture
def model(data, config):
    torch.manual_seed(5)
    return TadTR(data.channels, data.num_classes, config.detector)


@pytest.mark.parametrize("layers", ["encoder_layers", "decoder_layers"])
def test_settings_of_a_model_without_end(data, config, model, path, layers):
    save_model(path, model.state_dict(), config, data.classes, data.channels)
    content = torch.load(path)
    content["config"]["model"][layers] = 2**31
    torch.save(content, path)
    with pytest.raises(TrainingError, match=r"do not fit the model: its settings make more than"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", 1, "expected a state dict of real tensors under 'model'"),
        ("model", {1: torch.zeros(1)}, "expected a state dict of real tensors"),
        (
            "model",
            {"a": torch.zeros(1, dtype=torch.int64)},
            "expected a state dict of real",
        ),
        ("model", {"a": torch.zeros(1).to_sparse()}, "expected a state dict of real"),
        ("model", {"a": torch.empty(1, device="meta")}, "expected a state dict of real"),
        ("classes", 3, "expected names under 'classes', got 3"),
        ("in_channels", "x", "expected 'in_channels' above 0, got 'x'"),
        ("in_channels", -3, "expected 'in_channels' above 0, got -3"),
        ("config", {"a": 1}, "bad setting"),
        ("config", [], r"expected settings under 'config', got \[\]"),
        ("in_channels", 7, "weights do not fit the model: size mismatch for input_proj.0.0.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_itself(data, config, model, path, key, value, message):
    save_model(path, model.state_dict(), config, data.classes, data.channels)
    torch.save({**torch.load(path), key: value}, path)
    with pytest.raises(TrainingError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite(data, config, model, path):
    weights = model.state_dict()
    weights["class_embed.1.bias"][0] = torch.nan
    save_model(path, weights, config, data.classes, data.channels)
    message = r"not finite; the first is the parameter 'class_embed.1.bias' \(1 of \d+ values\)"
    with pytest.raises(TrainingError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("module.", "DataParallel"), ("_orig_mod.", "torch.compile")]
)
def test_prefixes_of_wrappers_are_named(data, config, model, path, prefix, wrapper):
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    message = f"the keys carry the prefix '{prefix}' of {wrapper}.*: load "
    with pytest.raises(TrainingError, match=message):
        model.load_state_dict(weights)
    save_model(path, weights, config, data.classes, data.channels)
    with pytest.raises(TrainingError, match=f"weights do not fit the model: TadTR: {message}"):
        load_model(path)


def test_loading_a_model_draws_no_initial_weights(data, config, tmp_path):
    torch.manual_seed(5)
    model = TadTR(data.channels, data.num_classes, config.detector)
    path = tmp_path / "checkpoint.pt"
    half = {key: value.half() for key, value in model.state_dict().items()}
    save_model(path, half, config, data.annotations.classes, data.channels)
    before = torch.get_rng_state()
    loaded, _, _ = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    found = loaded.state_dict()
    assert {value.device.type for value in found.values()} == {"cpu"}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[key], value.float()) for key, value in half.items())
