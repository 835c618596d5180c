# SPDX-License-Identifier: Apache-2.0
"""Matching and losses against formulas written out one pair at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tal_fast.models.base import Targets, Whole
from tal_fast.models.losses import focal_loss
from tal_fast.models.segments import center_width_to_start_end
from tal_fast.models.tadtr import TadTRLoss, TadTROutput
from tal_fast.models.tadtr.loss import tadtr_loss
from tal_fast.models.tadtr.matching import match

CONFIG = TadTRLoss()


def example(layers=2, batch=3, queries=4, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, batch, queries, classes, generator=generator)
    segments = torch.rand(layers, batch, queries, 2, generator=generator) * 0.5 + 0.1
    actionness = torch.rand(batch, queries, generator=generator)
    counts = [2, 0, 3]
    labels = [torch.randint(classes, (n,), generator=generator) for n in counts]
    targets = [torch.rand(n, 2, generator=generator) * 0.5 + 0.1 for n in counts]
    return TadTROutput(logits, segments, actionness), labels, targets


def as_targets(labels, segments):
    """Lists of labels and (centre, width) per window as a batch has them, in windows of one row."""
    edges = center_width_to_start_end(torch.cat(segments).double())
    return Targets(torch.cat(labels), edges, [len(item) for item in labels], 1)


def iou(a, b):
    (c, w), (d, v) = a, b
    inner = max(0.0, min(c + w / 2, d + v / 2) - max(c - w / 2, d - v / 2))
    return inner / (w + v - inner)


def pair_cost(logits, segment, label, target):
    p = 1 / (1 + math.exp(-logits[label]))
    positive = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8)
    negative = -0.75 * p**2 * math.log(1 - p + 1e-8)
    distance = abs(segment[0] - target[0]) + abs(segment[1] - target[1])
    return 6 * (positive - negative) + 5 * distance - 2 * iou(segment, target)


def test_match_is_the_assignment_of_least_cost():
    output, labels, targets = example()
    counts = [len(item) for item in labels]
    pairs = match(
        output.logits, output.segments, torch.cat(labels), torch.cat(targets), counts, CONFIG
    )
    assert len(pairs.layer) == 2 * sum(counts)
    first = 0
    for b, count in enumerate(counts):
        for k in range(2):
            mine = (pairs.layer == k) & (pairs.window == b)
            assert int(mine.sum()) == count
            chosen = dict(
                zip((pairs.target[mine] - first).tolist(), pairs.query[mine].tolist(), strict=True)
            )
            assert len(set(chosen.values())) == count  # one to one

            def total(queries, k=k, b=b):
                return sum(
                    pair_cost(
                        output.logits[k, b, q].tolist(),
                        output.segments[k, b, q].tolist(),
                        int(labels[b][t]),
                        targets[b][t].tolist(),
                    )
                    for t, q in enumerate(queries)
                )

            best = min(total(order) for order in itertools.permutations(range(4), count))
            assert total([chosen[t] for t in range(count)]) == pytest.approx(best, abs=1e-5)
        first += count


def test_more_instances_than_queries():
    output, labels, targets = example(queries=2)
    counts = [len(item) for item in labels]
    pairs = match(
        output.logits, output.segments, torch.cat(labels), torch.cat(targets), counts, CONFIG
    )
    assert int(((pairs.layer == 0) & (pairs.window == 2)).sum()) == 2


def test_focal_loss_formula():
    logits = torch.tensor([0.3, -1.2])
    targets = torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    expected = torch.stack(
        (-0.25 * (1 - p[0]) ** 2 * p[0].log(), -0.75 * p[1] ** 2 * (1 - p[1]).log())
    )
    torch.testing.assert_close(focal_loss(logits, targets, 0.25, 2.0), expected)


def test_losses_sum_over_layers_and_divide_by_instances():
    output, labels, targets = example()
    counts = [len(item) for item in labels]
    losses = tadtr_loss(output, as_targets(labels, targets), CONFIG)
    pairs = match(
        output.logits, output.segments, torch.cat(labels), torch.cat(targets), counts, CONFIG
    )
    flat_targets, flat_labels = torch.cat(targets), torch.cat(labels)
    l1 = one_minus_iou = 0.0
    is_class = torch.zeros_like(output.logits)
    for k, b, q, t in torch.stack(list(pairs)).T.tolist():
        mine, wanted = output.segments[k, b, q].tolist(), flat_targets[t].tolist()
        l1 += abs(mine[0] - wanted[0]) + abs(mine[1] - wanted[1])
        one_minus_iou += 1 - iou(mine, wanted)
        is_class[k, b, q, flat_labels[t]] = 1
    assert losses["l1"].item() == pytest.approx(l1 / 5, rel=1e-5)
    assert losses["iou"].item() == pytest.approx(one_minus_iou / 5, rel=1e-5)
    focal = focal_loss(output.logits, is_class, 0.25, 2.0).sum() / 5
    torch.testing.assert_close(losses["classification"], focal)
    best = [
        [max((iou(s, t) for t in targets[b].tolist()), default=0.0) for s in row]
        for b, row in enumerate(output.segments[-1].tolist())
    ]
    expected = (output.actionness - torch.tensor(best)).abs().mean()
    torch.testing.assert_close(losses["actionness"], expected)
    total = 2 * losses["classification"] + 5 * losses["l1"] + 2 * losses["iou"]
    torch.testing.assert_close(losses["total"], total + 4 * losses["actionness"])


def test_actionness_over_the_batch_as_the_released_code_has_it():
    output, labels, targets = example()
    config = TadTRLoss(actionness_targets="batch")
    losses = tadtr_loss(output, as_targets(labels, targets), config)
    everything = torch.cat(targets).tolist()
    best = [
        [max(iou(s, t) for t in everything) for s in row] for row in output.segments[-1].tolist()
    ]
    expected = (output.actionness - torch.tensor(best)).abs().mean()
    torch.testing.assert_close(losses["actionness"], expected)


def test_no_instance_at_all():
    output, _, _ = example()
    nothing = [torch.zeros(0, dtype=torch.int64)] * 3
    losses = tadtr_loss(output, as_targets(nothing, [torch.zeros(0, 2)] * 3), CONFIG)
    assert losses["l1"].item() == losses["iou"].item() == 0
    assert torch.isfinite(losses["total"])


def test_gradients_reach_every_output():
    output, labels, targets = example()
    leaves = [item.requires_grad_() for item in output]
    tadtr_loss(TadTROutput(*leaves), as_targets(labels, targets), CONFIG)["total"].backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0


def test_forward_mode_gives_the_slope_along_a_direction():
    output, labels, targets = example()

    def total(*leaves):
        return tadtr_loss(TadTROutput(*leaves), as_targets(labels, targets), CONFIG)["total"]

    leaves = [item.double().requires_grad_() for item in output]
    targets = [item.double() for item in targets]
    moved = [torch.randn_like(item) for item in leaves]
    grads = torch.autograd.grad(total(*leaves), leaves)
    expected = sum((grad * v).sum() for grad, v in zip(grads, moved, strict=True))
    _, slope = torch.func.jvp(total, tuple(item.detach() for item in leaves), tuple(moved))
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("scope", ["video", "batch"])
@pytest.mark.parametrize("cut", [1, 2])  # the second window has no instance
def test_parts_of_a_batch_add_up_to_it(scope, cut):
    config = TadTRLoss(actionness_targets=scope)
    output, labels, targets = example()

    def losses(part, whole=None):
        leaves = [item.clone().requires_grad_() for item in output]
        logits, segments, actionness = leaves
        mine = TadTROutput(logits[:, part], segments[:, part], actionness[part])
        found = tadtr_loss(mine, as_targets(labels[part], targets[part]), config, whole)
        return found, torch.autograd.grad(found["total"], leaves)

    expected, gradients = losses(slice(None))
    whole = Whole(as_targets(labels, targets))
    parts = [losses(part, whole) for part in (slice(cut), slice(cut, None))]
    for key, value in expected.items():
        torch.testing.assert_close(parts[0][0][key] + parts[1][0][key], value)
    for a, b, gradient in zip(parts[0][1], parts[1][1], gradients, strict=True):
        torch.testing.assert_close(a + b, gradient)
