# SPDX-License-Identifier: Apache-2.0
"""Modules that others compile: by name, in packages, over stale builds, and what they compute."""

from __future__ import annotations

import importlib.machinery
import math

import pytest
import torch

from tal_fast import compat, ops
from tal_fast.compat.options import MODULES
from tal_fast.ops.soft_nms_literal import soft_nms_literal

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- finding them --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_there(folder, kinds, name):
    compat.install(quiet=True)
    module = folder.load(name)
    provided = kinds("provided")
    functions = [n for n in vars(module) if not n.startswith("_")]
    assert functions
    assert {name, *(f"{name}.{function}" for function in functions)} == set(provided)
    compat.uninstall()
    with pytest.raises(ModuleNotFoundError):
        folder.load(name)


def test_inside_a_package(folder):
    folder.write("package_made/__init__.py", "from .ops_made import forward\n")
    folder.write("package_made/ops_made.py", "from . import Align1D\nforward = Align1D.forward\n")
    compat.install(quiet=True)
    package = folder.load("package_made")
    assert callable(package.forward)
    assert package.Align1D.forward is package.forward
    compat.uninstall()
    assert not hasattr(package, "Align1D")


def test_over_a_stale_build(folder, kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.write(f"nms_1d_cpu{SUFFIX}", "of another torch")
    compat.install(quiet=True)
    assert folder.load("nms_1d_cpu").nms is not None
    assert kinds("provided")["nms_1d_cpu"] == f"literal order, instead of nms_1d_cpu{SUFFIX}"


def test_a_module_of_python_is_left_alone(folder, kinds):
    file = folder.write("nms_1d_cpu.py", "def nms(): return 'mine'\n")
    folder.write("Align1D/__init__.py", "value = 3\n")
    folder.write("MultiScaleDeformableAttention/functions.py", "value = 4\n")
    compat.install(quiet=True)
    assert folder.load("nms_1d_cpu").nms() == "mine"
    assert folder.load("Align1D").value == 3
    assert folder.load("MultiScaleDeformableAttention.functions").value == 4
    assert kinds("left")["nms_1d_cpu"] == f"a Python module: {file}"
    assert not compat.report().names("provided")


def test_a_folder_of_native_sources_is_no_module(folder):
    folder.write("Align1D/align.cpp", "")
    compat.install(quiet=True)
    assert folder.load("Align1D").forward is not None


def test_what_was_imported_before_is_said(folder, kinds):
    folder.write("nms_1d_cpu.py", "")
    module = folder.load("nms_1d_cpu")
    compat.install(quiet=True)
    assert folder.load("nms_1d_cpu") is module
    assert kinds("left")["nms_1d_cpu"].startswith("was imported before")


@pytest.mark.parametrize("options", [{"skip": ["Align1D"]}, {"only": ["nms_1d_cpu"]}])
def test_what_is_not_wanted_is_not_there(folder, options):
    compat.install(quiet=True, **options)
    folder.write("user_made.py", "try: import Align1D\nexcept ImportError: Align1D = None\n")
    assert folder.load("user_made").Align1D is None


def test_a_script_that_catches_importerror_gets_the_module(folder):
    folder.write("user_made.py", "try: import Align1D\nexcept ImportError: Align1D = None\n")
    compat.install(quiet=True)
    assert folder.load("user_made").Align1D is not None


# ---- nms_1d_cpu ----------------------------------------------------------------------------------


@pytest.fixture(params=["literal", "fused"])
def nms_1d_cpu(folder, request):
    compat.install(quiet=True, nms=request.param)
    return folder.load("nms_1d_cpu")


def detections(n: int = 300, *, ties: bool = False):
    start = random(n) * 60
    segments = torch.stack([start, start + random(n, seed=1) * 12 + 0.1], 1)
    scores = (torch.randperm(n, generator=torch.Generator().manual_seed(2)) + 1) / (n + 1)
    return segments, (scores * 8).round() / 8 if ties else scores


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.4, 1.0, 1.5, math.nan])
def test_nms(nms_1d_cpu, threshold):
    segments, scores = detections(ties=True)
    order = scores.sort(descending=True)[1]
    kept: list[int] = []
    for row in order.tolist():
        start, end = segments[row]
        others = segments[kept]
        inter = (torch.minimum(end, others[:, 1]) - torch.maximum(start, others[:, 0])).clamp(min=0)
        length = (end - start + 1e-6) + (others[:, 1] - others[:, 0] + 1e-6)
        if not bool((inter / (length - inter) >= threshold).any()):
            kept.append(row)
    found = nms_1d_cpu.nms(segs=segments, scores=scores, iou_threshold=threshold)
    assert found.tolist() == kept
    # Scores are only sorted.
    assert nms_1d_cpu.nms(segments, scores.double(), threshold).tolist() == kept


