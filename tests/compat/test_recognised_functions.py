# SPDX-License-Identifier: Apache-2.0
"""Functions that are right, subtly wrong, slow, or have other defaults: which are replaced."""

from __future__ import annotations

import made_originals
import numpy as np
import pytest
import torch

from tal_fast import compat


def loaded(folder, source: str, **options):
    folder.write("original_made.py", source)
    compat.install(quiet=True, **options)
    return folder.load("original_made")


def only_entry(kind: str):
    (entry,) = [e for e in compat.report().entries if e.kind == kind]
    return entry


# ---- attention -----------------------------------------------------------------------------------

FORMS = [
    ("deform_attn_core_pytorch", "xy", "1.0", "rows, (x, y);"),
    ("ms_deform_attn_core_pytorch", "x1", "1.0", "lengths, (x,);"),
    ("multi_scale_deformable_attn_pytorch", "x", "0.5", "lengths, x, half of the sum;"),
]


def attention_inputs(form: str, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 5])
    value = torch.rand(2, 14, 2, 4, generator=generator).to(dtype)
    x = torch.rand(2, 3, 2, 2, 3, generator=generator).to(dtype) * 1.2 - 0.1
    weights = torch.rand(2, 3, 2, 2, 3, generator=generator).to(dtype)
    if form == "x":
        return value, lengths, x, weights
    if form == "x1":
        return value, lengths, x.unsqueeze(-1), weights
    shapes = torch.stack([torch.ones_like(lengths), lengths], -1)
    return value, shapes, torch.stack([x, torch.full_like(x, 0.5)], -1), weights


@pytest.mark.parametrize(("name", "form", "factor", "detail"), FORMS)
def test_attention_cores(folder, name, form, factor, detail):
    module = loaded(folder, made_originals.core(name, form, factor))
    function = getattr(module, name)
    entry = only_entry("replaced")
    assert entry.name == f"original_made.{name}"
    assert entry.detail.startswith(detail)
    assert entry.calls == 0  # those of the proof do not count
    inputs = attention_inputs(form)
    torch.testing.assert_close(function(*inputs), function.__wrapped__(*inputs))
    assert entry.calls == 1
    assert entry.seconds > 0
    value, shapes, locations, weights = inputs
    named = {"attention_weights": weights, "sampling_locations": locations}
    assert torch.equal(function(value, value_spatial_shapes=shapes, **named), function(*inputs))
    with pytest.raises(TypeError, match="missing"):  # in the words of the original
        function(value)


def test_gradients_reach_height_and_place(folder):
    module = loaded(folder, made_originals.core())
    value, shapes, locations, weights = attention_inputs("xy", torch.float64)
    locations[..., 1] += 0.2
    grads = []
    for function in (
        module.deform_attn_core_pytorch,
        module.deform_attn_core_pytorch.__wrapped__,
    ):
        leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
        function(leaves[0], shapes, leaves[1], leaves[2]).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("factor", ["1.001", "(1 + 1e-9)", "2.0", "attention_weights.sum()"])
def test_a_core_that_is_subtly_wrong_is_left(folder, factor):
    module = loaded(folder, made_originals.core(factor=factor))
    assert not hasattr(module.deform_attn_core_pytorch, "__wrapped__")
    assert "differs by" in only_entry("left").detail


def test_a_core_with_another_gradient_is_left(folder):
    module = loaded(folder, made_originals.core(factor="1.0).detach() * (1.0"))
    assert not hasattr(module.deform_attn_core_pytorch, "__wrapped__")
    assert only_entry("left").detail


def test_what_ours_does_not_take_falls_back_and_is_counted(folder):
    module = loaded(folder, made_originals.core())
    value, _, locations, weights = attention_inputs("xy")
    high = torch.tensor([[3, 3], [1, 5]])
    out = module.deform_attn_core_pytorch(value, high, locations, weights)
    original = module.deform_attn_core_pytorch.__wrapped__
    assert torch.equal(out, original(value, high, locations, weights))
    entry = only_entry("fell back")
    assert (entry.detail, entry.calls) == ("a level is higher than one row", 1)
    assert only_entry("replaced").calls == 0


# ---- names and signatures ------------------------------------------------------------------------


def test_a_changed_signature_is_said(folder):
    source = made_originals.TEMPORAL_NMS.format(comparison="<=").replace("thresh", "iou")
    module = loaded(folder, source)
    assert not hasattr(module.temporal_nms, "__wrapped__")
    detail = "expected parameters (segments, thresh), found (segments, iou)"
    assert only_entry("left").detail == detail


def test_a_function_from_elsewhere_is_not_the_modules(folder):
    folder.write("home_made.py", made_originals.TEMPORAL_NMS.format(comparison="<="))
    module = loaded(folder, "from home_made import temporal_nms")
    assert hasattr(module.temporal_nms, "__wrapped__")
    assert only_entry("replaced").name == "home_made.temporal_nms"


def test_a_class_or_value_of_the_name_is_nothing(folder):
    loaded(folder, "class temporal_nms: pass\nbatched_nms = 3\n")
    assert compat.report().entries == ()


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"skip": ["temporal_nms"]}, "not wanted"),
        ({"skip": ["original_made.temporal_nms"]}, "not wanted"),
        ({"only": ["batched_nms"]}, "not wanted"),
        ({"verify": False}, "not proved (verify=False)"),
    ],
)
def test_what_is_not_wanted_is_left(folder, options, detail):
    module = loaded(folder, made_originals.TEMPORAL_NMS.format(comparison="<="), **options)
    assert not hasattr(module.temporal_nms, "__wrapped__")
    assert only_entry("left").detail == detail


