# SPDX-License-Identifier: Apache-2.0
"""From traces of torch's profiler to ops and kinds of work."""

from __future__ import annotations

import csv
import gzip
import io
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tal_fast import ops, ranges
from tal_fast.profiling.cost import Cost
from tal_fast.profiling.figures import value_of
from tal_fast.profiling.kinds import (
    DISPATCH,
    OpRow,
    StepOps,
    kind_of,
    op_rows,
    products_of,
    step_ops,
    time_by_kind,
)
from tal_fast.profiling.op_recorder import OpRecorder, profiled_steps
from tal_fast.profiling.work import ops_csv, work_of


def event(name, start, end, *children, thread=1, device=0.0, kernels=0, shapes=None):
    made = SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        cpu_time_total=float(end - start),
        device_time_total=device,
        kernels=[object()] * kernels,
        cpu_children=list(children),
        cpu_parent=None,
        thread=thread,
        device_type=SimpleNamespace(name="CPU"),
        input_shapes=shapes,
    )
    for child in children:
        child.cpu_parent = made
    return made


def flat(*roots):
    found = []
    for root in roots:
        found += [root, *flat(*root.cpu_children)]
    return found


@pytest.mark.parametrize(
    ("op", "within", "kind"),
    [
        ("aten::addmm", None, "products"),
        ("aten::convolution_backward", None, "products"),
        ("tal_fast::deform_attn_fused_backward", None, "deformable attention"),
        ("tal_fast::local_attn", None, "local attention"),
        ("tal_fast::segment_roi_align", None, "RoI"),
        ("tal_fast::dropout_backward", None, "dropout"),
        ("aten::native_layer_norm", None, "normalisation"),
        ("aten::mul", None, "element-wise"),
        ("aten::_to_copy", None, "copies"),
        ("aten::cat", None, "copies"),
        ("aten::view", None, "dispatch"),
        ("tal_fast::matching_cost", None, "matching"),
        ("aten::_fused_adamw_", None, "optimiser"),
        ("aten::sort", None, "other ops"),
        ("aten::mul", "tal_fast.optimizer", "optimiser"),
        ("aten::mul", "tal_fast.matching", "matching"),
        ("aten::mul", "tal_fast.forward", "element-wise"),
    ],
)
def test_kinds(op, within, kind):
    assert kind_of(op, within) == kind


