# SPDX-License-Identifier: Apache-2.0
"""Convolutions over rows whose channels lie last, against torch's over channels first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tal_fast.models.pyramid.convolution import conv_norm_relu, conv_rows, depthwise_rows


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("clips", [0, 1, 3])
def test_convolution_and_its_gradients(clips, rows, kernel):
    torch.manual_seed(0)
    x = torch.randn(clips, rows, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(clips, rows, 4, dtype=torch.float64)
    found = conv_rows(x, weight, bias)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    inputs = (x, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


# Runs of used rows near each other and far, at both ends and nowhere.
RUNS = ([(0, 5), (9, 20), (70, 71)], [(3, 60), (90, 100)], [])


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_rows_that_are_not_used_make_no_difference(kernel):
    torch.manual_seed(0)
    x = torch.randn(3, 100, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 6, kernel, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    real = torch.zeros(3, 100, 1, dtype=torch.float64)
    for clip, runs in enumerate(RUNS):
        for first, end in runs:
            real[clip, first:end] = 1
    inside = torch.ones_like(real)
    inside[:, 95:] = 0
    real = real * inside
    whole = F.conv1d(x.transpose(1, 2), weight, padding=kernel // 2).transpose(1, 2) * real
    normed = F.relu(F.layer_norm(whole, (8,), scale, bias)) * inside
    inputs = (x, weight, scale, bias)
    for found, expected, of in (
        (conv_rows(x, weight, None, real) * real, whole, inputs[:2]),
        (conv_norm_relu(*inputs, real, inside), normed, inputs),
    ):
        torch.testing.assert_close(found, expected)
        grad = torch.randn_like(expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, of, grad, retain_graph=True),
            torch.autograd.grad(expected, of, grad, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_convolution_in_bfloat16_adds_up_in_float32():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 20, 64), torch.randn(8, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = conv_rows(x, weight, None)
    assert found.dtype == torch.bfloat16
    rounded = conv_rows(x.bfloat16().float(), weight.bfloat16().float(), None)
    torch.testing.assert_close(found, rounded.bfloat16(), atol=0, rtol=2**-7)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution(stride):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 10, 6), torch.randn(6, 1, 5), torch.randn(6)
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride, 2, groups=6).transpose(1, 2)
    torch.testing.assert_close(depthwise_rows(x, weight, bias, stride), expected)
