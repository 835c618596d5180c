# SPDX-License-Identifier: Apache-2.0
"""Ranges: one shared do-nothing context when off; NVTX, torch's profiler and recorders when on."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

import pytest

from tal_fast import ranges


class Listener:
    """A sink that remembers."""

    def __init__(self):
        self.told = []

    def push(self, name):
        self.told.append(("push", name))

    def pop(self, name):
        self.told.append(("pop", name))


@pytest.fixture
def listener():
    sink = Listener()
    ranges.add_sink(sink)
    yield sink
    ranges.remove_sink(sink)


@pytest.fixture
def nvtx(monkeypatch):
    """Names of the NVTX ranges that were entered, and of the attributes that were made."""
    entered, made = [], []

    class Domain:
        depth = 0

        def get_event_attributes(self, message):
            made.append(message)
            return message

        def push_range(self, attributes):
            entered.append(attributes)
            Domain.depth += 1

        def pop_range(self):
            Domain.depth -= 1

    def get_domain(name):
        assert name == "tal_fast"
        return Domain()

    module = ModuleType("nvtx")
    module.get_domain = get_domain
    monkeypatch.setitem(sys.modules, "nvtx", module)
    yield entered, made
    ranges.enable_ranges(False)
    assert Domain.depth == 0


def test_off_costs_one_shared_context():
    assert ranges.range("a") is ranges.range("b")
    with ranges.range("a") as given:
        assert given is None


def test_nvtx_attributes_are_made_once_per_name(nvtx):
    entered, made = nvtx
    ranges.enable_ranges()
    ranges.enable_ranges()  # again is once
    for _ in range(3):
        with ranges.range("a"), ranges.range("b"):
            pass
    assert entered == ["a", "b"] * 3
    assert made == ["a", "b"]
    ranges.enable_ranges(False)
    assert ranges.range("a") is ranges.range("b")


def test_the_installed_nvtx_takes_what_it_is_given():
    ranges.enable_ranges()
    try:
        with ranges.range("tal_fast.a"):
            pass
    finally:
        ranges.enable_ranges(False)


def test_sinks_are_told_in_order_and_also_after_an_error(listener):
    other = Listener()
    ranges.add_sink(other)
    with pytest.raises(ValueError, match="no"), ranges.range("a"), ranges.range("b"):
        raise ValueError("no")
    ranges.remove_sink(other)
    expected = [("push", "a"), ("push", "b"), ("pop", "b"), ("pop", "a")]
    assert listener.told == other.told == expected


def test_a_sink_that_leaves_in_a_range_is_told_of_its_end():
    sink = Listener()
    ranges.add_sink(sink)
    with ranges.range("a"):
        ranges.remove_sink(sink)
        with ranges.range("b"):
            pass
    assert sink.told == [("push", "a"), ("pop", "a")]
    with ranges.range("c"):
        ranges.add_sink(sink)
    ranges.remove_sink(sink)
    assert sink.told == [("push", "a"), ("pop", "a")]


def test_ranges_appear_in_torch_profiler():
    from torch.profiler import ProfilerActivity, profile

    sink = ranges.ProfilerSink()
    ranges.add_sink(sink)
    before = ranges.range("tal_fast.before")
    before.__enter__()
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            with ranges.range("tal_fast.a"), ranges.range("tal_fast.b"):
                pass
            thread = threading.Thread(target=lambda: ranges.range("x").__enter__())
            thread.start()
            thread.join()
    finally:
        before.__exit__()
        ranges.remove_sink(sink)
    names = [event.key for event in profiler.key_averages()]
    assert {"tal_fast.a", "tal_fast.b"} <= set(names)
    assert "tal_fast.before" not in names


def test_on_marks_every_phase_of_a_training(nvtx, tmp_path):
    from tal_fast.data.dataset import open_dataset
    from tal_fast.data.synthetic import make_synthetic
    from tal_fast.training import load_config, train

    ranges.enable_ranges()
    make_synthetic(tmp_path / "data", train_videos=4, test_videos=1, channels=16, seed=3)
    data = open_dataset(tmp_path / "data")
    small = ["model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    small += ["training.epochs=2", "training.batch_size=2", "data.window=32"]
    config = load_config(preset="tadtr-small", overrides=[*small, "training.holdout=0.25"])
    train(config, data, data.splits["train"], tmp_path / "out")
    phases = ("step", "data", "transfer", "forward", "matching", "backward", "optimizer", "rate")
    assert {f"tal_fast.{phase}" for phase in (*phases, "save")} <= set(nvtx[0])
