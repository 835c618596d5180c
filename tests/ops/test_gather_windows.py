# SPDX-License-Identifier: Apache-2.0
"""gather_windows against its twin, on every path, and what does not exist."""

from __future__ import annotations

import emulated as emulator
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tal_fast import ops
from tal_fast.reference import gather_windows as twin

DOUBLE, FLOAT, HALF, BRAIN = torch.float64, torch.float32, torch.float16, torch.bfloat16
WIDENINGS = (
    (DOUBLE, DOUBLE),
    (FLOAT, FLOAT),
    (FLOAT, DOUBLE),
    (HALF, HALF),
    (HALF, FLOAT),
    (HALF, DOUBLE),
    (BRAIN, BRAIN),
    (BRAIN, FLOAT),
    (BRAIN, DOUBLE),
)
OP = torch.ops.tal_fast.gather_windows.default


def make_store(rows: int, channels: int, dtype: torch.dtype = FLOAT) -> Tensor:
    generator = torch.Generator().manual_seed(rows + channels)
    store = torch.randn(rows, channels, generator=generator, dtype=torch.float64).to(dtype)
    if store.numel() > 10:
        store.view(-1)[:6] = torch.tensor(
            [-0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).smallest_normal / 4, 0.0]
        ).to(dtype)
    return store


