# SPDX-License-Identifier: Apache-2.0
"""Convolutions over rows whose channels lie last, against torch's over channels first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tal_fast.models.pyramid.convolution import (
    conv_norm_relu,
    conv_rows,
    depthwise_rows,
    host_rows,
)


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
    host = host_rows(real, inside)
    whole = F.conv1d(x.transpose(1, 2), weight, padding=kernel // 2).transpose(1, 2) * real
    normed = F.relu(F.layer_norm(whole, (8,), scale, bias)) * inside
    inputs = (x, weight, scale, bias)
    for found, expected, of in (
        (conv_rows(x, weight, None, host.used) * real, whole, inputs[:2]),
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


# Of convolutions that are wide and long enough for minimal filtering: first row of each run of used
# rows, and the one after its last, by clip.
LONG_RUNS = {
    "one clip": [[(0, 301)]],
    "clips of their own lengths": [[(0, 302)], [(0, 7)], [], [(0, 160)]],
    "levels with gaps": [[(0, 256), (257, 385), (386, 450), (454, 470), (471, 472)]],
    "beyond both borders": [[(3, 200), (202, 299)], [(5, 302)]],
}


def masks(runs: list[list[tuple[int, int]]], rows: int) -> torch.Tensor:
    real = torch.zeros(len(runs), rows, 1, dtype=torch.float64)
    for clip, own in enumerate(runs):
        for first, end in own:
            real[clip, first:end] = 1
    return real


@pytest.mark.parametrize("runs", LONG_RUNS.values(), ids=LONG_RUNS)
@pytest.mark.parametrize(("channels", "width"), [(128, 128), (131, 160)])
def test_minimal_filtering(runs, channels, width):
    """In double precision: of the same numbers but for rounding, gradients included."""
    torch.manual_seed(0)
    rows = max(302, max(end for own in runs for _, end in own) + 1)
    real = masks(runs, rows)
    inside = (real.roll(1, 1) + real + real.roll(-1, 1)).clamp(max=1)
    x = torch.randn(len(runs), rows, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(width, channels, 3, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.randn(width, dtype=torch.float64, requires_grad=True) for _ in range(2))
    host = host_rows(real, inside)
    whole = F.conv1d(x.transpose(1, 2), weight, bias, padding=1).transpose(1, 2)
    normed = F.relu(F.layer_norm((whole - bias) * real, (width,), scale, bias)) * inside
    for found, expected, of in (
        (conv_rows(x, weight, bias, host.used) * real, whole * real, (x, weight, bias)),
        (
            conv_norm_relu(x, weight, scale, bias, real, inside, host),
            normed,
            (x, weight, scale, bias),
        ),
    ):
        torch.testing.assert_close(found, expected)
        grad = torch.randn_like(expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, of, grad, retain_graph=True),
            torch.autograd.grad(expected, of, grad, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_rounding_of_minimal_filtering():
    """In single precision: at most four times as far from the truth as a direct convolution."""
    torch.manual_seed(0)
    x = torch.randn(1, 700, 128, dtype=torch.float64).relu()
    weight, grad = torch.randn(128, 128, 3).double(), torch.randn(1, 700, 128).double()
    x = x.float().double()

    def direct(*given):
        x, weight, grad = (part.detach() for part in given)
        padded, around = F.pad(x[0], (0, 0, 1, 1)), F.pad(grad[0], (0, 0, 1, 1))
        return (
            sum(padded[at : at + 700] @ weight[..., at].t() for at in range(3)),
            sum(around[2 - at : 702 - at] @ weight[..., at] for at in range(3)),
            torch.stack([grad[0].t() @ padded[at : at + 700] for at in range(3)], -1),
        )

    def ours(*given):
        x, weight, grad = given
        x, weight = x.requires_grad_(), weight.requires_grad_()
        out = conv_rows(x, weight, None)
        of_x, of_weight = torch.autograd.grad(out, (x, weight), grad)
        return out[0].detach(), of_x[0], of_weight

    given = (x, weight, grad)
    single = tuple(part.float() for part in given)
    for exact, usual, found in zip(direct(*given), direct(*single), ours(*single), strict=True):
        error, usual_error = ((part - exact).square().mean().sqrt() for part in (found, usual))
        assert 0 < error < 4 * usual_error


def test_same_bits_twice():
    torch.manual_seed(0)
    x = torch.randn(2, 700, 128, requires_grad=True)
    weight = torch.randn(160, 128, 3, requires_grad=True)
    used = [(0, 690, 0, 700), (700, 1111, 700, 1400)]
    grad = torch.zeros(2, 700, 160)
    grad[0, :690], grad[1, :411] = 1.0, -0.5
    results = []
    for _ in range(2):
        out = conv_rows(x, weight, None, used)
        results.append((out, *torch.autograd.grad(out, (x, weight), grad)))
    assert all(map(torch.equal, *results))


def test_rows_of_one_that_are_not_used_are_zero():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 50, 6), torch.randn(4, 6, 1), torch.randn(4)
    inputs = [part.double().requires_grad_() for part in (x, weight, bias)]
    real = masks([[(0, 41)], [(0, 3), (4, 50)]], 50)
    found = conv_rows(*inputs, host_rows(real, real).used)
    expected = F.linear(inputs[0], inputs[1][..., 0], inputs[2]) * real
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)  # not masked: what is no output has no gradient
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("used", [None, []], ids=["all of none", "none"])
def test_nothing_to_convolve(used):
    for clips, rows in ((0, 5), (2, 0), *(((2, 5),) if used is not None else ())):
        x = torch.randn(clips, rows, 130, requires_grad=True)
        weight, bias = torch.randn(140, 130, 3, requires_grad=True), torch.zeros(140)
        out = conv_rows(x, weight, bias, used)
        assert out.shape == (clips, rows, 140)
        assert not out.any()
        gradients = torch.autograd.grad(out, (x, weight), torch.zeros_like(out))
        assert [part.shape for part in gradients] == [x.shape, weight.shape]
        assert not any(part.any() for part in gradients)


def test_what_the_host_knows_of_rows():
    real = masks([[(0, 3)], [], [(1, 2), (4, 6)]], 6)
    inside = masks([[(0, 5)], [(0, 6)], [(1, 6)]], 6)
    known = host_rows(real, inside)
    assert known.used == [(0, 3, 0, 6), (13, 14, 12, 18), (16, 18, 12, 18)]
    assert known.outside == [(5, 6), (12, 13)]
    with torch.autocast("cpu", torch.bfloat16):
        assert host_rows(real, inside) is None


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