def test_softnms_writes_what_it_kept(nms_1d_cpu):
    segments, scores = detections()
    found = torch.full((len(scores), 3), -7.0)
    rows = nms_1d_cpu.softnms(
        segments, scores, found, iou_threshold=0.1, sigma=0.5, min_score=0.01, method=2
    )
    kept = len(rows)
    assert 0 < kept < len(scores)
    assert torch.equal(found[:kept, :2], segments[rows])
    assert bool((found[kept:] == -7).all())
    expected, values = soft_nms_literal(segments, scores, min_score=0.01)
    assert torch.equal(rows, expected)
    torch.testing.assert_close(found[:kept], values)
    assert bool((found[: kept - 1, 2] >= found[1:kept, 2]).all())
    # OpenTAD's two arguments more.
    more = nms_1d_cpu.softnms(segments, scores, found, 0.1, 0.5, 0.01, 3, t1=0.2, t2=0.01)
    assert len(more) > 0


def test_softnms_is_literal_by_default(folder):
    compat.install(quiet=True)
    module = folder.load("nms_1d_cpu")
    segments, scores = detections(ties=True)
    for method in range(3):
        found = torch.empty(len(scores), 3)
        rows = module.softnms(segments, scores, found, 0.3, 0.5, 0.001, method)
        words = ("hard", "linear", "gaussian")[method]
        expected, values = soft_nms_literal(segments, scores, words, iou_threshold=0.3)
        assert torch.equal(rows, expected)
        assert torch.equal(found[: len(rows)], values)


def test_nms_1d_cpu_of_nothing_and_of_wrong_input(nms_1d_cpu):
    none = torch.empty(0, 2)
    assert nms_1d_cpu.nms(none, torch.empty(0), 0.5).shape == (0,)
    assert nms_1d_cpu.softnms(none, torch.empty(0), torch.empty(0, 3), 0.1, 0.5, 0, 2).shape == (0,)
    segments, scores = detections(10)
    with pytest.raises(RuntimeError, match="expected scalar type Float but found Double"):
        nms_1d_cpu.nms(segments.double(), scores, 0.5)
    with pytest.raises(RuntimeError, match="segs must be contiguous"):
        nms_1d_cpu.nms(segments.t().contiguous().t(), scores, 0.5)
    found = torch.empty(10, 3)
    with pytest.raises(RuntimeError, match="expected scalar type Float but found Half"):
        nms_1d_cpu.softnms(segments, scores.half(), found, 0.1, 0.5, 0.001, 2)
    with pytest.raises(RuntimeError, match="expected method 0, 1, 2 or 3, got 4"):
        nms_1d_cpu.softnms(segments, scores, found, 0.1, 0.5, 0.001, 4)


# ---- the others ----------------------------------------------------------------------------------


def test_align1d(folder):
    compat.install(quiet=True)
    module = folder.load("Align1D")
    features = random(2, 3, 9, dtype=torch.float64).requires_grad_()
    rois = torch.tensor([[0.0, 1.0, 4.5], [1.0, -1.0, 20.0]], dtype=torch.float64)
    expected = ops.segment_roi_align(features, rois, 4, 2)
    (gradient,) = torch.autograd.grad(expected.square().sum(), features)
    out = module.forward(features.detach(), rois, 4, 2)
    assert torch.equal(out, expected)
    grad = module.backward(2 * out, rois, 4, 2, 3, 9, 2)
    assert grad.shape == (2, 3, 9)
    torch.testing.assert_close(grad, gradient)
    half = rois.half()
    assert torch.equal(
        module.forward(features.detach().float(), half, 4, 0),
        module.forward(features.detach().float(), half.float(), 4, 0),
    )


@pytest.mark.parametrize("count", [2, 5, 12])
def test_boundary_max_pooling(folder, count):
    compat.install(quiet=True)
    module = folder.load("boundary_max_pooling_cuda")
    features = random(2, 4, 9, dtype=torch.float64).requires_grad_()
    ends = (random(2, count, 4, seed=1, dtype=torch.float64) * 9).sort(-1)[0]
    # What AFSD's kernel computes, where it does not leave its memory.
    expected = ops.boundary_max_pool(features, ends, "afsd" if count <= 9 else None)
    (gradient,) = torch.autograd.grad(expected.square().sum(), features)
    out = module.forward(features.detach(), ends)
    assert torch.equal(out, expected)
    assert torch.equal(module.backward(2 * out, features.detach(), ends), gradient)


