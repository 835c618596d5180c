# SPDX-License-Identifier: Apache-2.0
"""TemporalMaxer: sizes, names, padding, whose ends a point learns, and the official numbers."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tal_fast.errors import ConfigError
from tal_fast.models import Whole, build_model, detector_config
from tal_fast.models.pyramid import PyramidOutput
from tal_fast.models.pyramid.targets import point_targets
from tal_fast.models.temporalmaxer import TemporalMaxer, TemporalMaxerLoss, TemporalMaxerSizes
from tal_fast.models.temporalmaxer.assignment import cheapest_offsets
from tal_fast.training import load_config

sys.path.insert(0, str(Path(__file__).parent))

import official

# The recipes, narrow: what a preset says of padding, neck and losses stays.
LONGEST = 192
CHANNELS, CLASSES = 12, 5
FILES = {
    "temporalmaxer": "thumos_i3d",
    "temporalmaxer-multithumos": "multithumos_i3d",
    "temporalmaxer-epic-verb": "epic_slowfast_verb",
    "temporalmaxer-epic-noun": "epic_slowfast_noun",
}
BOTH_NECKS = pytest.mark.parametrize("preset", ["temporalmaxer", "temporalmaxer-multithumos"])


def narrow(preset="temporalmaxer", seed=0, width=32, longest=LONGEST):
    """A model with random weights."""
    settings = {"model": {"width": width, "head_width": width}, "data": {"max_length": longest}}
    model = TemporalMaxer(CHANNELS, CLASSES, detector_config(preset, settings))
    official.random_weights(model, seed)
    return model


def clip(rows, instances=0, seed=None):
    return official.item(rows, CHANNELS, CLASSES, instances, rows if seed is None else seed)


@pytest.mark.parametrize(
    ("preset", "channels", "classes", "parameters", "gmacs"),
    [
        ("temporalmaxer", 2048, 20, 7_117_852, 23.48),
        ("temporalmaxer-multithumos", 1024, 65, 6_402_633, 21.98),
        ("temporalmaxer-epic-verb", 2304, 97, 7_630_441, 24.92),
        ("temporalmaxer-epic-noun", 2304, 300, 7_941_428, 26.34),
    ],
)
def test_sizes_of_the_official_models(preset, channels, classes, parameters, gmacs):
    with torch.device("meta"):
        model = build_model(preset, in_channels=channels, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(sum(model.flops(2304).values()) / 1e9, 2) == gmacs


def test_multiply_adds_by_part():
    with torch.device("meta"):
        model = build_model("temporalmaxer", in_channels=2048, num_classes=20)
    parts = {name: round(macs / 1e9, 2) for name, macs in model.flops(2304).items()}
    assert parts == {"embedding": 9.06, "class head": 7.27, "offset head": 7.15}


@pytest.mark.parametrize("preset", FILES)
def test_numbers_of_the_official_code(preset, tmp_path):
    changes = {
        "embd_dim": 32, "fpn_dim": 32, "head_dim": 32, "max_seq_len": LONGEST,
        "input_dim": CHANNELS, "num_classes": CLASSES, "max_buffer_len_factor": 8.0,
    }  # fmt: skip
    official.assert_same_numbers(
        narrow(preset),
        "TemporalMaxer",
        f"configs/temporalmaxer_{FILES[preset]}.yaml",
        {"model": changes},
        # The official code fails on clips without an instance.
        training=[
            [clip(LONGEST, 8), clip(37, 6), clip(90, 3)],
            [clip(1, 1), clip(LONGEST - 1, 9), clip(100, 7)],
        ],
        prediction=[clip(rows) for rows in (1, 37, LONGEST - 1, LONGEST, LONGEST + 1, 500)],
        folder=tmp_path,
    )


def test_numbers_of_the_official_code_where_convolutions_are_wide(tmp_path):
    # Wide and long enough for minimal filtering, which the narrow ones are not.
    width, longest = 128, 512
    changes = {
        "embd_dim": width, "fpn_dim": width, "head_dim": width, "max_seq_len": longest,
        "input_dim": CHANNELS, "num_classes": CLASSES, "max_buffer_len_factor": 8.0,
    }  # fmt: skip
    official.assert_same_numbers(
        narrow(width=width, longest=longest),
        "TemporalMaxer",
        "configs/temporalmaxer_thumos_i3d.yaml",
        {"model": changes},
        training=[[clip(longest, 8), clip(301, 6), clip(90, 3)]],
        prediction=[clip(rows) for rows in (301, longest + 1)],
        folder=tmp_path,
    )


def test_names_of_the_official_weights():
    names = {
        name: tuple(value.shape)
        for name, value in narrow("temporalmaxer-multithumos").state_dict().items()
    }
    for name, shape in {
        "backbone.embd.0.conv.weight": (32, 12, 3),
        "backbone.embd_norm.2.weight": (1, 32, 1),
        "neck.fpn_norms.0.weight": (1, 32, 1),
        "neck.fpn_norms.5.bias": (1, 32, 1),
        "cls_head.cls_head.conv.weight": (5, 32, 3),
        "reg_head.offset_head.conv.bias": (2,),
        "reg_head.scale.5.scale": (),
    }.items():
        assert names.pop(name) == shape
    assert not [name for name in names if "branch" in name]
    assert not [name for name in narrow().state_dict() if "neck" in name]


def test_one_normalisation_under_six_names():
    model = narrow("temporalmaxer-epic-verb")
    own = [name for name, _ in model.named_parameters() if "neck" in name]
    assert own == ["neck.fpn_norms.0.weight", "neck.fpn_norms.0.bias"]
    assert sum(len(group.parameters) for group in model.parameter_groups()) == len(
        list(model.parameters())
    )
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for level in range(6):
        state[f"neck.fpn_norms.{level}.bias"] += 1.0
    with torch.device("meta"):
        loaded = TemporalMaxer(CHANNELS, CLASSES, model.config)
    loaded.load_state_dict(state, assign=True)
    for one in (loaded, copy.deepcopy(loaded)):
        assert len({id(norm) for norm in one.neck.fpn_norms}) == 1
        assert torch.equal(one.neck.fpn_norms[0].bias, state["neck.fpn_norms.0.bias"])
    state["neck.fpn_norms.3.bias"] = state["neck.fpn_norms.3.bias"] + 1e-6
    with pytest.raises(
        RuntimeError,
        match=r"one bias under all names from neck\.fpn_norms\.0 to neck\.fpn_norms\.5",
    ):
        model.load_state_dict(state)


@BOTH_NECKS
def test_padding_and_company_make_no_difference(preset):
    model = narrow(preset).eval()
    clips = [clip(rows) for rows in (1, 37, LONGEST, LONGEST + 1, 500)]
    features, mask, _ = official.padded(model, clips)
    with torch.no_grad():
        together = model(features, mask)
        for at, one in enumerate(clips):
            length = model.rows_of_recipe(model.config, one["feats"].shape[1])
            features, mask, _ = official.batch([one], length)
            alone = model(features, mask)
            for ours, theirs in zip(together[:2], alone[:2], strict=True):
                torch.testing.assert_close(
                    ours[at][together.valid[at]], theirs[0][alone.valid[0]], atol=2e-5, rtol=1e-4
                )


def test_levels_are_maxima_and_groups_are_normalised_over_missing_rows():
    """Against torch's own layers over the recipe's padding, which our batch leaves out."""
    model = narrow().eval()
    features, mask, _ = official.padded(model, [clip(37)])
    assert features.shape[1] == 96 < LONGEST
    with torch.no_grad():
        rows = model.rows(mask)
        levels, level_rows = model.backbone(features, rows)
        found = model.neck(levels, level_rows)
        norm = model.backbone.embd_norm[-1]
        whole = F.relu(norm.bias).expand(1, -1, LONGEST).clone()
        whole[..., :96] = levels[0].transpose(1, 2)
        for level, ours in enumerate(found):
            if level:
                real = -(-37 // 2**level)
                whole = F.max_pool1d(whole, 3, 2, 1)
                whole[..., real:] = 0.0
            expected = F.group_norm(whole, 4)[0].t()
            torch.testing.assert_close(ours[0], expected[: 96 >> level], atol=1e-5, rtol=1e-4)


def test_ends_of_the_cheapest_instance_against_plain_loops():
    model = narrow()
    length = 64
    items = [clip(60, 8, seed=1), clip(40, 0), clip(64, 1, seed=2)]
    _, _, targets = official.batch(items, length)
    points = model.points(length, torch.device("cpu"))
    total = len(points.place)
    torch.manual_seed(0)
    output = PyramidOutput(
        torch.randn(3, total, CLASSES) * 3, torch.rand(3, total, 2) * 9, torch.ones(3, total) > 0
    )
    weights = TemporalMaxerLoss(class_cost=0.7, diou_cost=1.6)
    found = cheapest_offsets(output, targets, points, weights)
    shortest = point_targets(targets, points, CLASSES, 1.5)
    differ = 0
    for c, one in enumerate(items):
        instances = list(zip(one["segments"].tolist(), one["labels"].tolist(), strict=True))
        for p, (place, stride) in enumerate(
            torch.stack((points.place, points.stride), dim=1).tolist()
        ):
            best, expected = float("inf"), (0.0, 0.0)
            for (start, end), label in instances:
                if not start <= place <= end:
                    continue
                cost = 0.0
                for k, chance in enumerate(output.logits[c, p].sigmoid().tolist()):
                    right, weight = (chance, 0.25) if k == label else (1 - chance, 0.75)
                    cost -= 0.7 * weight * (1 - right) ** 2 * torch.tensor(right).log().item()
                left, right = output.offsets[c, p].tolist()
                goal = ((place - start) / stride, (end - place) / stride)
                inner = min(left, goal[0]) + min(right, goal[1])
                shift = 0.5 * (right - left - goal[1] + goal[0])
                shift /= max(left, goal[0]) + max(right, goal[1])
                cost += 1.6 * (1 - inner / (left + right + sum(goal) - inner) + shift**2)
                if cost < best:
                    best, expected = cost, goal
            assert found[c, p].tolist() == pytest.approx(expected, abs=1e-4)
            has_class = bool(shortest.classes[c, p].any())
            differ += has_class and not torch.allclose(found[c, p], shortest.offsets[c, p])
    assert differ > 0  # class and ends of different instances


@BOTH_NECKS
@pytest.mark.parametrize("instances", [(0, 0), (0, 6)])
def test_clips_without_an_instance(preset, instances):
    model = narrow(preset).train()
    items = [clip(90, instances[0]), clip(40, instances[1])]
    features, mask, targets = official.padded(model, items)
    losses = model.loss(model(features, mask), targets, Whole(targets))
    losses["total"].backward()
    assert losses["classification"] > 0
    assert (losses["regression"] > 0) == any(instances)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_width_in_groups():
    with pytest.raises(ValueError, match="expected width to be a multiple of 4, got 30"):
        TemporalMaxerSizes(width=30)
    assert TemporalMaxerSizes(width=30, neck="layernorm").width == 30


def test_settings_of_another_model():
    message = "unknown setting 'model.windows'; temporalmaxer has model.width, model.embed_layers,"
    with pytest.raises(ConfigError, match=message):
        detector_config("temporalmaxer", {"model": {"windows": [9]}})
    with pytest.raises(ConfigError, match=message):
        load_config(preset="temporalmaxer", overrides=["model.windows=9"])