class TestTrace:
    def test_the_outermost_op_has_all_that_it_calls(self):
        kernel = event("GeneratedBackwardFor_tal_fast_dropout_default", 20, 90,
                       event("aten::clone", 30, 40))  # fmt: skip
        forward = event(
            "tal_fast.forward", 10, 200,
            event("tal_fast::dropout", 15, 100, kernel),
            # A composite is what it calls.
            event("aten::linear", 110, 150, event("aten::addmm", 112, 148)),
        )  # fmt: skip
        node = event(
            "GeneratedBackwardFor_tal_fast_dropout_defaultBackward", 210, 260,
            event("tal_fast::dropout_backward", 220, 250),
        )  # fmt: skip
        data = event("tal_fast.data", 0, 10, event("aten::empty", 1, 2))
        step = event("tal_fast.step", 0, 300, data, forward,
                     event("tal_fast.backward", 205, 280, node))  # fmt: skip
        (found,) = step_ops(flat(step))
        assert found.seconds == pytest.approx(290e-6)
        assert {key[0]: sums[1] * 1e6 for key, sums in found.ops.items()} == pytest.approx(
            {"tal_fast::dropout": 85, "aten::addmm": 36, "tal_fast::dropout_backward": 50}
        )
        rows = op_rows([found], {})
        between = next(row for row in rows if row.op == "(between ops)")
        assert between.seconds == pytest.approx(119e-6)
        assert sum(row.seconds for row in rows) == pytest.approx(found.seconds)

    def test_the_end_of_an_epoch_is_no_step(self):
        assert step_ops(flat(event("tal_fast.step", 0, 9, event("tal_fast.data", 0, 8)))) == []

    def test_rating_and_saving_within_a_step_are_left_out(self):
        step = event("tal_fast.step", 0, 100, event("aten::mm", 0, 10),
                     event("tal_fast.rate", 10, 90, event("aten::mm", 20, 80)))  # fmt: skip
        (found,) = step_ops(flat(step))
        assert found.seconds == pytest.approx(20e-6)
        assert found.ops[("aten::mm", "products")][:2] == [1, pytest.approx(10e-6)]

    def test_a_backward_in_a_thread_of_its_own_and_kernels(self):
        step = event("tal_fast.step", 0, 100, event("aten::mm", 0, 10, device=30.0, kernels=1))
        backward = event("aten::mm", 50, 60, thread=2, device=50.0, kernels=2)
        later = event("aten::mm", 150, 160, thread=2, device=50.0, kernels=2)
        (found,) = step_ops(flat(step, backward, later))
        assert found.launches == 3
        rows = {row.op: row for row in op_rows([found], {})}
        assert rows["aten::mm"].time == pytest.approx(80e-6)
        assert rows["(between ops)"].time == 0.0

    def test_products(self):
        events = [
            event("aten::mm", 0, 1, shapes=[[8, 4], [4, 2]]),
            event("aten::addmm", 0, 1, shapes=[[2], [8, 40], [40, 2]]),
            event("aten::bmm", 0, 1, shapes=[[3, 8, 4], [3, 4, 2]]),
            event("aten::mm", 0, 1, shapes=[[0, 4], [4, 2]]),
            event("aten::mm", 0, 1, shapes=[]),
        ]
        assert products_of(events) == [(1, 8, 40, 2), (3, 8, 4, 2), (1, 8, 4, 2)]
        assert len(products_of(events, most=2)) == 2

    def test_a_live_trace(self):
        x = torch.randn(64, 32, requires_grad=True)
        weight = torch.randn(32, 32, requires_grad=True)

        def step():
            out = F.linear(ops.dropout(x, 0.5, relu=True), weight).softmax(-1)
            out.square().sum().backward()

        steps = profiled_steps(step, 3)
        assert len(steps) == 3
        rows = op_rows(steps, {})
        names = {row.op for row in rows}
        assert {"tal_fast::dropout", "tal_fast::dropout_backward", "aten::_softmax"} <= names
        assert not [n for n in names if "Backward" in n or n in ("aten::linear", "aten::softmax")]
        shares = time_by_kind(rows)
        assert {"products", "dropout", "element-wise", "dispatch"} <= set(shares)
        assert sum(shares.values()) > 0


class TestRecorder:
    def loop(self, recorder, steps, start=2):
        x = torch.randn(64, 64, requires_grad=True)
        for number in range(steps):
            if number == start:
                recorder.start()
            with ranges.range("tal_fast.step"):
                with ranges.range("tal_fast.data"):
                    batch = torch.ones(64, 64)
                if number % 4 == 3:  # the end of an epoch
                    continue
                with ranges.range("tal_fast.forward"):
                    loss = (batch @ x).sum()
                with ranges.range("tal_fast.backward"):
                    loss.backward()
                with ranges.range("tal_fast.optimizer"), torch.no_grad():
                    x.mul_(0.5)

    def test_steps_are_profiled_then_one_is_counted(self):
        recorder = OpRecorder(steps=3)
        self.loop(recorder, 12)
        assert ranges.range("a") is ranges.range("b")
        rows, steps, products = recorder.rows()
        assert len(steps) == 3
        assert products == [(1, 64, 64, 64)]
        by_op = {(row.op, row.kind): row for row in rows}
        product = by_op[("aten::mm", "products")]
        assert (product.calls, product.flops) == (2, 2 * 2 * 64**3)  # forward, gradient of x
        # The gradient of a sum is one number, expanded.
        assert product.bytes == 4 * (5 * 64**2 + 1)
        # What is multiplied in the update belongs to the optimiser; in place: read and written.
        assert by_op[("aten::mul_", "optimiser")].bytes == 2 * 4 * 64**2

    def test_a_trace_of_the_first_steps(self):
        recorder = OpRecorder(steps=5)
        self.loop(recorder, 14)
        content = json.loads(gzip.decompress(recorder.trace()))
        names = [event.get("name") for event in content["traceEvents"]]
        # The ends of epochs are ranges, too.
        assert names.count("tal_fast.step") == 3
        assert "aten::mm" in names
        assert not {"host_name", "traceName"} & set(content)
        assert OpRecorder().trace() is None

    def test_a_training_that_ends_before(self):
        recorder = OpRecorder(steps=3)
        self.loop(recorder, 4)
        recorder.stop()
        recorder.stop()
        rows, steps, _ = recorder.rows()
        assert len(steps) == 1
        assert all(row.flops == 0 for row in rows)
        assert OpRecorder().rows() == ([], [], [])

    def test_an_error_within_a_step_leaves_nothing_behind(self):
        recorder = OpRecorder(steps=0)
        recorder.start()
        step, forward = (ranges.range(f"tal_fast.{name}") for name in ("step", "forward"))
        with pytest.raises(ValueError, match="stop"), step, forward:
            raise ValueError("stop")
        recorder.stop()
        assert ranges.range("a") is ranges.range("b")
        assert torch._C._len_torch_dispatch_stack() == 0


