# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import emulated as emulator
import pytest
import torch
from torch import Tensor

from tal_fast.ops import linear_assignment, matching_cost, segment_iou
from tal_fast.reference.matching_cost import matching_cost as twin

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, list[int]]


def make(
    layers: int = 2,
    batch: int = 3,
    queries: int = 7,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    spread: float = 2.0,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(9, (batch,), generator=generator).tolist()
    if batch > 1:
        counts[batch // 2] = 0  # a video without an instance
    logits = torch.randn(layers, batch, queries, classes, generator=generator) * spread
    segments = torch.rand(layers, batch, queries, 2, generator=generator)
    labels = torch.randint(classes, (sum(counts),), generator=generator)
    targets = torch.rand(sum(counts), 2, generator=generator)
    return logits.to(dtype), segments.to(dtype), labels, targets.to(dtype), counts


def in_torch(
    logits: Tensor, segments: Tensor, labels: Tensor, targets: Tensor, counts: list[int]
) -> Tensor:
    """The formulas as one writes them in torch, over all pairs, then the blocks."""
    p = logits.sigmoid()
    negative = -0.75 * p**2 * (1 - p + 1e-8).log()
    positive = -0.25 * (1 - p) ** 2 * (p + 1e-8).log()
    difference = (segments[..., None, :] - targets).abs().sum(-1)
    flat, half = segments.reshape(-1, 2), 0.5 * segments.reshape(-1, 2)[:, 1]
    overlap = segment_iou(
        torch.stack((flat[:, 0] - half, flat[:, 0] + half), 1),
        torch.stack((targets[:, 0] - targets[:, 1] / 2, targets[:, 0] + targets[:, 1] / 2), 1),
        eps=1e-12,
    )
    costs = 6 * (positive - negative)[..., labels] + 5 * difference
    costs = costs - 2 * overlap.view(costs.shape)
    return torch.cat(
        [
            block.reshape(-1)
            for layer in costs
            for window, block_of in enumerate(layer.split(counts, -1))
            for block in [block_of[window]]
        ]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layers", "batch", "queries", "classes"),
    [(2, 3, 7, 5), (1, 1, 1, 1), (3, 33, 40, 20), (1, 4, 17, 300), (2, 0, 5, 3), (0, 2, 5, 3)],
)
def test_matches_twin(
    layers: int, batch: int, queries: int, classes: int, dtype: torch.dtype
) -> None:
    inputs = make(layers, batch, queries, classes, dtype)
    costs = matching_cost(*inputs)
    assert costs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert costs.shape == (layers * queries * sum(inputs[-1]),)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(costs.double(), twin(*inputs), rtol=bound, atol=bound)


def test_blocks_are_where_the_documentation_says() -> None:
    logits, segments, labels, targets, counts = inputs = make(layers=2, batch=4)
    blocks = matching_cost(*inputs).split([7 * n for n in counts] * 2)
    for k, b in itertools.product(range(2), range(4)):
        own = slice(sum(counts[:b]), sum(counts[: b + 1]))
        alone = matching_cost(
            logits[k, b : b + 1], segments[k, b : b + 1], labels[own], targets[own], [counts[b]]
        )
        assert torch.equal(blocks[k * 4 + b].view(7, counts[b]), alone.view(7, counts[b]))


def test_no_layers_is_one_layer() -> None:
    logits, segments, *rest = make(layers=1)
    assert torch.equal(
        matching_cost(logits[0], segments[0], *rest), matching_cost(logits, segments, *rest)
    )


@pytest.mark.parametrize("spread", [1.0, 6.0, 20.0])
def test_no_worse_than_torch_in_float32(spread: float) -> None:
    inputs = make(2, 16, 40, 20, spread=spread)
    expected = twin(*inputs)
    ours = (matching_cost(*inputs) - expected).abs().max().item()
    theirs = (in_torch(*inputs) - expected).abs().max().item()
    assert ours <= 2 * theirs + 1e-6
    assert ours <= 5e-5  # of costs up to 6 * 18.4


def class_costs(logits: Tensor, **settings: float) -> tuple[Tensor, Tensor]:
    """The focal term alone, of one query per logit: ours and the twin's."""
    count = len(logits)
    arguments = (
        logits.view(1, count, 1),
        torch.zeros(1, count, 2, dtype=logits.dtype),
        torch.tensor([0]),
        torch.zeros(1, 2, dtype=logits.dtype),
        [1],
    )
    weights = {"classification": 1.0, "l1": 0.0, "iou": 0.0} | settings
    return matching_cost(*arguments, **weights), twin(*arguments, **weights)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 2.0), (1.0, 2.0), (0.25, 2.0)])