def attention(form: str):
    lengths = torch.tensor([6, 3])
    value, x = (
        random(2, 9, 2, 4, dtype=torch.float64),
        random(2, 3, 2, 2, 3, 1).double() * 1.2 - 0.1,
    )
    weights = random(2, 3, 2, 2, 3, seed=3, dtype=torch.float64)
    if form == "1d":
        return value, lengths, x, weights
    y = random(2, 3, 2, 2, 3, 1, seed=4).double() * 2 - 0.5
    shapes = torch.stack([torch.ones_like(lengths), lengths], -1)
    if form == "high":
        shapes = torch.tensor([[2, 3], [1, 3]])
    return value, shapes, torch.cat([x, y], -1), weights


@pytest.mark.parametrize(
    ("name", "form", "prefix"),
    [
        ("MultiScaleDeformableAttention", "rows", "ms"),
        ("MultiScaleDeformableAttention", "high", "ms"),
        ("MultiScaleTemporalDeformableAttention", "1d", "ms"),
        ("TemporalDeformableAttention", "1d", "temporal"),
    ],
)
def test_deformable_attention(folder, kinds, name, form, prefix):
    compat.install(quiet=True)
    module = folder.load(name)
    forward = getattr(module, f"{prefix}_deform_attn_forward")
    backward = getattr(module, f"{prefix}_deform_attn_backward")
    value, shapes, locations, weights = attention(form)
    inputs = (value, shapes, torch.zeros(2, dtype=torch.int64), locations, weights)
    leaves = [x.clone().requires_grad_() for x in (value, locations, weights)]
    expected = by_hand(leaves[0], shapes, leaves[1], leaves[2])
    out = forward(*inputs, 64)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for ours, theirs in zip(backward(*inputs, 2 * out, 64), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    fell = {f"{name}.forward", f"{name}.backward"} if form == "high" else set()
    assert set(kinds("fell back")) == fell


def by_hand(value, shapes, locations, weights):
    """Pixel by pixel."""
    out = value.new_zeros(*locations.shape[:3], value.shape[3])
    begin = 0
    for level, shape in enumerate(shapes.tolist()):
        height, width = shape if isinstance(shape, list) else (1, shape)
        at = locations[:, :, :, level]
        x = at[..., 0] * width - 0.5
        y = at[..., 1] * height - 0.5 if at.shape[-1] == 2 else torch.zeros_like(x)
        for row in range(height):
            for column in range(width):
                near = (1 - (x - column).abs()).clamp(min=0) * (1 - (y - row).abs()).clamp(min=0)
                factor = (near * weights[:, :, :, level]).sum(-1)  # [B, Q, H]
                out = out + factor[..., None] * value[:, None, begin + row * width + column]
        begin += height * width
    return out.flatten(2)


# ---- grid_sample1d_cuda --------------------------------------------------------------------------


@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("align_corners", [True, False])
def test_grid_sample1d(folder, border, align_corners):
    compat.install(quiet=True)
    module = folder.load("grid_sample1d_cuda")
    values = torch.tensor([[[0.0, 10.0, 20.0, 40.0]]], dtype=torch.float64)
    row = torch.tensor([-1.5, -0.5, 0.0, 1.25, 2.0, 3.0, 3.75, 6.0], dtype=torch.float64)
    grid = (row / 1.5 - 1 if align_corners else (row + 0.5) / 2 - 1).unsqueeze(0)
    found = module.forward(values, grid, border, align_corners)
    inside = [0.0, 12.5, 20.0, 40.0]
    outside = [0.0, 0.0, 40.0, 40.0] if border else [0.0, 0.0, 10.0, 0.0]
    expected = [*outside[:2], *inside, *outside[2:]]
    torch.testing.assert_close(found, torch.tensor([[expected]], dtype=torch.float64))

    def sample(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return Sampled.apply(x, at)

    class Sampled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, at):
            ctx.save_for_backward(x, at)
            return module.forward(x, at, border, align_corners)

        @staticmethod
        def backward(ctx, grad):
            return tuple(module.backward(grad, *ctx.saved_tensors, border, align_corners))

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    at = torch.rand(2, 7, generator=generator, dtype=torch.float64) * 2.6 - 1.3
    assert torch.autograd.gradcheck(sample, (x, at.requires_grad_()))
    with pytest.raises(RuntimeError, match=r"grid of shape \[B, Q\], got \[2, 3, 5\] and \[7\]"):
        module.forward(x, at[0], border, align_corners)