@pytest.mark.parametrize("only", ["temporal_nms", "original_made.temporal_nms"])
def test_only(folder, only):
    module = loaded(folder, made_originals.TEMPORAL_NMS.format(comparison="<="), only=[only])
    assert hasattr(module.temporal_nms, "__wrapped__")


# ---- NMS -----------------------------------------------------------------------------------------


def test_temporal_nms(folder):
    module = loaded(folder, made_originals.TEMPORAL_NMS.format(comparison="<="))
    rng = np.random.default_rng(1)
    start = np.round(rng.random(300) * 50)
    rows = np.stack([start, start + 1 + np.round(rng.random(300) * 9), rng.random(300)], 1)
    rows[:, 2] = np.round(rows[:, 2], 1)
    original = module.temporal_nms.__wrapped__
    for threshold in (0.0, 0.4, 1.0):
        assert np.array_equal(module.temporal_nms(rows, threshold), original(rows, threshold))
    assert only_entry("replaced").calls == 3
    single = rows.astype(np.float32)
    assert np.array_equal(module.temporal_nms(single, 0.4), original(single, 0.4))
    assert "dtype float32" in only_entry("fell back").detail


def test_temporal_nms_that_suppresses_at_equality_is_left(folder):
    module = loaded(folder, made_originals.TEMPORAL_NMS.format(comparison="<"))
    assert not hasattr(module.temporal_nms, "__wrapped__")
    assert "keeps other rows" in only_entry("left").detail


def detections(n: int = 400):
    generator = torch.Generator().manual_seed(n)
    start = torch.rand(n, generator=generator) * 200
    segments = torch.stack([start, start + torch.rand(n, generator=generator) * 20 + 0.1], 1)
    scores = (torch.randperm(n, generator=generator) + 1) / (n + 1)
    return segments, scores, torch.randint(0, 5, (n,), generator=generator)


@pytest.mark.parametrize(("weight", "words"), [("iou", "score_iou"), ("1.0", "score")])
def test_batched_nms_fused(folder, weight, words):
    source = made_originals.BATCHED_NMS.format(weight=weight)
    module = loaded(folder, source, nms="fused")
    entry = only_entry("replaced")
    assert entry.detail.startswith(f"votes by {words};")
    call = {"iou_threshold": 0.4, "min_score": 0.01, "max_seg_num": 100}
    original = module.batched_nms.__wrapped__
    for more in ({}, {"multiclass": False}, {"use_soft_nms": False}, {"voting_thresh": 0.5}):
        ours = module.batched_nms(*detections(), **call, **more)
        theirs = original(*detections(), **call, **more)
        assert torch.equal(ours[2], theirs[2])
        torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours[1], theirs[1])
    assert entry.calls == 4


def test_batched_nms_stays_with_the_literal_order(folder, kinds):
    module = loaded(folder, made_originals.BATCHED_NMS.format(weight="iou"))
    assert not hasattr(module.batched_nms, "__wrapped__")
    assert "nms_1d_cpu" in kinds("left")["original_made.batched_nms"]
    assert kinds("provided")["nms_1d_cpu"] == "literal order"


def test_votes_by_something_else_are_left(folder, kinds):
    source = made_originals.BATCHED_NMS.format(weight="(iou * iou)")
    module = loaded(folder, source, nms="fused")
    assert not hasattr(module.batched_nms, "__wrapped__")
    assert "differs by" in kinds("left")["original_made.batched_nms"]


# ---- soft-NMS of proposals -----------------------------------------------------------------------


def proposals(count: int = 80) -> np.ndarray:
    rng = np.random.default_rng(4)
    start = np.round(rng.random(count) * 0.8, 2)
    end = start + np.round(rng.random(count) * 0.2, 2) + 0.01
    return np.stack([start, end, np.round(rng.random(count), 1)], axis=1)


@pytest.mark.parametrize(("column", "words"), [(-1, "last"), (2, "third")])
def test_soft_nms_of_proposals(folder, column, words):
    source = made_originals.SOFT_NMS_PROPOSALS.format(comparison="<=", column=column)
    function = loaded(folder, source).soft_nms
    wide = np.column_stack([proposals(), np.round(np.random.default_rng(2).random(80), 1)])
    for rows in (proposals(), wide):
        for most in (0, 5, 79, 500):
            ours = function(rows, 0.4, 0.5, 0.9, most)
            theirs = function.__wrapped__(rows, 0.4, 0.5, 0.9, most)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert only_entry("replaced").calls == 8
    assert only_entry("replaced").detail.startswith(f"score in the {words} column")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows.astype(np.float32), "no array of float64"),
        (lambda rows: rows[:0], "no proposals"),
        (lambda rows: np.where(rows == rows[0, 1], rows[0, 0], rows), "without length"),
        (lambda rows: -rows[:, [1, 0, 2]], "negative score"),
    ],
)
def test_soft_nms_of_proposals_falls_back(folder, change, reason):
    module = loaded(folder, made_originals.SOFT_NMS_PROPOSALS.format(comparison="<=", column=-1))
    given = (change(proposals()), 0.4, 0.5, 0.9, 10)
    expected = module.soft_nms.__wrapped__(*given)
    np.testing.assert_array_equal(module.soft_nms(*given), expected)
    assert reason in only_entry("fell back").detail


def test_soft_nms_that_takes_one_less_is_left(folder):
    loaded(folder, made_originals.SOFT_NMS_PROPOSALS.format(comparison="<", column=-1))
    assert "differs by inf" in only_entry("left").detail