def test_focal_cost_over_all_logits(alpha: float, gamma: float) -> None:
    # alpha 0 and 1 leave one of the two terms, so that nothing cancels: a relative bound. Where a
    # probability is below 1e-38 the term is 0 to within 1e-36.
    logits = torch.cat((torch.linspace(-120, 120, 40001), torch.linspace(-1e-3, 1e-3, 101)))
    ours, expected = class_costs(logits, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_any_focusing_exponent(gamma: float, dtype: torch.dtype) -> None:
    ours, expected = class_costs(torch.linspace(-20, 20, 401, dtype=dtype), gamma=gamma, alpha=0.6)
    bound = 1e-13 if dtype == torch.float64 else 5e-6
    torch.testing.assert_close(ours.double(), expected, rtol=bound, atol=bound)


def test_extreme_logits() -> None:
    ours, _ = class_costs(torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38]), alpha=0.25)
    log_eps = torch.tensor(1e-8).log().item()
    expected = [0.75 * log_eps, -0.25 * log_eps, torch.nan, 0.75 * log_eps, -0.25 * log_eps]
    assert ours.tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_geometry_is_bit_equal_to_segment_iou_and_torch() -> None:
    logits, segments, labels, targets, _ = make(layers=1, batch=1, queries=33)
    costs = matching_cost(
        logits, segments, labels, targets, [len(labels)], classification=0.0, l1=5.0, iou=2.0
    )

    def start_end(x: Tensor) -> Tensor:
        half = 0.5 * x[..., 1]
        return torch.stack((x[..., 0] - half, x[..., 0] + half), dim=-1)

    own = segments.view(-1, 2)
    difference = (own[:, None] - targets).abs()
    distance = difference[..., 0] + difference[..., 1]
    overlap = segment_iou(start_end(own), start_end(targets), eps=1e-12)
    assert torch.equal(costs.view(33, -1), 5.0 * distance - 2.0 * overlap)


def test_points_and_nan() -> None:
    point = torch.tensor([[[0.5, 0.0]]])
    arguments = (torch.zeros(1, 1, 1), point, torch.tensor([0]), point[0], [1])
    only_iou = {"classification": 0.0, "l1": 0.0, "iou": 1.0}
    assert matching_cost(*arguments, **only_iou).item() == 0
    assert matching_cost(*arguments, **only_iou, eps=0.0).isnan().item()
    for place in range(3):
        bad: list[Any] = list(arguments)
        index = (0, 1, 3)[place]
        bad[index] = torch.full_like(bad[index], torch.nan)
        assert matching_cost(*bad).isnan().all()


def test_mixed_precision_and_strides() -> None:
    logits, segments, labels, targets, counts = make(dtype=torch.bfloat16)
    expected = matching_cost(logits.float(), segments.float(), labels, targets.float(), counts)
    assert torch.equal(
        matching_cost(logits, segments.float(), labels, targets.half().float(), counts),
        matching_cost(logits.float(), segments.float(), labels, targets.half().float(), counts),
    )
    strided = logits.float().transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.stack((labels, labels), 1)[:, 0]
    assert not strided.is_contiguous()
    assert torch.equal(
        matching_cost(strided, segments.float(), wide, targets.float(), counts), expected
    )


