# SPDX-License-Identifier: Apache-2.0
"""Training steps that are recorded once and replayed with other inputs.

On a CPU a recorder of calls stands in for CUDA graphs; where there is a GPU, the last tests record
real ones.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings

import pytest
import torch
from small_settings import small
from step_recorder import AsItIs, CallRecorder, Recording

from tal_fast.data.batches import Batch
from tal_fast.models import detector_of
from tal_fast.models.base import Targets, Whole
from tal_fast.models.pyramid import convolution, layers
from tal_fast.models.pyramid.detector import PyramidDetector
from tal_fast.training import cuda_graph, load_config
from tal_fast.training.kept_weights import KeptWeights
from tal_fast.training.late import LateNumbers
from tal_fast.training.static_batch import BatchShape, StaticBatch, shape_of
from tal_fast.training.step import Stepper

GPU = torch.cuda.is_available()
CHANNELS, CLASSES, CLIPS = 16, 5, 3
MODELS = ("tadtr-small", "actionformer", "tridet", "temporalmaxer", "temporalmaxer-epic-verb")
PYRAMID = (
    "model.width=32", "model.head_width=32", "data.max_length=96", "training.amp=float32",
    "training.batch_size=3",
)  # fmt: skip
# Without dropout, whose seeds depend on how many numbers were drawn.
WITHOUT_CHANCE = {
    "tadtr-small": ["model.dropout=0"],
    "actionformer": ["model.dropout=0", "model.drop_path=0"],
    "tridet": ["model.drop_path=0", "model.input_noise=0"],
}
dropout = importlib.import_module("tal_fast.ops.dropout")


def settings(name, *overrides):
    if name.startswith("tadtr"):
        return small(overrides)
    more = ["model.heads=4", "model.levels=4"] if name.startswith("action") else ["model.levels=4"]
    ranges = "loss.ranges=[[0,4],[4,8],[8,16],[16,10000]]"
    return load_config(preset=name, overrides=[*PYRAMID, *more, ranges, *overrides])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Has models take the ways that they take on a GPU, where the host looks at no mask."""
    monkeypatch.setattr(convolution, "_in_products", lambda *_: False)
    for module in (convolution, layers):
        monkeypatch.setattr(module, "host_rows", lambda *_: None)
    monkeypatch.setattr(PyramidDetector, "_check_padding", lambda *_: None)
    # On a CPU alone it looks at the least and the greatest label.
    monkeypatch.setattr(
        torch.nn.functional, "one_hot", lambda x, n: (x[..., None] == torch.arange(n)).long()
    )
    # As while a graph is captured: seeds are drawn on the device.
    monkeypatch.setattr(
        dropout,
        "_draw_seed",
        lambda x: (0, torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)),
    )


def new_model(config, device="cpu"):
    torch.manual_seed(0)
    return detector_of(config.name)(CHANNELS, CLASSES, config.detector).to(device).train()


def batches(name, number, *, seed=1, counts=None, clips=CLIPS):
    """Batches with other features, lengths, instances and numbers of instances."""
    generator = torch.Generator().manual_seed(seed)
    rows = 32 if name.startswith("tadtr") else 96
    found = []
    for _ in range(number):
        own = counts or torch.randint(0, 5, (clips,), generator=generator).tolist()
        real = torch.randint(rows // 2, rows + 1, (clips,), generator=generator)
        if not name.startswith("tadtr"):
            real = real.clamp(max=rows - 16)
        mask = torch.arange(rows) >= real[:, None]
        features = torch.randn(clips, rows, CHANNELS, generator=generator)
        start = torch.rand(sum(own), generator=generator, dtype=torch.float64) * 20
        length = 2 + torch.rand(sum(own), generator=generator, dtype=torch.float64) * 12
        found.append(
            Batch(
                features=features.masked_fill(mask[..., None], 0.0),
                mask=mask,
                labels=torch.randint(CLASSES, (sum(own),), generator=generator),
                edges=torch.stack((start, start + length), 1),
                counts=own,
                lengths=real.tolist(),
                indices=list(range(clips)),
                starts=[0] * clips,
                rows=real.tolist(),
                videos=["video"] * clips,
            )
        )
    return found


def train(config, given, recorder, tmp_path, device="cpu"):
    """Trains on batches; returns the losses of every step, the weights and the averages."""
    model = new_model(config, device)
    stepper = Stepper(model, config, recorder)
    modes = ("plain", "corrected", "warmup")
    kept = KeptWeights(model, modes, 0.9, False, tmp_path, lambda *_: None, None)
    stepper.follow(kept)
    torch.manual_seed(7)
    losses = []
    for number, batch in enumerate(given):
        stepper.set_learning_rate(1e-3 / (1 + number))
        found = stepper.run(batch, "a step")
        losses.append({key: value.item() for key, value in found.items()})
    averages = {
        f"{mode} {key}": value.cpu() for mode in modes for key, value in kept._weights(mode).items()
    }
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return losses, {**weights, **averages}


def same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][key], other[1][key]) for key in one[1])


