# SPDX-License-Identifier: Apache-2.0
"""Counting, op by op: bytes by hand, formulas of this library's ops, parts of a backward."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import tal_fast.ops
from tal_fast.profiling.cost import CostCounter, part_of, tensor_bytes

META = torch.device("meta")


def counted(function, *tensors, model=None):
    """The cost of a function of tensors."""
    counter = CostCounter(nn.Module() if model is None else model)
    with counter.counting("it"):
        function(*tensors)
    return counter.total()


def empty(*shape, dtype=torch.float32, device=META):
    return torch.empty(*shape, dtype=dtype, device=device)


def op_names():
    names = torch._C._dispatch_get_all_op_names()
    return sorted({n.split("::")[1].split(".")[0] for n in names if n.startswith("tal_fast::")})


class TestBytes:
    def test_a_product_reads_both_and_writes_one(self):
        cost = counted(torch.mm, empty(3, 5), empty(5, 7))
        assert (cost.bytes, cost.calls, cost.views) == (4 * (15 + 35 + 21), 1, 0)
        assert cost.flops == 2 * 3 * 5 * 7
        assert cost.macs == 3 * 5 * 7
        assert cost.intensity == 210 / 284

    def test_a_sum_of_two_and_of_one_with_itself(self):
        x, y = empty(4, 4), empty(4, 4)
        assert counted(torch.add, x, y).bytes == 3 * 64
        assert counted(torch.add, x, x).bytes == 2 * 64

    def test_halves_of_one_tensor_are_two_inputs(self):
        first, second = empty(4, 8).chunk(2, dim=1)
        assert counted(torch.add, first, second).bytes == 3 * 64

    def test_in_place_counts_twice(self):
        x, y = empty(4, 4), empty(4, 4)
        assert counted(lambda a, b: a.add_(b), x, y).bytes == 3 * 64
        assert counted(lambda a: a.mul_(2.0), x).bytes == 2 * 64
        assert counted(lambda a: torch._foreach_mul_([a, y], 2.0), x).bytes == 4 * 64

    def test_what_is_overwritten_is_not_read(self):
        x, y = empty(4, 4), empty(4, 4)
        assert counted(lambda a: a.zero_(), x).bytes == 64
        assert counted(lambda a, b: a.copy_(b), x, y).bytes == 2 * 64
        assert counted(lambda a, b: torch.mul(a, 2.0, out=b), x, y).bytes == 2 * 64

    def test_an_expanded_dimension_counts_once(self):
        assert tensor_bytes(empty(1, 4).expand(100, 4)) == 16
        assert counted(torch.add, empty(1, 4).expand(100, 4), empty(100, 4)).bytes == 16 + 2 * 1600
        assert tensor_bytes(empty(0, 4)) == 0

    def test_dtypes(self):
        assert counted(torch.add, empty(8, dtype=torch.bfloat16), 1).bytes == 2 * 16
        assert counted(lambda x: x == 0, empty(8)).bytes == 32 + 8

    def test_views_and_allocations_touch_nothing(self):
        def look(x):
            x.t()[1:].unsqueeze(0).expand(3, -1, -1)
            torch.empty_like(x)
            x.detach()

        cost = counted(look, empty(4, 4))
        assert (cost.bytes, cost.calls) == (0, 0)
        assert cost.views >= 5

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_devices_agree(self, device):
        x, y = (empty(6, 6, device=torch.device(device)) for _ in range(2))

        def work(x, y):
            return torch.relu_(x @ y + x).softmax(-1).sum()

        cost = counted(work, x, y)
        assert (cost.bytes, cost.flops) == (4 * (108 + 108 + 72 + 72 + 36 + 1), 2 * 6**3)


class TestFormulas:
    def test_every_op_states_its_flops(self):
        for module in pkgutil.iter_modules(tal_fast.ops.__path__, "tal_fast.ops."):
            importlib.import_module(module.name)  # tal_fast.ops itself leaves some of them out
        names = op_names()
        assert set(tal_fast.ops.__all__) & set(names)
        lacking = [n for n in names if getattr(torch.ops.tal_fast, n) not in flop_registry]
        assert not lacking, f"register_flops or register_no_flops in tal_fast/ops: {lacking}"

    def test_an_op_without_a_statement_would_be_found(self):
        library = torch.library.Library("tal_fast", "FRAGMENT")
        library.define("of_this_test(Tensor x) -> Tensor")
        try:
            assert "of_this_test" in op_names()
            assert torch.ops.tal_fast.of_this_test not in flop_registry
        finally:
            library._destroy()

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_deform_attn_fused(self, device):
        b, s, h, d, q, p = 2, 12, 4, 8, 5, 3
        value = torch.rand(b, s, h, d, device=device, requires_grad=True)
        reference = torch.rand(b, q, 1, 2, device=device, requires_grad=True)
        offsets = torch.rand(b, q, h, 1, p, device=device, requires_grad=True)
        logits = torch.rand(b, q, h, 1, p, device=device, requires_grad=True)
        two_rows = 2 * b * q * h * p * d  # multiply-adds
        with FlopCounterMode(display=False) as forward:
            out = tal_fast.ops.deform_attn_fused(value, (s,), reference, offsets, logits)
        assert forward.get_total_flops() == 2 * two_rows
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert backward.get_total_flops() == 2 * 2 * two_rows
        with FlopCounterMode(display=False) as backward:
            tal_fast.ops.deform_attn_fused(
                value, (s,), reference.detach(), offsets.detach(), logits.detach()
            ).sum().backward()
        assert backward.get_total_flops() == 2 * (two_rows + two_rows)  # forward; of value alone

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_deform_attn(self, device):
        b, h, d, q, p = 2, 4, 8, 5, 3
        value = torch.rand(b, 12, h, d, device=device, requires_grad=True)
        locations = torch.rand(b, q, h, 2, p, device=device, requires_grad=True)
        weights = torch.rand(b, q, h, 2, p, device=device)
        two_rows = 2 * b * q * h * 2 * p * d
        with FlopCounterMode(display=False) as forward:
            out = tal_fast.ops.deform_attn(value, (8, 4), locations, weights)
        assert forward.get_total_flops() == 2 * two_rows
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert backward.get_total_flops() == 2 * 2 * two_rows

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize(("window", "seen"), [(5, 5), (4, 5), (1, 1), (99, 16)])
    def test_local_attn(self, device, window, seen):
        b, t, h, d = 2, 16, 4, 8
        query, key, value = (
            torch.rand(b, t, h, d, device=device, requires_grad=True) for _ in range(3)
        )
        product = 2 * b * t * h * d * seen
        with FlopCounterMode(display=False) as forward:
            out = tal_fast.ops.local_attn(query, key, value, window)
        assert forward.get_total_flops() == 2 * product
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert backward.get_total_flops() == 4 * product
        with FlopCounterMode(display=False) as backward:
            tal_fast.ops.local_attn(query.detach(), key.detach(), value, window).sum().backward()
        assert backward.get_total_flops() == (2 + 1) * product

    def test_the_others_count_nothing_and_are_calls(self):
        segments = torch.tensor([[0.0, 2.0], [1.0, 4.0]])
        cost = counted(lambda: tal_fast.ops.segment_iou(segments, segments))
        assert (cost.flops, cost.calls) == (0, 1)
        assert cost.bytes == 16 + 16  # both arguments are one tensor

    @pytest.mark.parametrize("groups", [1, 2, 8])
    def test_a_backward_of_a_convolution_is_twice_its_forward(self, groups):
        x = torch.rand(2, 8, 10, device=META, requires_grad=True)
        conv = nn.Conv1d(8, 8, 3, padding=1, groups=groups, device=META)
        forward = CostCounter(conv)
        with forward.counting("forward"):
            out = conv(x)
        with forward.counting("backward"):
            out.sum().backward()
        assert forward.total("forward").macs == 2 * 10 * 8 * (8 // groups) * 3
        assert forward.total("backward").macs == 2 * forward.total("forward").macs

    def test_dropout_on_meta_is_the_op(self):
        counter = CostCounter(nn.Module())
        with counter.counting("it"):
            tal_fast.ops.dropout(empty(4, 4), 0.5, relu=True)
        assert counter.by_op["it", "tal_fast::dropout"].bytes == 2 * 64


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8, device=META), nn.ReLU())
        self.last = nn.Linear(8, 2, device=META)
        self.own = nn.Parameter(torch.empty(2, 2, device=META))

    def forward(self, x):
        return self.last(self.first(x)) @ self.own


class TestParts:
    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("", ""),
            ("transformer.encoder.layers.0.norm1", "transformer.encoder"),
            ("class_embed.0", "class_embed"),
            ("a.b.c", "a.b"),
            ("0.linear", ""),
        ],
    )
    def test_names(self, name, part):
        assert part_of(name) == part

    def test_a_backward_belongs_to_the_part_of_its_forward(self):
        model = Two()
        counter = CostCounter(model)
        with counter.counting("forward"):
            out = model(empty(3, 4))
        with counter.counting("backward"):
            out.sum().backward()
        macs = {key: cost.macs for key, cost in counter.by_part.items() if cost.macs}
        assert macs == {
            ("forward", "first"): 3 * 4 * 8,
            ("forward", "last"): 3 * 8 * 2,
            ("forward", ""): 3 * 2 * 2,
            ("backward", "first"): 3 * 4 * 8,  # the input asks for no gradient
            ("backward", "last"): 2 * 3 * 8 * 2,
            ("backward", ""): 2 * 3 * 2 * 2,
        }
        # What products read, but no parameter; what the ReLU gave is kept once for both.
        saved = {part: cost.saved for (_, part), cost in counter.by_part.items() if cost.saved}
        assert saved == {"first": 4 * (12 + 24), "": 4 * 6}
        assert counter.total("forward").saved == 4 * 42

    def test_views_of_parameters_without_gradients(self):
        # torch's own counter raises here: it hooks what has no gradient.
        model = Two()
        for mode in (torch.no_grad(), torch.inference_mode()):
            counter = CostCounter(model)
            with mode, counter.counting("it"):
                model.first(model.own.view(1, 4))
            assert counter.total().macs == 4 * 8

    def test_an_error_leaves_no_hook(self):
        model = Two()
        counter = CostCounter(model)
        with pytest.raises(RuntimeError), counter.counting("it"):
            model(empty(3, 5))
        before = counter.total().calls
        model(empty(3, 4))
        assert counter.total().calls == before
        assert not model.first._forward_hooks
        with counter.counting("it"):
            model(empty(3, 4))
        assert counter.by_part["it", "last"].macs == 48
