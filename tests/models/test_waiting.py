# SPDX-License-Identifier: Apache-2.0
"""What of a training step waits for the GPU, found without one.

Torch's ``meta`` device stands in for it: a step runs there with shapes alone, whatever asks for a
value fails, and every tensor that comes from the host is seen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from host_copies import DEVICE, from_host

from tal_fast.models import build_model
from tal_fast.models.base import Targets, Whole
from tal_fast.models.tadtr import TadTR, TadTRConfig, TadTRLoss, TadTROutput, TadTRSizes
from tal_fast.models.tadtr.loss import tadtr_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda_emulator"))

import emulated as emulator

SIZES = TadTRSizes(
    d_model=32, num_heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, num_queries=8
)


def host_copy():
    torch.ones(2).to(DEVICE)


def host_index():
    torch.empty(3, device=DEVICE)[torch.tensor([0, 2])]


def new_tensor():
    torch.empty(3, device=DEVICE).new_tensor([1.0])


def made_tensor():
    torch.tensor([1.0], device=DEVICE)


@pytest.mark.parametrize("step", [host_copy, host_index, new_tensor, made_tensor])
def test_the_guard_sees_what_comes_from_the_host(step):
    assert from_host(step)


@pytest.mark.parametrize(
    "read", [torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item, bool, torch.nonzero]
)
def test_the_guard_refuses_what_asks_for_a_value(read):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        read(torch.empty(1, device=DEVICE))


def targets(counts, device):
    edges = torch.zeros(sum(counts), 2, dtype=torch.float64, device=device)
    return Targets(torch.zeros(sum(counts), dtype=torch.int64, device=device), edges, counts, 20)


@pytest.mark.parametrize("scope", ["video", "batch"])
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0), (9, 1, 300)])  # 9, 300: over the queries
def test_a_step_takes_nothing_from_the_host_and_gives_nothing(counts, scope):
    model = TadTR(16, 5, TadTRConfig(model=SIZES)).to(DEVICE)
    features = torch.empty(3, 20, 16, device=DEVICE)
    mask = torch.empty(3, 20, dtype=torch.bool, device=DEVICE)
    wanted = targets(counts, DEVICE)

    def step():
        losses = tadtr_loss(model(features, mask), wanted, TadTRLoss(actionness_targets=scope))
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert from_host(step) == []


@pytest.mark.parametrize(
    "preset", ["actionformer", "tridet", "temporalmaxer", "temporalmaxer-epic-verb"]
)
def test_a_step_over_a_pyramid_takes_nothing_from_the_host(preset):
    sizes = {"width": 32, "head_width": 32}
    with DEVICE:
        model = build_model(preset, in_channels=16, num_classes=5, **sizes).train()
    features = torch.empty(3, 96, 16, device=DEVICE)
    mask = torch.empty(3, 96, dtype=torch.bool, device=DEVICE)
    wanted = targets((2, 0, 3), DEVICE)._replace(length=96)

    def step():
        losses = model.loss(model(features, mask), wanted, Whole(wanted))
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert from_host(step) == []


def example(counts, device="cpu", queries=8):
    generator = torch.Generator().manual_seed(0)
    shape = (2, len(counts), queries)
    output = TadTROutput(
        torch.randn(*shape, 5, generator=generator).to(device),
        torch.rand(*shape, 2, generator=generator).to(device),
        torch.rand(shape[1:], generator=generator).to(device),
    )
    labels = torch.randint(5, (sum(counts),), generator=generator)
    edges = torch.rand(sum(counts), 2, generator=generator, dtype=torch.float64).cumsum(1)
    return output, Targets(labels, edges, counts, 2)


def test_targets_of_the_host_are_copied_once():
    output, wanted = example((2, 0, 3), DEVICE)
    copies = from_host(lambda: tadtr_loss(output, wanted, TadTRLoss()))
    assert copies == ["aten._to_copy.default"] * 2  # labels and edges


@pytest.mark.skipif(not emulator.LIBRARY.exists(), reason="no emulated CUDA kernels")
@pytest.mark.parametrize("counts", [(2, 0, 3), (9, 1, 30)])
def test_losses_and_gradients_have_the_same_bits_on_every_device(counts):
    output, wanted = example(counts)

    def losses():
        leaves = [item.clone().requires_grad_() for item in output]
        found = tadtr_loss(TadTROutput(*leaves), wanted, TadTRLoss())
        return found, torch.autograd.grad(found["total"], leaves)

    emulator.assert_same_bits(losses)


@pytest.mark.skipif(not emulator.LIBRARY.exists(), reason="no emulated CUDA kernels")
def test_without_an_assignment_the_loss_is_nan_where_nothing_can_be_raised():
    output, wanted = example((2, 0, 3))
    output.segments[0, 2, 5] = torch.nan
    with pytest.raises(RuntimeError, match="linear_assignment: expected costs that are not NaN"):
        tadtr_loss(output, wanted, TadTRLoss())
    with emulator.emulated():
        losses = tadtr_loss(output, wanted, TadTRLoss())
    assert losses["l1"].isnan()
    assert losses["iou"].isnan()
    assert losses["total"].isnan()
