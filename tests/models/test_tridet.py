# SPDX-License-Identifier: Apache-2.0
"""TriDet: sizes, names, padding, boundaries as expectations, and the official code's numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tal_fast.models import Whole, build_model, detector_config
from tal_fast.models.pyramid.layers import Rows, group_norm_rows
from tal_fast.models.pyramid.targets import PointTargets, point_targets
from tal_fast.models.tridet import TriDet, TriDetOutput, TriDetSizes
from tal_fast.models.tridet.trident import expected_distances

sys.path.insert(0, str(Path(__file__).parent))

import official

# The recipes, narrow: what a preset says of padding, windows, bins and losses stays.
NARROW = {"width": 32, "head_width": 32, "hidden": 48, "input_noise": 0.0}
LONGEST = 192
CHANNELS, CLASSES = 12, 5
FILES = {
    "tridet": "thumos_i3d",
    "tridet-anet-tsp": "anet_tsp",
    "tridet-epic-verb": "epic_slowfast_verb",
    "tridet-epic-noun": "epic_slowfast_noun",
    "tridet-hacs-i3d": "hacs_i3d",
    "tridet-hacs-slowfast": "hacs_slowfast",
}


def narrow(preset="tridet", *, still=False, seed=0, **sizes):
    """A model with random weights; ``still`` leaves the gates at zero."""
    settings = {"model": {**NARROW, **sizes}, "data": {"max_length": LONGEST}}
    config = detector_config(preset, settings)
    model = TriDet(CHANNELS, CLASSES, config)
    official.random_weights(model, seed)
    if still:
        gates = ("psi", "fc", "convw", "convkw", "global_fc")
        state = model.state_dict()
        for name, value in state.items():
            if any(f".{gate}." in name for gate in gates):
                value.zero_()
        model.load_state_dict(state)
    for part in model.modules():
        if hasattr(part, "probability"):
            part.probability = 0.0
    return model


def clip(rows, instances=0, seed=None):
    return official.item(rows, CHANNELS, CLASSES, instances, rows if seed is None else seed)


@pytest.mark.parametrize(
    ("preset", "channels", "classes", "rows", "parameters", "gmacs"),
    [
        ("tridet", 2048, 20, 2304, 15_989_604, 43.68),
        ("tridet-anet-tsp", 512, 1, 768, 12_811_555, 10.06),
        ("tridet-epic-verb", 2304, 97, 2304, 18_594_123, 47.99),
        ("tridet-epic-noun", 2304, 300, 2304, 19_503_532, 52.23),
        ("tridet-hacs-i3d", 2048, 200, 512, 53_412_473, 35.23),
        ("tridet-hacs-slowfast", 2304, 200, 960, 51_860_092, 66.38),
    ],
)
def test_sizes_of_the_official_models(preset, channels, classes, rows, parameters, gmacs):
    with torch.device("meta"):
        model = build_model(preset, in_channels=channels, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.data.max_length == rows
    assert round(sum(model.flops(rows).values()) / 1e9, 2) == gmacs


def test_multiply_adds_by_part():
    model = build_model("tridet", in_channels=2048, num_classes=20)
    parts = {name: round(macs / 1e9, 2) for name, macs in model.flops(2304).items()}
    assert parts == {
        "embedding": 9.06, "stem": 3.66, "branch": 1.77, "class head": 7.27, "offset head": 7.37,
        "boundary heads": 14.55,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "still"),
    # The released weights of THUMOS14 and EPIC have still gates; any others test more.
    [*((preset, False) for preset in FILES), ("tridet", True), ("tridet-epic-noun", True)],
)
def test_numbers_of_the_official_code(preset, still, tmp_path):
    changes = {
        "embd_dim": 32, "fpn_dim": 32, "head_dim": 32, "sgp_mlp_dim": 48, "input_noise": 0.0,
        "max_seq_len": LONGEST, "input_dim": CHANNELS, "num_classes": CLASSES,
        "max_buffer_len_factor": 8.0,
    }  # fmt: skip
    official.assert_same_numbers(
        narrow(preset, still=still),
        "TriDet",
        f"configs/{FILES[preset]}.yaml",
        {"model": changes},
        training=[
            [clip(LONGEST, 8), clip(37, 6), clip(90, 3)],
            [clip(1), clip(LONGEST - 1, 9), clip(100, 7)],
            [clip(50), clip(120)],
        ],
        prediction=[clip(rows) for rows in (1, 37, LONGEST - 1, LONGEST, LONGEST + 1, 500)],
        folder=tmp_path,
    )


def test_names_of_the_official_weights():
    names = {name: tuple(value.shape) for name, value in narrow().state_dict().items()}
    for name, shape in {
        "backbone.embd.0.conv.weight": (32, 12, 3),
        "backbone.embd_norm.1.weight": (1, 32, 1),
        "backbone.stem.1.ln.bias": (1, 32, 1),
        "backbone.stem.0.gn.weight": (32,),
        "backbone.stem.0.psi.weight": (32, 1, 1),
        "backbone.stem.0.convkw.weight": (32, 1, 11),
        "backbone.branch.4.global_fc.bias": (32,),
        "backbone.branch.0.mlp.0.weight": (48, 32, 1),
        "backbone.branch.0.mlp.2.bias": (32,),
        "backbone.branch.0.drop_path_out.scale": (1, 32, 1),
        "neck.fpn_norms.5.weight": (1, 32, 1),
        "start_head.cls_head.conv.weight": (5, 32, 3),
        "end_head.norm.1.bias": (1, 32, 1),
        "reg_head.offset_head.conv.bias": (34,),
        "reg_head.scale.5.scale": (),
    }.items():
        assert names[name] == shape
    assert not [name for name in names if "stem" in name and "scale" in name]


@pytest.mark.parametrize(
    ("window", "widening", "wide"),
    # of the recipes, halves to even, and then to odd
    [
        (1, 5.0, 11),
        (1, 4.0, 9),
        (5, 2.0, 13),
        (1, 1.3, 3),
        (15, 1.3, 21),
        (15, 1.2, 19),
        (1, 2.25, 5),
    ],
)
def test_rows_of_the_wider_convolution(window, widening, wide):
    assert TriDetSizes(window=window, widening=widening).wide(window) == wide


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"window": 4}, "expected an odd window, got 4"),
        ({"boundary_kernel": 2}, "expected an odd boundary_kernel, got 2"),
        ({"width": 40}, "expected width to be a multiple of 16, got 40"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        TriDetSizes(**sizes)


@pytest.mark.parametrize(
    ("preset", "rows", "needed", "recipe"),
    [
        ("tridet", 1, 96, 2304), ("tridet", 2304, 2304, 2304), ("tridet", 2305, 2336, 2336),
        ("tridet-small", 1000, 1088, 1280), ("tridet-epic-verb", 2305, 2400, 2400),
        ("tridet-anet-tsp", 1, 768, 768), ("tridet-anet-tsp", 769, 960, 960),
        ("tridet-hacs-slowfast", 5, 960, 960), ("tridet-hacs-i3d", 513, 960, 960),
    ],
)  # fmt: skip
def test_rows_that_a_clip_is_padded_to(preset, rows, needed, recipe):
    config = detector_config(preset)
    assert TriDet.rows_needed(config, rows) == needed
    assert TriDet.rows_of_recipe(config, rows) == recipe


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("preset", ["tridet", "tridet-anet-tsp", "tridet-hacs-slowfast"])
def test_padding_and_company_make_no_difference(preset, still):
    model = narrow(preset, still=still).eval()
    clips = [clip(rows) for rows in (1, 37, LONGEST, LONGEST + 1, 500)]
    together, mask, _ = official.padded(model, clips)
    with torch.no_grad():
        of_all = model(together, mask)
        chosen = model.candidates(of_all, mask)
        for at, one in enumerate(clips):
            length = model.rows_of_recipe(model.config, one["feats"].shape[1])
            features, own, _ = official.batch([one], length)
            alone = model(features, own)
            for ours, theirs in zip(of_all[:4], alone[:4], strict=True):
                torch.testing.assert_close(
                    ours[at][of_all.valid[at]], theirs[0][alone.valid[0]], atol=2e-5, rtol=1e-4
                )
            single = model.candidates(alone, own)
            keep, kept = chosen.valid[at], single.valid[0]
            assert int(keep.sum()) == int(kept.sum())
            torch.testing.assert_close(
                chosen.scores[at][keep].sort()[0], single.scores[0][kept].sort()[0],
                atol=1e-5, rtol=1e-4,
            )  # fmt: skip


def test_group_norm_counts_rows_that_are_left_out():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 32) + 3.0
    counts = Rows(torch.ones(2, 8, 1), torch.ones(2, 8, 1), torch.tensor([12, 8])).counts()
    weight, bias, factor = torch.randn(32), torch.randn(32), torch.randn(2, 8, 32)
    given = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # sums are exact there, too
        found = group_norm_rows(given, counts, 16, weight, bias)
    (found * factor).sum().backward()
    for at, rows in enumerate((12, 8)):
        first = given[at].detach().requires_grad_()
        whole = torch.cat((first, first[-1:].expand(rows - 8, -1))).t()[None]
        expected = F.group_norm(whole, 16, weight, bias)[0].t()[:8]
        torch.testing.assert_close(found[at], expected, atol=1e-5, rtol=1e-5)
        (expected * factor[at]).sum().backward()
        torch.testing.assert_close(given.grad[at], first.grad, atol=1e-5, rtol=1e-4)


def test_distances_are_expectations_over_bins():
    """Against plain loops; neighbours beyond the level, at both its ends, count as logit 0."""
    torch.manual_seed(0)
    sizes, bins, classes = (8, 4, 2), 3, 2
    total = sum(sizes)
    starts, ends = (torch.randn(2, total, classes) * 3 for _ in range(2))
    offsets = torch.rand(2, total, 2 * (bins + 1))
    strides = torch.cat([torch.full((size,), 2.0**at) for at, size in enumerate(sizes)])
    every = torch.cartesian_prod(torch.arange(2), torch.arange(total), torch.arange(classes))
    found = expected_distances(starts, ends, offsets, strides, *every.unbind(1))
    for (clip_at, point, label), pair in zip(every.tolist(), found, strict=True):
        first = next(sum(sizes[:at]) for at in (2, 1, 0) if point >= sum(sizes[:at]))
        size = next(size for at, size in enumerate(sizes) if sum(sizes[:at]) == first)
        left, right = [], []
        for j in range(bins + 1):
            before, after = point - first - j, point - first + j
            near = starts[clip_at, first + before, label] if before >= 0 else 0.0
            left.append(near + offsets[clip_at, point, bins - j])
            near = ends[clip_at, first + after, label] if after < size else 0.0
            right.append(near + offsets[clip_at, point, bins + 1 + j])
        for logits, distance in zip((left, right), pair, strict=True):
            share = torch.stack(logits).softmax(0)
            expected = sum(j * float(share[j]) for j in range(bins + 1))
            assert float(distance) == pytest.approx(expected, abs=1e-5)


def made_output(model, clips, length, bins=16):
    torch.manual_seed(1)
    total = sum(length >> level for level in range(6))
    shapes = [CLASSES, 2 * (bins + 1), CLASSES, CLASSES]
    parts = [torch.randn(clips, total, width, requires_grad=True) for width in shapes]
    return TriDetOutput(*parts, torch.rand(clips, total) > 0.2)


@torch.no_grad()
def test_losses_of_pairs_against_plain_loops():
    """A term per positive and class, and the classification loss of these times IoU^0.2."""
    model = narrow()
    output = made_output(model, 2, 64)
    total = output.logits.shape[1]
    wanted = PointTargets(
        (torch.rand(2, total, CLASSES) > 0.95).float(), torch.rand(2, total, 2) * 9, 2000
    )
    positive = (wanted.classes.sum(-1) > 0) & output.valid
    smoothed = wanted.classes * 0.9 + 0.1 / (CLASSES + 1)
    found = model.sums(output, wanted, smoothed, positive)
    strides = model.points(64, positive.device).stride
    classification = regression = 0.0
    for c in range(2):
        for p in range(total):
            for k in range(CLASSES):
                if not output.valid[c, p]:
                    continue
                goal = float(smoothed[c, p, k])
                chance = float(output.logits[c, p, k].sigmoid())
                sure = chance * goal + (1 - chance) * (1 - goal)
                entropy = F.binary_cross_entropy(torch.tensor(chance), torch.tensor(goal))
                term = (0.25 * goal + 0.75 * (1 - goal)) * (1 - sure) ** 2 * float(entropy)
                if wanted.classes[c, p, k]:
                    at = [torch.tensor([n]) for n in (c, p, k)]
                    pair = expected_distances(*output[2:4], output.offsets, strides, *at)
                    (left, right), (start, end) = pair[0].tolist(), wanted.offsets[c, p].tolist()
                    inner = min(left, start) + min(right, end)
                    iou = inner / (left + right + start + end - inner)
                    shift = 0.5 * (right - left - end + start)
                    shift /= max(left, start) + max(right, end)
                    term *= iou**0.2
                    regression += 1 - iou + shift**2
                classification += term
    assert regression > 0
    assert found[0].item() == pytest.approx(classification, rel=1e-4)
    assert found[1].item() == pytest.approx(regression, rel=1e-4)


def test_pairs_are_never_more_than_the_host_expects():
    model = narrow("tridet-epic-verb")
    length = 320
    items = [clip(300, 40, seed) for seed in range(8)]
    _, _, targets = official.batch(items, length)
    wanted = point_targets(targets, model.points(length, torch.device("cpu")), CLASSES, 1.5)
    assert 0 < int(wanted.classes.sum()) <= wanted.most


def test_an_iou_of_zero_leaves_gradients_finite():
    """Where the softmax underflows, the distance is exactly 0, and the power's slope infinite."""
    model = narrow()
    output = made_output(model, 1, 64)
    with torch.no_grad():
        output.offsets.zero_()
        output.offsets[..., 16:18] = 500.0  # the bins of distance 0
        output.valid.fill_(True)
    classes = torch.zeros_like(output.logits)
    classes[0, 5, 1] = 1.0
    wanted = PointTargets(classes, torch.ones(1, classes.shape[1], 2), 4)
    classification, regression = model.sums(output, wanted, classes, classes.sum(-1) > 0)
    (classification + regression).backward()
    assert regression.item() == 1.0
    assert all(bool(part.grad.isfinite().all()) for part in output[:4])