def test_same_bits_on_every_run_and_thread_count(thread_counts: tuple[int, ...]) -> None:
    inputs = make(4, 16, 40, 20)
    seen = []
    for threads, _ in itertools.product(thread_counts, range(3)):
        torch.set_num_threads(threads)
        seen.append(matching_cost(*inputs))
    assert all(torch.equal(seen[0], other) for other in seen[1:])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    for dtype, layers in itertools.product((torch.float64, torch.bfloat16), (True, False)):
        logits, segments, labels, targets, counts = make(layers=1, dtype=dtype)
        logits, segments = (logits, segments) if layers else (logits[0], segments[0])
        logits.requires_grad_(requires_grad)
        torch.library.opcheck(
            torch.ops.tal_fast.matching_cost,
            (logits, segments, labels, targets, counts, 6.0, 5.0, 2.0, 0.25, 2.0, 1e-12),
        )


def test_has_no_gradient() -> None:
    logits, *rest = make()
    assert not matching_cost(logits.requires_grad_(), *rest).requires_grad


def test_compile_fullgraph_compiles_once() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def doubled(
        logits: Tensor, segments: Tensor, labels: Tensor, targets: Tensor, counts: list[int]
    ) -> Tensor:
        return 2 * matching_cost(logits, segments, labels, targets, counts)

    first = 0
    for counts in ([3, 4], [5, 2], [6, 9], [2, 7]):
        # No two sizes of the first call are equal by chance: torch would take them for one size.
        logits, segments, *_ = make(batch=2, queries=11, classes=13)
        labels, targets = torch.zeros(sum(counts), dtype=torch.int64), torch.rand(sum(counts), 2)
        arguments = (logits, segments, labels, targets, counts)
        assert torch.equal(doubled(*arguments), 2 * matching_cost(*arguments))
        first = first or counter.frame_count
    assert counter.frame_count == first


def test_autocast_widens() -> None:
    logits, segments, labels, targets, counts = make(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        costs = matching_cost(logits, segments.float(), labels, targets, counts)
    assert torch.equal(costs, matching_cost(logits, segments, labels, targets, counts))


def changed(**changes: Any) -> dict[str, Any]:
    logits, segments, labels, targets, _ = make(layers=1, batch=1)
    labels, targets = labels[:3], targets[:3]
    given = {
        "logits": logits,
        "segments": segments,
        "labels": labels,
        "targets": targets,
        "counts": [len(labels)],
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.ones(7, 5)}, r"logits of shape \[K, B, Q, C\] or .* got \[7, 5\]"),
        ({"segments": torch.ones(1, 1, 7, 3)}, r"segments of the shape of logits .* got \[1, 1"),
        ({"segments": torch.ones(1, 7, 2)}, r"segments of the shape of logits .* got \[1, 7, 2\]"),
        ({"segments": torch.ones(1, 1, 6, 2)}, r"segments of the shape of logits .* 6, 2\]"),
        ({"labels": torch.zeros(3, 1).long()}, r"labels of shape \[M\], got \[3, 1\]"),
        ({"labels": torch.zeros(3)}, "labels of dtype int64, got float32"),
        ({"targets": torch.ones(2, 2)}, r"targets of shape \[3, 2\], one per label, got \[2, 2\]"),
        ({"logits": torch.ones(1, 1, 7, 5).long()}, "logits of dtype .* got int64"),
        ({"segments": torch.ones(1, 1, 7, 2).int()}, "segments of dtype .* got int32"),
        ({"targets": torch.ones(3, 2).int()}, "targets of dtype .* got int32"),
        ({"targets": torch.ones(3, 2).double()}, "all float64 or none, got float32, .* float64"),
        ({"counts": [1, 2]}, "expected 1 counts, one per video, got 2"),
        ({"counts": [2]}, "counts that sum to the 3 labels, got a sum of 2"),
        ({"counts": [-3]}, "counts >= 0, got -3"),
        ({"alpha": 1.5}, r"alpha in \[0, 1\], got 1.5"),
        ({"gamma": -1.0}, "gamma >= 0, got -1"),
        ({"eps": -1.0}, "eps >= 0, got -1"),
        (
            {"labels": torch.zeros(3, dtype=torch.int64, device="meta")},
            "labels on cpu like logits, got meta",
        ),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"matching_cost: .*{message}"):
        matching_cost(**changed(**changes))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("labels", "message"), [([0, 5, 1], "5 at index 1"), ([0, 1, -1], "-1 at index 2")]
)
def test_labels_outside_raise(labels: list[int], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"matching_cost: .*labels in \[0, 5\), got {message}"):
        matching_cost(**changed(labels=torch.tensor(labels)))


