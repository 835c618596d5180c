# SPDX-License-Identifier: Apache-2.0
"""Transforms of minimal filtering against their twins, and what they are parts of: convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tal_fast.ops.conv_tiles import (
    rows_to_tiles,
    tiles_to_rows,
    tiles_to_weight,
    weight_to_tiles,
)
from tal_fast.reference import conv_tiles as twin

pytestmark = pytest.mark.cpu_only  # there are no CUDA kernels

# first, end, low, high of each span
SPANS = {
    "none": [],
    "one row": [0, 1, 0, 1],
    "whole clip": [0, 17, 0, 17],
    "at both borders": [2, 9, 2, 20, 17, 20, 2, 20],
    "clips side by side": [0, 5, 0, 5, 5, 11, 5, 11, 11, 12, 11, 12],
    "two rows between": [3, 8, 0, 40, 10, 11, 0, 40, 13, 29, 0, 40],
    "inside": [6, 31, 1, 39],
}
ROWS = 40


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tiles_of(spans: list[int]) -> int:
    return sum(-(-(end - first) // 4) for first, end in zip(spans[::4], spans[1::4], strict=True))


@pytest.mark.parametrize("inputs", [True, False])
@pytest.mark.parametrize("channels", [0, 1, 7, 8, 19, 64])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
def test_matches_twin(spans, dtype, error, channels, inputs):
    rows = numbers(ROWS, channels, dtype=dtype)
    torch.testing.assert_close(
        rows_to_tiles(rows, spans, inputs=inputs),
        twin.rows_to_tiles(rows, spans, inputs=inputs),
        rtol=0,
        atol=10 * error,
    )
    tiles = numbers(6, tiles_of(spans), channels, dtype=dtype)
    torch.testing.assert_close(
        tiles_to_rows(tiles, spans, ROWS, inputs=inputs),
        twin.tiles_to_rows(tiles, spans, ROWS, inputs=inputs),
        rtol=0,
        atol=20 * error,
    )


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
def test_products_of_tiles_are_a_convolution_and_its_gradients(spans):
    x, weight, grad = numbers(ROWS, 5), numbers(7, 5, 3, seed=1), numbers(ROWS, 7, seed=2)
    x.requires_grad_()
    weight.requires_grad_()
    expected = torch.zeros(ROWS, 7, dtype=torch.float64)
    for first, end, low, high in zip(*[iter(spans)] * 4, strict=True):
        clip = F.conv1d(x[low:high].t()[None], weight, padding=1)[0].t()
        mask = torch.zeros(ROWS, 1, dtype=torch.float64)
        mask[first:end] = 1
        expected = expected + F.pad(clip, (0, 0, low, ROWS - high)) * mask
    tiles = rows_to_tiles(x, spans, inputs=True)
    products = tiles @ weight_to_tiles(weight).transpose(1, 2)
    found = tiles_to_rows(products, spans, ROWS, inputs=False)
    torch.testing.assert_close(found, expected)
    if spans:
        for ours, theirs in zip(
            torch.autograd.grad(found, (x, weight), grad),
            torch.autograd.grad(expected, (x, weight), grad),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_transform_of_weights_and_its_transpose():
    weight, tiles = numbers(4, 3, 3), numbers(6, 4, 3, seed=1)
    there, back = (weight_to_tiles(weight) * tiles).sum(), (tiles_to_weight(tiles) * weight).sum()
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize("inputs", [True, False])
def test_contracts_of_torch(inputs):
    spans = SPANS["two rows between"]
    rows = numbers(ROWS, 3).requires_grad_()
    tiles = numbers(6, tiles_of(spans), 3).requires_grad_()
    of_tiles = torch.ops.tal_fast.rows_to_tiles.default
    of_rows = torch.ops.tal_fast.tiles_to_rows.default
    torch.library.opcheck(of_tiles, (rows, spans, inputs))
    torch.library.opcheck(of_rows, (tiles, spans, ROWS, inputs))
    options = {"check_forward_ad": True, "check_backward_ad": True}
    assert torch.autograd.gradcheck(lambda x: of_tiles(x, spans, inputs), rows, **options)
    assert torch.autograd.gradcheck(lambda x: of_rows(x, spans, ROWS, inputs), tiles, **options)


@pytest.mark.parametrize("inputs", [True, False])
def test_same_bits_for_any_number_of_threads(inputs):
    spans = [0, 2203, 0, 2203, 2203, 4001, 2203, 4406]
    rows = numbers(4406, 67, dtype=torch.float32)
    tiles = numbers(6, tiles_of(spans), 67, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(
                (
                    rows_to_tiles(rows, spans, inputs=inputs),
                    tiles_to_rows(tiles, spans, len(rows), inputs=inputs),
                )
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([0, 4, 0], "four numbers per span, got 3"),
        ([0, 4, 1, 9], "0 <= low <= first < end <= high <= 9 in each span, got first 0"),
        ([4, 4, 0, 9], "got first 4, end 4"),
        ([0, 10, 0, 10], "end 10"),
        ([0, 4, 0, 9, 5, 8, 0, 9], "got row 4 in span 1 and before"),
        ([5, 8, 0, 9, 0, 2, 0, 9], "got row 0 in span 1 and before"),
    ],
)
def test_refuses_spans_that_are_none(spans, message):
    with pytest.raises(RuntimeError, match=f"rows_to_tiles: expected .*{message}"):
        rows_to_tiles(numbers(9, 2), spans, inputs=True)
    with pytest.raises(RuntimeError, match=f"tiles_to_rows: expected .*{message}"):
        tiles_to_rows(numbers(6, 3, 2), spans, 9, inputs=True)


def test_refuses_other_shapes_and_dtypes():
    spans = [0, 5, 0, 9]
    with pytest.raises(RuntimeError, match=r"expected rows of shape \[R, C\], got \[9\]"):
        rows_to_tiles(numbers(9), spans, inputs=True)
    with pytest.raises(RuntimeError, match=r"rows of dtype float64 or float32, got int64"):
        rows_to_tiles(torch.zeros(9, 2, dtype=torch.int64), spans, inputs=True)
    with pytest.raises(RuntimeError, match=r"tiles of shape \[6, 2, C\], got \[6, 3, 2\]"):
        tiles_to_rows(numbers(6, 3, 2), spans, 9, inputs=True)
    with pytest.raises(RuntimeError, match=r"tiles of dtype float64 or float32, got bfloat16"):
        tiles_to_rows(numbers(6, 2, 2, dtype=torch.bfloat16), spans, 9, inputs=True)
    with pytest.raises(RuntimeError, match=r"expected rows >= 0, got -1"):
        tiles_to_rows(numbers(6, 0, 2), [], -1, inputs=True)