def test_a_batch_without_an_instance_teaches_what_is_no_action():
    model = narrow(still=True).train()
    features, mask, targets = official.padded(model, [clip(50), clip(120)])
    losses = model.loss(model(features, mask), targets, Whole(targets))
    losses["total"].backward()
    assert losses["classification"].item() > 0
    assert losses["regression"].item() == 0
    assert model.cls_head.cls_head.conv.weight.grad.any()
    assert not model.reg_head.offset_head.conv.weight.grad.any()


def test_boundary_heads_teach_no_one_else():
    model = narrow(still=True).train()
    features, mask, _ = official.padded(model, [clip(40)])
    output = model(features, mask)
    (output.starts.sum() + output.ends.sum()).backward()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {"start_head", "end_head"}


def test_gates_that_start_at_zero_are_left_out_until_weights_wake_them():
    model = TriDet(CHANNELS, CLASSES, detector_config("tridet", {"model": NARROW}))
    gates = ("psi", "fc", "convw", "convkw", "global_fc")
    resting = {
        name for name, _ in model.named_parameters() if any(f".{gate}." in name for gate in gates)
    }
    assert len(resting) == 70
    features, mask, targets = official.batch([clip(60, 6)], 128)
    loss = model.train().loss(model(features, mask), targets, Whole(targets))
    loss["total"].backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == resting
    state = model.state_dict()
    state["backbone.branch.3.fc.bias"] = torch.full((32,), 0.1)
    model.load_state_dict(state)
    loss = model.loss(model(features, mask), targets, Whole(targets))
    loss["total"].backward()
    assert model.backbone.branch[3].fc.bias.grad is not None
    assert model.backbone.branch[2].fc.bias.grad is None