@pytest.mark.cuda_only
@pytest.mark.parametrize("weights", [{}, {"classification": 0.0}])
def test_labels_outside_cost_nan_on_a_gpu(weights: dict[str, float]) -> None:
    labels = torch.tensor([-1, 2, 5, 2**40])
    inputs = changed(labels=labels, targets=torch.rand(4, 2), counts=[4])
    costs = matching_cost(**inputs, **weights).view(7, 4)
    known = matching_cost(**inputs | {"labels": torch.full((4,), 2)}, **weights).view(7, 4)
    assert costs[:, [0, 2, 3]].isnan().all()
    assert torch.equal(costs[:, 1], known[:, 1])


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_same_bits_on_every_device(dtype: torch.dtype) -> None:
    # Around the 128 threads and 8 queries of a block. Exponents other than 2 and float64 use the
    # power, exp and log of the device's own library.
    for queries, counts in (
        (1, [1]),
        (7, [18, 0, 19, 1]),
        (8, [15, 16, 17]),
        (9, [127, 128, 129, 0]),
        (40, [3, 300, 12]),
    ):
        generator = torch.Generator().manual_seed(queries)
        shape, instances = (2, len(counts), queries), sum(counts)
        logits = torch.randn(*shape, 5, generator=generator) * 9
        logits[0, 0, 0, 0] = torch.nan
        inputs = (
            logits.to(dtype),
            torch.rand(*shape, 2, generator=generator).to(dtype),
            torch.randint(5, (instances,), generator=generator),
            torch.rand(instances, 2, generator=generator).to(dtype),
            counts,
        )
        emulator.assert_same_bits(lambda inputs=inputs: matching_cost(*inputs))


@pytest.mark.cuda_only
def test_more_videos_than_a_launch_takes(device: str) -> None:
    counts = [0] * 256 + [3, 0, 1] + [0] * 253 + [2]
    logits, segments = torch.randn(1, 513, 3, 4), torch.rand(1, 513, 3, 2)
    labels, targets = torch.randint(4, (6,)), torch.rand(6, 2)
    emulator.launches()
    costs = matching_cost(logits, segments, labels, targets, counts)
    if device == "cuda-emulated":  # none for the first 256
        assert emulator.launches() == ["matching_cost"] * 2
    few = [256, 258, 512]
    expected = matching_cost(logits[:, few], segments[:, few], labels, targets, [3, 1, 2])
    assert torch.equal(costs, expected)


@pytest.mark.skipif("TAL_FAST_PEERS" not in os.environ, reason="TAL_FAST_PEERS is not set")
def test_matching_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["TAL_FAST_PEERS"]) / "TadTR"
    if not folder.is_dir():
        pytest.skip("no TadTR under TAL_FAST_PEERS")
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("peer", folder / "models" / "matcher.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        matcher = module.HungarianMatcher(cost_class=6, cost_seg=5, cost_iou=2)
        for seed in range(5):
            logits, segments, labels, targets, counts = make(1, 16, 40, 20, seed=seed)
            theirs = matcher(
                {"pred_logits": logits[0], "pred_segments": segments[0]},
                [
                    {"labels": of_labels, "segments": of_targets}
                    for of_labels, of_targets in zip(
                        labels.split(counts), targets.split(counts), strict=True
                    )
                ],
            )
            costs = matching_cost(logits, segments, labels, targets, counts)
            ours = linear_assignment(costs, [40] * 16, counts)
            assert torch.equal(ours.row, torch.cat([rows for rows, _ in theirs]))
            assert torch.equal(ours.column, torch.cat([columns for _, columns in theirs]))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "util"]:
            del sys.modules[name]