# ---- recorded steps are the steps --------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_are_those_that_run_as_they_are(name, as_on_a_gpu, tmp_path):
    config, given = settings(name), batches(name, 8)
    recorder = CallRecorder()
    recorded = train(config, given, recorder, tmp_path)
    assert (recorder.warmed, recorder.recorded, recorder.replays) == (3, 1, 5)
    assert same(recorded, train(config, given, AsItIs(), tmp_path))
    assert len({step["total"] for step in recorded[0]}) == 8


@pytest.mark.parametrize("name", MODELS)
def test_padded_instances_teach_nothing(name, as_on_a_gpu, tmp_path):
    config, given = settings(name, *WITHOUT_CHANCE.get(name, [])), batches(name, 4)
    padded, plain = (train(config, given, r, tmp_path) for r in (AsItIs(), None))
    for one, other in zip(padded[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-6)
    for key, weight in plain[1].items():
        torch.testing.assert_close(padded[1][key], weight, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_padded_targets(name, as_on_a_gpu):
    config = settings(name)
    model = new_model(config).eval()
    (batch,) = batches(name, 1, counts=[2, 0, 4])
    with torch.no_grad():
        output = model(batch.features, batch.mask)
        targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
        plain = model.loss(output, targets, Whole(targets))
        shape = shape_of(model, batch)
        static = StaticBatch(shape, batch, torch.device("cpu"))
        static.fill(batch)
        padded = model.loss(output, static.targets, Whole(static.targets))
    for key, value in plain.items():
        torch.testing.assert_close(padded[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("scope", ["video", "batch"])
def test_padded_instances_are_matched_after_real_ones(scope, as_on_a_gpu):
    from tal_fast.models.tadtr.matching import match

    config = settings("tadtr-small", f"loss.actionness_targets={scope}")
    generator = torch.Generator().manual_seed(3)
    counts = [3, 0, 8, 1]
    logits = torch.randn(2, 4, 8, CLASSES, generator=generator)
    segments = torch.rand(2, 4, 8, 2, generator=generator)
    labels = torch.randint(CLASSES, (12,), generator=generator)
    targets = torch.rand(12, 2, generator=generator)
    plain = match(logits, segments, labels, targets, counts, config.detector.loss)
    place = torch.tensor([clip * 8 + i for clip, n in enumerate(counts) for i in range(n)])
    real = torch.zeros(32, dtype=torch.bool).index_fill(0, place, True)
    padded = match(
        logits,
        segments,
        torch.zeros(32, dtype=torch.int64).index_copy(0, place, labels),
        torch.full((32, 2), -1e5).index_copy(0, place, targets),
        [8] * 4,
        config.detector.loss,
        real,
    )
    chosen = real[padded.target]
    for name in ("layer", "window", "query"):
        assert torch.equal(getattr(padded, name)[chosen], getattr(plain, name))
    assert torch.equal(padded.target[chosen], place[plain.target])


def test_rows_are_padded_too(as_on_a_gpu):
    config = settings("actionformer")
    model = new_model(config).eval()
    (batch,) = batches("actionformer", 1)
    short = dataclasses.replace(
        batch, features=batch.features[:, :80].clone(), mask=batch.mask[:, :80].clone()
    )
    static = StaticBatch(BatchShape(3, 96, 8), short, torch.device("cpu"))
    static.features.fill_(7.0)  # of an earlier batch
    static.mask.fill_(False)
    static.fill(short)
    assert torch.equal(static.features, batch.features)
    assert torch.equal(static.mask, batch.mask)
    assert static.targets.length == 96
    model.check_length(static.mask.shape[1])


# ---- the recorder finds what a graph would miss ------------------------------------------------


def test_a_number_that_python_keeps_is_found(as_on_a_gpu, tmp_path, monkeypatch):
    # The learning rate as a number, and not as a tensor: a replay has the one it was recorded at.
    def set_learning_rate(self, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    monkeypatch.setattr(Stepper, "set_learning_rate", set_learning_rate)
    config, given = settings("tadtr-small"), batches("tadtr-small", 6)
    recorded = train(config, given, CallRecorder(), tmp_path)
    assert not same(recorded, train(config, given, AsItIs(), tmp_path))


def test_a_seed_of_the_host_is_found(as_on_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(dropout, "_draw_seed", lambda x: (int(torch.randint(2**60, ())), None))
    config, given = settings("tadtr-small", "model.dropout=0.5"), batches("tadtr-small", 6)
    with pytest.warns(RuntimeWarning, match="recording failed: operation not permitted"):
        train(config, given, CallRecorder(), tmp_path)


def test_what_waits_for_the_device_cannot_be_recorded():
    with Recording(), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        torch.ones(2).sum().item()
    with Recording(), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        torch.ones(2).nonzero()


# ---- without a graph ---------------------------------------------------------------------------


def test_a_step_that_cannot_be_recorded_runs_as_it_is(as_on_a_gpu, tmp_path):
    class Refuses(CallRecorder):
        def record(self, function):
            raise RuntimeError("CUDA error: operation not permitted\nmore")

    config, given = settings("tadtr-small"), batches("tadtr-small", 6)
    with pytest.warns(RuntimeWarning, match="steps run without a graph, recording failed: CUDA"):
        found = train(config, given, Refuses(), tmp_path)
    assert all(step["total"] > 0 for step in found[0])


def test_a_batch_without_room_runs_as_it_is(as_on_a_gpu, tmp_path):
    config = settings("tadtr-small", "model.dropout=0")
    given = batches("tadtr-small", 5)
    given[2:2] = batches("tadtr-small", 1, counts=[9, 1, 0])
    recorder = CallRecorder()
    with pytest.warns(RuntimeWarning, match="a clip has 9 instances, and TadTR has 8 queries"):
        found = train(config, given, recorder, tmp_path)
    assert (recorder.warmed, recorder.replays) == (3, 2)
    plain = train(config, given, None, tmp_path)
    for one, other in zip(found[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=2e-4)


def test_few_shapes_are_recorded(as_on_a_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graph, "_MOST_SHAPES", 1)
    given = batches("tadtr-small", 2) + batches("tadtr-small", 1, clips=2)
    recorder = CallRecorder()
    with pytest.warns(RuntimeWarning, match="more than 1 shapes"):
        train(settings("tadtr-small"), given, recorder, tmp_path)
    assert recorder.warmed == 2


def test_reasons():
    config = settings("tadtr-small")
    model = new_model(config)
    cuda = torch.device("cuda")

    def reason(device=cuda, model=model, **changes):
        return cuda_graph.why_not(model, dataclasses.replace(config.training, **changes), device)

    assert reason() is None
    assert "graphs are of CUDA" in reason(torch.device("cpu"))
    assert "gradient scaler" in reason(amp="float16")

    class Own(type(model)):
        static_sizes = PyramidDetector.__mro__[1].static_sizes

    own = new_model(config)
    own.__class__ = Own
    assert reason(model=own) == "Own says no sizes that all its batches could have"


def test_on_a_cpu_the_reason_is_said():
    config = settings("tadtr-small", "training.cuda_graph=auto")
    with pytest.warns(RuntimeWarning, match="training.cuda_graph=auto: .*the device is cpu"):
        stepper = Stepper(new_model(config), config)
    assert isinstance(stepper.optimizer.param_groups[0]["lr"], float)


def test_the_setting():
    assert settings("tadtr-small").training.cuda_graph == "off"
    assert settings("tadtr-small", "training.cuda_graph=off").training.cuda_graph == "off"
    assert settings("tadtr-small", "training.cuda_graph=auto").training.cuda_graph == "auto"
    with pytest.raises(ValueError, match="cuda_graph"):
        settings("tadtr-small", "training.cuda_graph=on")


def test_trainings_without_a_graph_are_those_of_before():
    from tal_fast.training.config import config_to_dict, deciding

    off = deciding(config_to_dict(settings("tadtr-small")))
    auto = deciding(config_to_dict(settings("tadtr-small", "training.cuda_graph=auto")))
    assert "cuda_graph" not in off["training"]
    assert auto["training"].pop("cuda_graph") == "auto"
    assert auto == off


def test_a_saved_state_holds_numbers_and_goes_on(as_on_a_gpu):
    config, (batch, after) = settings("tadtr-small"), batches("tadtr-small", 2)
    first = Stepper(new_model(config), config, CallRecorder())
    first.set_learning_rate(0.5)
    first.run(batch, "a step")
    state = first.state_dict()
    slow = config.training.sampling_lr_scale
    assert [g["lr"] for g in state["optimizer"]["param_groups"]] == pytest.approx([0.5, 0.5 * slow])
    second = Stepper(new_model(config), config, CallRecorder())
    second.load_state_dict(state)
    totals = []
    for stepper in (first, second):
        stepper.set_learning_rate(0.25)
        torch.manual_seed(3)
        totals.append(stepper.run(after, "a step")["total"].item())
        assert [float(g["lr"]) for g in stepper.optimizer.param_groups] == pytest.approx(
            [0.25, 0.25 * slow]
        )
    assert totals[0] == totals[1]


@pytest.mark.parametrize(
    ("name", "rows", "instances", "expected"),
    [
        ("tadtr-small", 32, 0, (32, 8)),
        ("tadtr-small", 32, 8, (32, 8)),
        ("actionformer", 40, 3, (48, 8)),
        ("actionformer", 96, 9, (96, 16)),
        ("actionformer", 97, 8, (112, 8)),  # beyond the recipe's longest clip
    ],
)
def test_sizes(name, rows, instances, expected):
    model = new_model(settings(name))
    assert model.static_sizes(rows, instances) == expected


# ---- on a GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("name", MODELS)
def test_graphs_train_as_steps_that_run_as_they_are(name, tmp_path):
    config, given = settings(name, *WITHOUT_CHANCE.get(name, [])), batches(name, 8)
    recorder = cuda_graph.CudaRecorder(torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a failed recording warns
        recorded = train(config, given, recorder, tmp_path, "cuda")
    plain = train(config, given, AsItIs(), tmp_path, "cuda")
    for one, other in zip(recorded[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for key, weight in plain[1].items():
        torch.testing.assert_close(recorded[1][key], weight, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_every_replay_draws_new_dropout(tmp_path):
    config = settings("tadtr-small", "model.dropout=0.5", "training.learning_rate=1e-12")
    given = batches("tadtr-small", 1) * 6
    losses, _ = train(
        config, given, cuda_graph.CudaRecorder(torch.device("cuda")), tmp_path, "cuda"
    )
    assert len({step["total"] for step in losses}) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_numbers_come_from_pinned_memory():
    numbers = LateNumbers(torch.device("cuda"))
    value = torch.zeros((), device="cuda")
    found = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(5):
            value.fill_(step)
            numbers.put({"a": value}, step)
            found += numbers.ready()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found + numbers.drain() == [({"a": float(step)}, step) for step in range(5)]
