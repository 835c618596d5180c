# SPDX-License-Identifier: Apache-2.0
"""What every registered model promises, and the example of one's own; a new one is in by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tal_fast.data.dataset import open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.evaluation import evaluate
from tal_fast.models import Targets, Whole, available, detector_of, recipe
from tal_fast.models.pyramid import PyramidDetector
from tal_fast.training import load_config, predict, train
from tal_fast.training.checkpoint import read_checkpoint

CHANNELS, CLASSES = 6, 3
OWN = f"{Path(__file__).parents[2] / 'examples' / 'own_model.py'}:RowDetector"


def smallest(detector):
    """The preset of a detector that is meant for small machines, else its first."""
    names = [name for name in available() if recipe(name).detector is detector]
    return next((name for name in names if name.endswith("-small")), names[0])


MODELS = [smallest(detector) for detector in dict.fromkeys(map(detector_of, available()))]
EVERY = pytest.mark.parametrize("name", [*MODELS, pytest.param(OWN, id="own_model")])


def narrow(name):
    """Settings that make a preset narrower, where that is known, so that learning takes seconds."""
    sizes = load_config(preset=name).detector.model
    wanted = {"width": 64, "head_width": 64, "d_model": 64, "feedforward": 128}
    return [f"model.{key}={value}" for key, value in wanted.items() if hasattr(sizes, key)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four videos whose features say plainly what happens."""
    folder = tmp_path_factory.mktemp("plain")
    random = np.random.default_rng(0)
    (folder / "features").mkdir()
    database = {}
    for number, rows in enumerate((96, 120, 64, 90)):
        features = 0.1 * random.standard_normal((rows, CHANNELS)).astype(np.float32)
        annotations = []
        for start in range(6, rows - 20, 28):
            label, length = int(random.integers(CLASSES)), int(random.integers(5, 18))
            features[start : start + length, label] += 2.0
            features[start : start + length, CLASSES] += np.linspace(-1, 1, length)
            segment = [start / 5.0, (start + length) / 5.0]
            annotations.append({"label": "abc"[label], "segment": segment})
        name = f"video_{number}"
        np.save(folder / "features" / f"{name}.npy", features)
        database[name] = {
            "subset": "train" if number % 2 else "test",
            "duration": rows / 5.0,
            "fps": 5.0,
            "annotations": annotations,
        }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    (folder / "dataset.yaml").write_text(
        "format: 1\nname: plain\nannotations: annotations.json\nfeatures: features\n"
        "feature: {stride: 1, frames: 1, fps: 5, layout: TC}\n"
        "splits: {train: train, test: test}\n"
    )
    return open_dataset(folder)


def settings(name, *overrides):
    fixed = ["training.amp=float32", "training.tensorboard=never", "training.ema=off"]
    if name.startswith("tadtr"):
        fixed.append("data.window=64")
    if issubclass(detector_of(name), PyramidDetector):
        # Levels that all have an instance in the videos above.
        fixed += ["data.max_length=256", "model.levels=3"]
        fixed.append("loss.ranges=[[0, 4], [4, 8], [8, 10000]]")
    if name.startswith("tridet"):
        fixed.append("model.input_noise=0")
    return load_config(preset=name, overrides=[*fixed, *overrides])


def build(name, config=None):
    torch.manual_seed(0)
    config = config or settings(name)
    return detector_of(name)(CHANNELS, CLASSES, config.detector)


def batch_of(data, name, size=3, config=None):
    config = config or settings(name)
    videos = list(data.annotations.videos)
    clips = detector_of(name).clips(config.detector, data, videos, training=True)
    with FeatureLoader(clips, size, seed=1) as loader:
        batch = next(iter(loader))
    return batch, Targets(batch.labels, batch.edges, batch.counts, batch.padded)


def part_of(batch, targets, chosen):
    """The batch and targets of some of its clips."""
    labels, edges = targets.labels.split(batch.counts), targets.edges.split(batch.counts)
    some = Targets(
        torch.cat([labels[i] for i in chosen]),
        torch.cat([edges[i] for i in chosen]),
        [batch.counts[i] for i in chosen],
        targets.length,
    )
    return batch.features[chosen], batch.mask[chosen], some


class Sums(Whole):
    """The whole of two parts that are computed one after the other, the first of two times."""

    def __init__(self, targets, whole, told):
        super().__init__(targets)
        self.clips, self.instances = len(whole.counts), sum(whole.counts)
        self._whole, self._told, self.asked = whole, told, []

    def sum(self, values):
        self.asked.append(values.detach().clone())
        number = len(self.asked) - 1
        return values if self._told is None else values + self._told[number].to(values)

    def targets(self):
        return self._whole