def test_noise_in_training_alone_and_on_padded_rows_too():
    model = narrow(still=True, input_noise=0.5)
    features, mask, _ = official.padded(model, [clip(40)])
    seen = []
    embed = model.backbone.embed
    model.backbone.embed = lambda x, rows: seen.append(x) or embed(x, rows)
    torch.manual_seed(0)
    model.train()(features, mask)
    model.eval()(features, mask)
    noise = seen[0] - features
    assert 0.4 < noise[0, :40].std() < 0.6
    assert 0.4 < noise[0, 40:].std() < 0.6
    assert torch.equal(seen[1], features)


def test_rare_classes_start_low_in_all_class_heads():
    model = TriDet(CHANNELS, 3, detector_config("tridet", {"model": NARROW}))
    model.start([4, 0, 1])
    for head in (model.cls_head, model.start_head, model.end_head):
        torch.testing.assert_close(
            head.cls_head.conv.bias.sigmoid(), torch.tensor([0.01, 1e-6, 0.01]), rtol=1e-3, atol=0
        )


def test_a_clip_whose_rows_cannot_be_halved():
    with pytest.raises(ValueError, match="TriDet: expected rows in multiples of 32 for 6 levels"):
        narrow()(torch.zeros(1, 100, CHANNELS), torch.zeros(1, 100, dtype=torch.bool))