LIMITS = {
    "threads": 1,
    "flops": {"value": 100.0},
    "bytes": {"value": 10.0},
    "call": {"value": 2.0},
}


class TestWork:
    ROWS = (
        OpRow("aten::mm", "products", 2, 0.5, None, 40_000_000_000, 100_000_000),
        OpRow("aten::add", "element-wise", 10, 0.25, None, 0, 2_000_000_000),
        OpRow("aten::mul", "element-wise", 10, 0.05, None, 0, 1_000_000_000),
        OpRow("(between ops)", DISPATCH, 1, 0.2, None, 0, 0),
    )
    PROFILE = {  # noqa: RUF012
        "disturbed": False,
        "step": {"wall": {"value": 800.0}, "thread_cpu": {"value": 400.0}},
    }

    def test_roof(self):
        mm, add, mul, between = self.ROWS
        assert mm.roof(100e9, 10e9) == ("compute", pytest.approx(0.8))
        assert add.roof(100e9, 10e9) == ("memory", pytest.approx(0.8))
        assert mul.roof(100e9, 10e9) == ("memory", pytest.approx(2.0))  # from cache
        assert between.roof(100e9, 10e9) is None
        assert mm.intensity == 400.0

    def test_figures(self):
        found = work_of(self.ROWS, [StepOps(1.0)], LIMITS, self.PROFILE)
        assert value_of(found, "limits", "compute") == pytest.approx(0.5)
        assert value_of(found, "limits", "memory") == pytest.approx(0.3)
        assert list(found["kinds"]) == ["products", "element-wise", "dispatch"]
        assert found["kinds"]["element-wise"]["limit"] == "memory"
        assert value_of(found, "kinds", "element-wise", "roof") == pytest.approx(1.0)
        assert value_of(found, "flops_rate") == pytest.approx(50.0)
        assert value_of(found, "mfu") == pytest.approx(0.5)
        # Between ops, and 22 calls of 2 us.
        assert value_of(found, "host") == pytest.approx(0.2 + 22 * 2e-6)
        assert found["launches"]["reason"] == "not on a GPU"

    def test_rates_by_cpu_time_on_a_busy_machine(self):
        busy = {**self.PROFILE, "disturbed": True}
        found = work_of(self.ROWS, [StepOps(1.0)], LIMITS, busy)
        assert found["rates_by"] == "CPU time"
        assert value_of(found, "flops_rate") == pytest.approx(100.0)

    def test_without_counts_or_ceilings_there_is_a_reason(self):
        rows = [OpRow("aten::mm", "products", 1, 0.5, None, 0, 0)]
        limits = {**LIMITS, "bytes": {"value": None}, "call": {"value": None}}
        found = work_of(rows, [StepOps(0.5)], limits, self.PROFILE)
        for name in ("flops", "bytes", "flops_rate", "mfu", "host", "launches"):
            assert found[name]["value"] is None
            assert found[name]["reason"]
        assert found["kinds"]["products"]["roof"]["reason"]

    def test_csv_has_the_same_numbers(self):
        lines = list(csv.DictReader(io.StringIO(ops_csv(self.ROWS, LIMITS))))
        assert [line["op"] for line in lines] == [row.op for row in self.ROWS]
        assert float(lines[0]["time_ms"]) == 500.0
        assert lines[0]["limit"] == "compute"
        assert float(lines[0]["flops_per_byte"]) == 400.0
        assert sum(float(line["share"]) for line in lines) == pytest.approx(1.0)
        assert lines[-1]["limit"] == lines[-1]["device_ms"] == ""

    def test_merging_counts_by_name(self):
        step = StepOps(1.0, {("aten::mm", "products"): [2, 0.5, 0.0]})
        rows = op_rows([step], {("aten::mm", "products"): Cost(flops=7, bytes=3)})
        assert (rows[0].flops, rows[0].bytes) == (7, 3)