def without_chance(model):
    """Nothing random is left in a training step."""
    for module in model.modules():
        for name in ("dropout", "probability", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


@EVERY
def test_shapes(data, name):
    model = build(name).eval()
    batch, targets = batch_of(data, name)
    with torch.no_grad():
        output = model(batch.features, batch.mask)
        found = model.candidates(output, batch.mask)
        losses = model.loss(output, targets, Whole(targets))
    size = len(batch)
    assert found.scores.dim() == 2
    assert found.scores.shape[0] == size
    assert found.labels.shape == found.scores.shape
    assert found.segments.shape == (*found.scores.shape, 2)
    assert found.valid is None or found.valid.shape == found.scores.shape
    assert found.labels.min() >= 0
    assert found.labels.max() < CLASSES
    assert all(value.dim() == 0 and torch.isfinite(value) for value in losses.values())
    assert "total" in losses


@EVERY
def test_a_clip_does_not_depend_on_what_it_shares_a_batch_with(data, name):
    model = build(name).eval()
    batch, _ = batch_of(data, name)
    with torch.no_grad():
        together = model.candidates(model(batch.features, batch.mask), batch.mask)
        for index in range(len(batch)):
            one = slice(index, index + 1)
            alone = model.candidates(model(batch.features[one], batch.mask[one]), batch.mask[one])
            for ours, other in zip(together, alone, strict=True):
                if ours is not None and ours.is_floating_point():
                    torch.testing.assert_close(ours[one], other, rtol=1e-4, atol=1e-4)


@EVERY
def test_parts_of_a_batch_add_up(data, name):
    batch, targets = batch_of(data, name)

    def run(chosen, told=None):
        model = without_chance(build(name))
        features, mask, some = part_of(batch, targets, chosen)
        whole = Sums(some, targets, told)
        losses = model.loss(model(features, mask), some, whole)
        losses["total"].backward()
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        return losses, gradients, whole.asked

    expected, gradients, _ = run([0, 1, 2])
    (_, _, one), (_, _, other) = run([0]), run([1, 2])
    first, second = run([0], other), run([1, 2], one)
    for key, value in expected.items():
        torch.testing.assert_close(first[0][key] + second[0][key], value, rtol=1e-4, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        summed = first[1].get(key, 0) + second[1].get(key, 0)
        torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-4 * largest)


@EVERY
def test_a_batch_without_an_instance(data, name):
    model = without_chance(build(name))
    batch, _ = batch_of(data, name, 2)
    none = Targets(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64), [0, 0],
        batch.padded,
    )  # fmt: skip
    losses = model.loss(model(batch.features, batch.mask), none, Whole(none))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@EVERY
def test_gradients_reach_every_parameter(data, name):
    model = without_chance(build(name))
    batch, targets = batch_of(data, name, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):  # what starts at zero lets nothing through in the first step
        optimizer.zero_grad()
        model.loss(model(batch.features, batch.mask), targets, Whole(targets))["total"].backward()
        optimizer.step()
    missing = {
        key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())
    }
    assert missing == expected_without_gradient(name, model)


def expected_without_gradient(name, model):
    """TriDet's window branches are products of zeros at the start, and stay so for ever."""
    if not name.startswith("tridet"):
        return set()
    parts = ("psi", "convw", "convkw", "fc", "global_fc")
    return {key for key, _ in model.named_parameters() if key.split(".")[-2] in parts}


@EVERY
def test_groups_hold_every_parameter_once(name):
    model = build(name)
    grouped = [id(p) for group in model.parameter_groups() for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@EVERY
def test_one_seed_one_result_and_bit_exact_resume(data, name, tmp_path):
    config = settings(name, "training.epochs=3", "training.batch_size=2", "training.check_every=1")
    videos = list(data.annotations.videos)

    def stop(event):
        if event.step == event.total_steps // 2:
            raise KeyboardInterrupt

    train(config, data, videos, tmp_path / "whole")
    train(config, data, videos, tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        train(config, data, videos, tmp_path / "cut", progress=interrupting(stop))
    assert (tmp_path / "cut" / "resume.pt").exists()
    train(config, data, videos, tmp_path / "cut")
    expected = read_checkpoint(tmp_path / "whole" / "checkpoint.pt")["model"]
    for other in ("again", "cut"):
        found = read_checkpoint(tmp_path / other / "checkpoint.pt")["model"]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), other


def interrupting(stop):
    """Turns an exception in the callback into Ctrl-C, as a person gives it."""
    import os
    import signal

    def progress(event):
        try:
            stop(event)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


@EVERY
def test_export_gives_the_same_numbers(data, name):
    model = build(name).eval()
    batch, _ = batch_of(data, name, 2)
    with torch.no_grad():
        program = torch.export.export(model, (batch.features, batch.mask))
        found = program.module()(batch.features, batch.mask)
        expected = model(batch.features, batch.mask)
    for ours, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("name", MODELS)
def test_formulas_count_the_products(name):
    # In training and under autocast: torch counts neither its own fused attention nor our fused
    # convolutions.
    model, rows = without_chance(build(name)), 256
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, rows, CHANNELS), torch.zeros(1, rows, dtype=torch.bool))
    counted = counter.get_total_flops() / 2
    promised = sum(model.flops(rows).values())
    # In the formula alone: torch's fused attention, and TriDet's gates, which are zero.
    assert 0.99 * counted <= promised <= 1.05 * counted


@EVERY
def test_four_videos_are_learned(data, name, tmp_path):
    config = settings(
        name, "training.budget=steps", "training.steps=120", "training.batch_size=4",
        "training.learning_rate=2e-3", *narrow(name),
    )  # fmt: skip
    videos = list(data.annotations.videos)
    summary = train(config, data, videos, tmp_path)
    found = predict(summary.checkpoint, data, videos, tmp_path / "found.json")
    assert evaluate(data.annotations, found).average_map == pytest.approx(1.0)


def test_the_running_number_is_saved(data, tmp_path):
    name = smallest(detector_of("actionformer"))
    config = settings(name, "training.epochs=2", "training.batch_size=2")
    train(config, data, list(data.annotations.videos), tmp_path)
    saved = read_checkpoint(tmp_path / "checkpoint.pt")["model"]["normaliser"]
    assert saved != config.detector.loss.normaliser
    model = build(name, config)
    model.load_state_dict(copy.deepcopy(read_checkpoint(tmp_path / "checkpoint.pt")["model"]))
    assert torch.equal(model.normaliser, saved)