def make_windows(count: int, store_rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Windows of every size that fits, the whole length and nothing among them."""
    generator = torch.Generator().manual_seed(count)
    most = min(length, store_rows)
    rows = torch.randint(0, most + 1, (count,), generator=generator)
    rows[::3] = most
    rows[1:2] = 0
    room = (store_rows - rows + 1).double()
    first = (torch.rand(count, generator=generator, dtype=torch.float64) * room).long()
    if count:
        first[-1] = store_rows - rows[-1]
        first[0] = 0
    return first, rows


def check(store: Tensor, first: Tensor, rows: Tensor, length: int, *options: object) -> None:
    features, mask = ops.gather_windows(store, first, rows, length, *options)
    expected, expected_mask = twin.gather_windows(store, first, rows, length, *options)
    assert features.is_contiguous()
    assert mask.dtype == torch.bool
    torch.testing.assert_close(features, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(features.signbit(), expected.signbit())


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize(("dtype", "wide"), WIDENINGS)
@pytest.mark.parametrize(
    ("store_rows", "channels", "count", "length"),
    [
        (1, 1, 1, 1),
        (9, 3, 5, 4),
        (40, 8, 4, 16),
        (40, 16, 3, 10),  # rows aligned, the output's channels not always
        (70, 136, 2, 72),  # more than one tile both ways, the last ones incomplete
        (70, 130, 2, 65),
        (30, 24, 33, 8),
        (5, 8, 3, 24),  # windows longer than the store
    ],
)
def test_matches_twin(store_rows, channels, count, length, dtype, wide, channels_first):
    store = make_store(store_rows, channels, dtype)
    check(store, *make_windows(count, store_rows, length), length, wide, channels_first)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("size", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0, 0)])
def test_empty(size, channels_first):
    count, channels, length = size
    first = rows = torch.zeros(count, dtype=torch.int64)
    for store_rows in (0, 6):
        check(torch.ones(store_rows, channels), first, rows, length, None, channels_first)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("channels", [1020, 1024, 1028, 2048, 300])
def test_around_the_elements_of_a_block(channels, channels_first):
    check(make_store(11, channels), *make_windows(3, 11, 8), 8, None, channels_first)


def test_a_batch_of_the_loader_by_hand():
    store = torch.arange(12.0).view(6, 2)
    features, mask = ops.gather_windows(store, torch.tensor([4, 0]), torch.tensor([2, 1]), 3)
    assert features.tolist() == [[[8, 9], [10, 11], [0, 0]], [[0, 1], [0, 0], [0, 0]]]
    assert mask.tolist() == [[False, False, True], [False, True, True]]
    turned, _ = ops.gather_windows(
        store, torch.tensor([4, 0]), torch.tensor([2, 1]), 3, channels_first=True
    )
    assert torch.equal(turned, features.transpose(1, 2))


def test_windows_of_other_strides():
    store, (first, rows) = make_store(20, 4), make_windows(6, 20, 5)
    both = torch.stack((first, rows), dim=1)
    check(store, both[:, 0], both[:, 1], 5)


def test_store_that_begins_anywhere():
    flat = make_store(1, 8 * 20 + 1)[0]
    for channels_first in (False, True):
        check(flat[1:].view(20, 8), *make_windows(4, 20, 8), 8, None, channels_first)


# ---- what only CUDA kernels have -----------------------------------------------------------------


@pytest.mark.cuda_only
@pytest.mark.parametrize(
    ("channels", "length", "first", "names"),
    [
        (8, 8, 0, ("gather_windows", "gather_windows transposed")),
        (8, 6, 0, ("gather_windows", "gather_windows transposed, general")),
        (6, 8, 0, ("gather_windows, general", "gather_windows transposed, general")),
        (8, 8, 1, ("gather_windows, general", "gather_windows transposed, general")),
        (8, 8, 4, ("gather_windows", "gather_windows transposed")),
    ],
)
def test_paths(device, channels, length, first, names):
    store = torch.ones(5 * channels + first)[first:].view(5, channels)
    emulator.launches()
    for channels_first in (False, True):
        check(store, *make_windows(2, 5, length), length, None, channels_first)
    if device == "cuda-emulated":
        assert emulator.launches() == list(names)


@pytest.mark.cuda_only
@pytest.mark.parametrize("channels", [5, 8])
@pytest.mark.parametrize("channels_first", [False, True])
def test_rows_that_do_not_exist_are_padding(channels, channels_first):
    # Within a larger allocation, so that a read outside the store would be seen as values.
    store = torch.full((30, channels), torch.nan)[10:20]
    store[:] = make_store(10, channels).nan_to_num()
    least, most = -(2**63), 2**63 - 1
    first = torch.tensor([-3, 8, 10, 11, -7, -8, 0, 0, 2, least, most, least, most, 5])
    rows = torch.tensor([8, 8, 8, 8, 8, 8, 99, -1, -5, most, most, least, least, 0])
    check(store, first, rows, 8, None, channels_first)
    check(torch.zeros(0, channels), first, rows, 8, None, channels_first)


@pytest.mark.cpu_only
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize(("dtype", "wide"), WIDENINGS)
def test_cuda_has_the_bits_of_the_cpu(dtype, wide, channels_first):
    store = make_store(50, 40, dtype).nan_to_num()
    for length in (16, 21):
        windows = make_windows(5, 50, length)
        features, mask = OP(store, *windows, length, wide, channels_first)
        for other in emulator.cuda_results(
            lambda length=length, windows=windows: OP(store, *windows, length, wide, channels_first)
        ):
            assert torch.equal(features, other[0])
            assert torch.equal(mask, other[1])


# ---- torch ---------------------------------------------------------------------------------------


def test_same_for_any_number_of_threads(thread_counts):
    store, windows = make_store(500, 512), make_windows(9, 500, 300)
    for channels_first in (False, True):
        results = []
        for count in thread_counts:
            torch.set_num_threads(count)
            results.append(ops.gather_windows(store.nan_to_num(), *windows, 300, None,
                                              channels_first))  # fmt: skip
        for features, mask in results[1:]:
            assert torch.equal(features, results[0][0])
            assert torch.equal(mask, results[0][1])


def test_has_no_gradient():
    store = torch.randn(6, 4, requires_grad=True)
    features, mask = ops.gather_windows(store, *make_windows(2, 6, 3), 3)
    assert not features.requires_grad
    assert not mask.requires_grad


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_opcheck(channels_first, requires_grad):
    store = torch.randn(6, 4, requires_grad=requires_grad)
    torch.library.opcheck(OP, (store, *make_windows(2, 6, 3), 3, FLOAT, channels_first))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=dynamic, backend=counter)
    def batch(store, first, rows, length):
        features, mask = ops.gather_windows(store, first, rows, length, torch.float32)
        return features.masked_fill(mask[..., None], -1.0).sum(dim=2)

    for count, length in ((2, 5), (3, 7), (4, 9)):
        store, windows = torch.randn(20, 6).half(), make_windows(count, 20, length)
        features, mask = twin.gather_windows(store, *windows, length, torch.float32)
        expected = features.masked_fill(mask[..., None], -1.0).sum(dim=2)
        torch.testing.assert_close(batch(store, *windows, length), expected)
    assert counter.frame_count == (1 if dynamic else 2)  # None: once more to become dynamic
    torch._dynamo.reset()


# ---- errors --------------------------------------------------------------------------------------

STORE = torch.zeros(6, 4)
TWO = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STORE[0], TWO, TWO, 3), r"expected store of shape \[R, C\], got \[4\]"),
        ((STORE.long(), TWO, TWO, 3, FLOAT), "expected store of dtype float64, .* got int64"),
        ((STORE, TWO, TWO, 3, torch.int32), "expected dtype of dtype float64, .* got int32"),
        ((STORE, TWO, TWO, 3, HALF), "that of store, float32, or one that .* got float16"),
        ((STORE.half(), TWO, TWO, 3, BRAIN), "that of store, float16, .* got bfloat16"),
        ((STORE.bfloat16(), TWO, TWO, 3, HALF), "that of store, bfloat16, .* got float16"),
        ((STORE.double(), TWO, TWO, 3, FLOAT), "that of store, float64, .* got float32"),
        ((STORE.t(), TWO, TWO, 3), r"contiguous store, got \[4, 6\] with strides \[1, 4\]"),
        ((STORE[:, :2], TWO, TWO, 3), r"contiguous store, got \[6, 2\] with strides \[4, 1\]"),
        ((STORE, TWO[:1], TWO, 3), r"first_row and rows of shape \[B\], got \[1\] and \[2\]"),
        ((STORE, TWO[None], TWO[None], 3), r"of shape \[B\], got \[1, 2\] and \[1, 2\]"),
        ((STORE, TWO.int(), TWO, 3), "first_row and rows of dtype int64, got int32 and int64"),
        ((STORE, TWO, TWO.float(), 3), "of dtype int64, got int64 and float32"),
        ((STORE, TWO, TWO, -1), "expected length >= 0, got -1"),
        ((STORE, TWO.to("meta"), TWO, 3), "expected first_row on cpu like store, got meta"),
        ((STORE, TWO, TWO.to("meta"), 3), "expected rows on cpu like store, got meta"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(RuntimeError, match=f"gather_windows: .*{message}"):
        ops.gather_windows(*arguments)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("first", "rows", "message"),
    [
        (0, -1, r"expected rows in \[0, 3\], got -1 for window 1"),
        (0, 4, r"expected rows in \[0, 3\], got 4 for window 1"),
        (-1, 2, "within the 6 rows of store, got first_row -1 with 2 rows for window 1"),
        (4, 3, "within the 6 rows of store, got first_row 4 with 3 rows for window 1"),
        (7, 0, "within the 6 rows of store, got first_row 7 with 0 rows for window 1"),
        (2**63 - 1, 3, "within the 6 rows of store, got first_row 9223372036854775807 with 3"),
    ],
)
def test_errors_in_values(first, rows, message):
    with pytest.raises(RuntimeError, match=f"gather_windows: .*{message}"):
        ops.gather_windows(STORE, torch.tensor([0, first]), torch.tensor([3, rows]), 3)
