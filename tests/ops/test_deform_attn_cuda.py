# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels of deform_attn and deform_attn_fused choose between, and sizes around the
edges of their warps, blocks, slices and ranges. Values, errors and dtypes in general are
tested with the ops."""

from __future__ import annotations

from contextlib import nullcontext

import emulated as emulator
import pytest
import test_deform_attn as given
import test_deform_attn_fused as fused
import torch
from torch import Tensor

from tal_fast.ops import deform_attn, deform_attn_fused
from tal_fast.reference.deform_attn import deform_attn as given_twin
from tal_fast.reference.deform_attn_fused import deform_attn_fused as fused_twin

pytestmark = pytest.mark.cuda_only

Shape = tuple[int, tuple[int, ...], int, int, int, int]
KIB = 1024


def check_given(shape: Shape, dtype: torch.dtype) -> None:
    """Output and all gradients against the float64 twin."""
    inputs = given.make(shape, dtype)
    value, lengths, locations, weights = inputs
    weight = torch.randn(
        shape[0], shape[2], shape[3] * shape[4], generator=torch.Generator().manual_seed(3)
    ).to(dtype)
    bound, by_value_bound, by_location_bound = given.TOLERANCE[dtype]
    wide = (value.double(), lengths, locations.double(), weights.double())
    expected = given_twin(*wide)
    scale = value.abs().max().item()
    given.assert_near(deform_attn(*inputs), expected, bound, scale)
    ours = given.gradients(deform_attn, inputs, weight)
    theirs = given.gradients(given_twin, wide, weight.double())
    size = scale * weight.abs().max().item() * shape[4] ** 0.5
    given.assert_near(ours[0], theirs[0], by_value_bound, theirs[0].abs().max().item())
    given.assert_near(ours[1], theirs[1], by_location_bound, max(lengths) * size)
    given.assert_near(ours[2], theirs[2], by_value_bound, size)


def check_fused(shape: Shape, dtype: torch.dtype, components: int = 2) -> None:
    inputs = fused.make(shape, dtype, components)
    bound, position_bound = fused.TOLERANCE[dtype]
    wide = fused.Inputs(
        *(t.double() if isinstance(t, Tensor) else t for t in inputs[:5]), inputs[5]
    )
    scale = inputs.value.abs().max().item()
    fused.assert_near(deform_attn_fused(*inputs), fused_twin(*wide), bound, scale)
    weight = fused.output_weight(shape, dtype)
    ours = fused.gradients(deform_attn_fused, inputs, weight)
    theirs = fused.gradients(fused_twin, wide, weight.double())
    size = scale * weight.abs().max().item() * shape[4] ** 0.5
    for mine, reference, limit in zip(
        ours, theirs, (bound, position_bound, position_bound, bound), strict=True
    ):
        rows = max(shape[1]) if limit == position_bound else 1
        fused.assert_near(
            mine, reference, limit, max(reference.abs().max().item(), rows * size / 8)
        )


def launched(device: str) -> list[str]:
    """Names of the kernels since the last call; of a real device nothing is known."""
    return emulator.launches() if device == "cuda-emulated" else []


def assert_launched(device: str, expected: list[str]) -> None:
    if device == "cuda-emulated":
        assert launched(device) == expected


# (shape, bytes of shared memory or None: all, path forward, path backward, that of the fused op)
PATHS: list[tuple[Shape, int | None, str, str, str]] = [
    ((2, (24,), 24, 2, 32, 4), None, "packs once", "staged packs", "staged"),
    # More samples of a query than lanes.
    ((2, (24,), 24, 2, 32, 9), None, "packs in rounds", "packs in rounds", "staged"),
    # Slices of 4 packs: 64 bytes of a row.
    ((1, (70, 30), 30, 2, 32, 2), 8 * KIB, "packs once", "packs once", "general"),
    ((1, (70, 30), 30, 2, 32, 3), 8 * KIB, "packs in rounds", "packs once", "general"),
    # 64 bytes of a row do not fit.
    ((1, (70, 30), 30, 2, 32, 2), 4 * KIB, "global packs", "packs once", "general"),
    ((1, (70, 30), 30, 2, 32, 5), 4 * KIB, "global packs", "packs in rounds", "general"),
    # Fewer samples than rows.
    ((2, (64, 9), 3, 2, 32, 4), None, "global packs", "packs once", "general"),
    # One point: nothing to divide by.
    ((1, (20, 9), 30, 2, 32, 1), None, "packs once", "staged", "staged"),
    # The forward cuts the channels, the backward keeps them together.
    ((1, (20,), 30, 1, 256, 2), 8 * KIB, "packs once", "general", "general"),
    ((1, (9,), 20, 2, 256, 2), None, "packs once", "staged", "staged"),
    # Rows that are no multiple of 16 bytes, or of the lanes.
    ((1, (9, 8), 20, 3, 33, 2), None, "staged", "staged", "staged"),
    ((1, (9, 8), 20, 3, 33, 2), KIB // 2, "general", "general", "general"),
    ((1, (9, 8), 20, 3, 40, 2), None, "staged", "staged", "staged"),
]


@pytest.mark.parametrize(("shape", "limit", "forward", "backward", "fused_backward"), PATHS)
def test_paths(
    shape: Shape, limit: int | None, forward: str, backward: str, fused_backward: str, device: str
) -> None:
    """float32, with the kernels that the host should choose."""
    if limit is not None and device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        launched(device)
        check_given(shape, torch.float32)
        names = [f"deform_attn forward, {forward}"] * 2
        sort = "sort" if limit is None or limit > KIB else "sort in global memory"
        assert_launched(device, [*names, *(f"deform_attn backward, {x}" for x in (sort, backward))])
        check_fused(shape, torch.float32)
        names = [f"deform_attn_fused forward, {forward}"] * 2
        names += [f"deform_attn_fused backward, {x}" for x in ("softmax", sort, fused_backward)]
        assert_launched(device, [*names, "deform_attn_fused backward, reference points"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("path", ["staged", "general"])
@pytest.mark.parametrize("shape", [(2, (24, 7), 20, 2, 32, 4), (1, (13,), 9, 2, 19, 3)])
def test_paths_of_other_dtypes(shape: Shape, path: str, dtype: torch.dtype, device: str) -> None:
    if path == "general" and device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    with emulator.shared_memory(256) if path == "general" else nullcontext():
        launched(device)
        check_given(shape, dtype)
        # float64 has no staged kernels: it is there to check gradients.
        taken = "general" if dtype == torch.float64 else path
        packs = "packs in rounds" if path == "staged" else "global packs"
        typed = shape[4] == 32 and dtype != torch.float64
        forward = packs if typed else taken
        backward = "packs in rounds" if typed else taken
        sort = "sort in global memory" if path == "general" else "sort"
        assert_launched(
            device,
            [
                *[f"deform_attn forward, {forward}"] * 2,
                f"deform_attn backward, {sort}",
                f"deform_attn backward, {backward}",
            ],
        )
        check_fused(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        ((2, (24,), 23, 2, 32, 4), None),
        ((2, (24, 7), 23, 2, 32, 6), None),
        ((1, (70, 30), 30, 2, 32, 2), 4 * KIB),
        # Long enough for warps of the sort that begin within a query, and rows without a sample.
        ((1, (300,), 131, 1, 32, 3), None),
    ],
)
def test_backward_packs_have_the_bits_of_the_general_kernels(
    shape: Shape, limit: int | None, dtype: torch.dtype, device: str
) -> None:
    """float64 locations with the values of float32 take the general ones."""
    if device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    value, lengths, locations, weights = given.make(shape, dtype)
    weight = fused.output_weight(shape, dtype)
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        launched(device)
        ours = given.gradients(deform_attn, (value, lengths, locations, weights), weight)
        assert "packs" in launched(device)[-1]
        theirs = given.gradients(deform_attn, (value, lengths, locations.double(), weights), weight)
        assert "packs" not in launched(device)[-1]
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other.to(one.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("points", "limit", "forward"),
    [
        (2, None, "packs once"),  # four samples: two slices of four packs
        (3, None, "packs once"),
        (5, None, "packs in rounds"),
        (5, 4 * KIB, "packs in rounds"),  # 128 bytes of a row do not fit
        (2, 2 * KIB, "global packs"),
        (5, 2 * KIB, "global packs"),
    ],
)
def test_wide_rows_of_16_bits(
    dtype: torch.dtype, points: int, limit: int | None, forward: str, device: str
) -> None:
    """64 channels: whole rows, or slices where those are cheaper; bits of the general kernel."""
    if device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    shape: Shape = (1, (30, 21), 11, 2, 64, points)
    plain = given.make(shape, dtype)
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        launched(device)
        ours = deform_attn(*plain)
        assert launched(device) == [f"deform_attn forward, {forward}"]
        theirs = deform_attn(*plain[:3], plain[3].float())
        assert "packs" not in launched(device)[0]
        assert torch.equal(ours, theirs)
        check_fused(shape, dtype)
        assert launched(device)[0] == f"deform_attn_fused forward, {forward}"


@pytest.mark.parametrize(
    "shape",
    [
        # One row, one query, one channel; one pack; one more than a pack.
        (1, (1,), 1, 1, 1, 1),
        (1, (1, 1, 1), 2, 1, 4, 1),
        (2, (3,), 5, 1, 5, 2),
        # Lanes per query 2, 4, 8, 16, 16; queries that fill their groups, and one more.
        (1, (4,), 32, 1, 4, 2),
        (1, (4,), 17, 1, 8, 2),
        (1, (6,), 33, 1, 16, 3),
        (1, (6,), 32, 2, 64, 4),
        (1, (6,), 3, 1, 36, 5),
        # Samples of a query: as many as lanes, one more, several rounds and a rest.
        (1, (9,), 7, 1, 32, 8),
        (1, (9,), 7, 1, 32, 9),
        (1, (5, 4, 3), 6, 1, 16, 7),
        # Samples of one level: a warp of the sort has 128 of them; eight warps, and a few more.
        (1, (40,), 256, 1, 8, 4),
        (1, (40,), 260, 1, 8, 4),
        (1, (3,), 360, 1, 4, 3),
        # More points than a warp of the sort has samples: it begins within a query.
        (1, (30,), 2, 1, 4, 1100),
        # Ranges of 256 rows: one whole, one of a single row, one level on its own.
        (1, (257, 5), 66, 1, 4, 2),
    ],
)
def test_sizes_around_edges(shape: Shape) -> None:
    check_given(shape, torch.float32)
    check_fused(shape, torch.float32, components=1)


def test_more_levels_than_parameters_hold(device: str) -> None:
    lengths = tuple(1 + i % 3 for i in range(130))
    shape = (2, lengths, 3, 2, 8, 2)
    launched(device)
    check_given(shape, torch.float32)
    names = ["deform_attn level table"] * 2
    forward, backward = "deform_attn forward, staged", "deform_attn backward, staged"
    sort = "deform_attn backward, sort"
    assert_launched(device, [*names, forward, *names, forward, *names, sort, backward])
    check_fused(shape, torch.float32)


@pytest.mark.parametrize("rows", [1, 40])
def test_all_samples_at_one_row(rows: int) -> None:
    """One tap has them all: its sum is still exact enough, and the rest stays zero."""
    queries, points = 300, 4
    value = torch.zeros(1, rows, 1, 32, requires_grad=True)
    locations = torch.full((1, queries, 1, 1, points), 0.5 / rows)  # row 0 exactly
    weights = torch.full_like(locations, 0.25)
    out = deform_attn(value, (rows,), locations, weights)
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(grad[0, 0], torch.full((1, 32), float(queries)))
    assert not grad[0, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [None, 2 * KIB])
def test_same_bits_on_every_run(dtype: torch.dtype, limit: int | None, device: str) -> None:
    # The emulator runs the threads of every other block backwards, from one call to the next, too.
    if limit is not None and device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    shape: Shape = (3, (20, 5), 40, 1, 32, 4)
    plain = given.make(shape, dtype)
    inputs = fused.make(shape, dtype, components=2)
    weight = fused.output_weight(shape, dtype)
    runs = 4 if device == "cuda-emulated" else 20
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        seen = [
            (
                deform_attn(*plain),
                *given.gradients(deform_attn, plain, weight),
                deform_attn_fused(*inputs),
                *fused.gradients(deform_attn_fused, inputs, weight),
            )
            for _ in range(runs)
        ]
    for other in seen[1:]:
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


def test_every_path_gives_the_same_bits_forward(device: str) -> None:
    """Staged or not, whole or in slices: sums have one order."""
    if device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    plain = given.make((2, (30, 20), 25, 2, 32, 4))
    expected = deform_attn(*plain)
    for limit in (4 * KIB, 2 * KIB, 1 * KIB):
        with emulator.shared_memory(limit):
            assert torch.equal(deform_attn(*plain), expected)


# Samples in one round of 8 lanes or of 4, in several rounds, and rows in global memory.
@pytest.mark.parametrize("limit", [None, 4 * KIB, 1 * KIB])
@pytest.mark.parametrize("points", [1, 4, 5])
@pytest.mark.parametrize("value", [torch.float32, torch.bfloat16, torch.float16])
def test_packs_give_the_bits_of_the_general_kernels(
    value: torch.dtype, points: int, limit: int | None, device: str
) -> None:
    """Samples in a dtype that has no kernel of its own go to a general one."""
    if device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    shape: Shape = (2, (30, 21), 11, 2, 32, points)
    other = torch.float64 if value == torch.float32 else torch.float32  # holds the same values
    plain = given.make(shape, value)
    # Outside the level, at its ends, and infinite.
    plain[2].view(-1)[:6] = torch.tensor([-1.0, 0.0, 1.0, 2.0, float("inf"), float("nan")])
    inputs = fused.make(shape, value, components=2)
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        launched(device)
        ours = deform_attn(*plain)
        theirs = deform_attn(*plain[:3], plain[3].to(other))
        packs, general = launched(device)
        assert "packs" in packs
        assert "packs" not in general
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
        assert torch.equal(
            deform_attn_fused(*inputs),
            deform_attn_fused(
                *inputs._replace(
                    sampling_offsets=inputs.sampling_offsets.to(other),
                    attention_logits=inputs.attention_logits.to(other),
                )
            ),
        )
        packs, general = launched(device)
        assert "packs" in packs
        assert "packs" not in general


def test_more_heads_than_multiprocessors(device: str) -> None:
    """A block takes a slice of a head, then a part of one of the two that are left over."""
    if device != "cuda-emulated":
        pytest.skip("the number of multiprocessors is that of the emulated device")
    # 134 slices on 132 multiprocessors that have room for the rows of one; 450 queries are two
    # parts.
    value, lengths, locations, weights = given.make((1, (1790,), 450, 67, 32, 2))
    launched(device)
    ours = deform_attn(value, lengths, locations, weights).view(1, 450, 67, 32)
    assert launched(device) == ["deform_attn forward, packs once"]
    some = torch.tensor([0, 31, 65, 66])
    alone = deform_attn(value[:, :, some], lengths, locations[:, :, some], weights[:, :, some])
    assert torch.equal(ours[:, :, some], alone.view(1, 450, 4, 32))
    assert not ours.isnan().any()


@pytest.mark.parametrize("op", ["given", "fused"])
def test_unaligned_tensors(op: str) -> None:
    """Tensors that begin between two multiples of 16 bytes, and gradients for them."""

    def shifted(tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        memory[1:] = tensor.flatten()
        return memory[1:].view(tensor.shape)

    shape: Shape = (2, (12, 5), 9, 2, 32, 4)
    weight = fused.output_weight(shape, torch.float32)
    if op == "given":
        value, lengths, locations, weights = given.make(shape)
        plain = (value, lengths, locations, weights)
        moved = (shifted(value), lengths, shifted(locations), shifted(weights))
        assert torch.equal(deform_attn(*moved), deform_attn(*plain))
        ours = given.gradients(deform_attn, moved, shifted(weight))
        theirs = given.gradients(deform_attn, plain, weight)
    else:
        inputs = fused.make(shape, components=2)
        moved_inputs = fused.Inputs(
            *(shifted(t) if isinstance(t, Tensor) else t for t in inputs[:5]), inputs[5]
        )
        assert torch.equal(deform_attn_fused(*moved_inputs), deform_attn_fused(*inputs))
        ours = fused.gradients(deform_attn_fused, moved_inputs, shifted(weight))
        theirs = fused.gradients(deform_attn_fused, inputs, weight)
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("limit", [None, 1 * KIB])
def test_padding_in_every_path(limit: int | None, device: str) -> None:
    if limit is not None and device != "cuda-emulated":
        pytest.skip("another size of shared memory")
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        for dtype in (torch.float32, torch.float16):
            fused.test_padding_may_hold_anything((3, (9, 6), 20, 2, 24, 4), dtype)


@pytest.mark.parametrize("limit", [None, 1 * KIB])
def test_empty_inputs_launch_what_they_must(limit: int | None, device: str) -> None:
    with emulator.shared_memory(limit) if limit is not None else nullcontext():
        launched(device)
        for shape in [(0, (4,), 3, 2, 8, 2), (2, (4,), 0, 2, 8, 2), (2, (4,), 3, 2, 0, 2)]:
            deform_attn(*given.make(shape))
            assert_launched(device, [])
        # Without a point there are rows of zeros to write.
        given.test_nothing_in_zeros_out((2, (4,), 3, 2, 8, 0))
        assert_launched(device, ["deform_attn forward, general", "deform_attn backward, general"])
