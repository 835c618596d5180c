# SPDX-License-Identifier: Apache-2.0
"""What models cost in theory: published sizes to the digit, formulas, padding, official code."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tal_fast import cli
from tal_fast.errors import ConfigError
from tal_fast.models import Targets, Whole, available, detector_config, detector_of, plain_defaults
from tal_fast.models.pyramid.convolution import conv_macs
from tal_fast.profiling import CostCounter, model_cost
from tal_fast.profiling.model_report import cost_dict

ROOT = Path(__file__).parents[2]
OWN = f"{ROOT / 'examples' / 'own_model.py'}:RowDetector"


def thumos(name, *lengths, channels=2048, classes=20, **options):
    return model_cost(name, channels=channels, classes=classes, lengths=lengths, **options)


def core(cost, rows):
    """Multiply-adds of TadTR's samples, which torch's own formulas leave out."""
    sizes = detector_config(cost.name).model
    asking = sizes.encoder_layers * rows + sizes.decoder_layers * sizes.num_queries
    return 2 * sizes.num_points * sizes.d_model * asking


class TestPublishedSizes:
    """Counts of the official codes' sizes, in thousandths of a GMAC or finer."""

    def test_tadtr(self):
        expected = {128: 0.6533, 256: 1.098, 512: 1.987, 1024: 3.765, 2304: 8.211, 4608: 16.214}
        cost = thumos("tadtr", *expected)
        assert cost.parameters == 8_661_594
        for one, gmac in zip(cost.lengths, expected.values(), strict=True):
            digits = len(str(gmac).split(".")[1])
            assert round((one.macs - core(cost, one.rows)) / 1e9, digits) == gmac
            assert one.forward.macs == one.macs
        window = cost.lengths[0]
        assert round(core(cost, 128) / 1e9, 4) == 0.0014
        assert round(window.formula["actionness"] / 1e9, 4) == 0.0446

    def test_tadtr_without_actionness(self):
        cost = thumos("tadtr", 128, settings=["model.actionness=false"])
        assert cost.parameters == 7_546_713
        assert round((cost.lengths[0].macs - core(cost, 128)) / 1e9, 4) == 0.6087
        assert cost.lengths[0].step["forward"].saved // 10**6 == 188

    @pytest.mark.parametrize(
        ("name", "channels", "classes", "parameters", "step"),
        [
            ("tadtr", 2048, 20, 8_661_594, 1.893),
            ("tadtr", 300, 12, 8_205_882, 1.777),
            ("tadtr-small", 300, 12, 1_224_478, 0.2518),
        ],
    )
    def test_a_training_step_of_tadtr(self, name, channels, classes, parameters, step):
        cost = thumos(name, 128, channels=channels, classes=classes)
        assert cost.parameters == parameters
        window = cost.lengths[0]
        width = detector_config(name).model.d_model
        # Three forwards, but features need no gradient.
        assert window.whole_step.macs / cost.batch == 3 * window.macs - 128 * channels * width
        digits = len(str(step).split(".")[1])
        plain = window.whole_step.macs / cost.batch - 3 * core(cost, 128)
        assert round(plain / 1e9, digits) == step
        if name == "tadtr-small":
            assert round((window.macs - core(cost, 128)) / 1e9, 4) == 0.0856
        elif channels == 2048:
            assert round(window.step["forward"].saved / 1e6) == 200

    @pytest.mark.parametrize(
        ("name", "parameters", "whole", "padded", "rows"),
        [
            # 45.25 and 56.56 with the official chunks of attention, which compute what they mask.
            ("actionformer", 29_251_612, 45.16, 56.45, 2880),
            ("tridet", 15_989_604, 43.68, 45.50, 2400),
            ("temporalmaxer", 7_117_852, 23.48, 24.46, 2400),
        ],
    )
    def test_pyramids(self, name, parameters, whole, padded, rows):
        cost = thumos(name, 2304, 2400)
        assert cost.parameters == parameters
        assert [round(one.macs_of_recipe / 1e9, 2) for one in cost.lengths] == [whole, padded]
        assert [one.rows_of_recipe for one in cost.lengths] == [2304, rows]

    @pytest.mark.parametrize(
        ("name", "clips", "gmac"),
        [
            ("tadtr", 2.34, 1.53),
            ("actionformer", 0.20, 8.82),  # 8.84 with the official chunks
            ("tridet", 0.20, 8.53),
            ("temporalmaxer", 0.20, 4.59),
        ],
    )
    def test_a_minute_of_video(self, name, clips, gmac):
        minute = thumos(name).lengths[0].per_minute
        assert (round(minute.clips, 2), round(minute.macs_of_recipe / 1e9, 2)) == (clips, gmac)


class TestPadding:
    def test_a_short_video_is_a_window(self):
        one = thumos("tadtr", 100).lengths[0]
        assert (one.rows, one.rows_of_batch, one.rows_of_recipe) == (100, 128, 128)
        assert one.per_minute.clips == 225 / 100  # alone, it overlaps with nothing

    def test_we_compute_less_than_the_recipe_pads(self):
        one = thumos("actionformer", 100).lengths[0]
        assert (one.rows, one.rows_of_batch, one.rows_of_recipe) == (100, 160, 2304)
        assert one.macs < 0.1 * one.macs_of_recipe
        assert one.macs_of_recipe == thumos("actionformer", 2304).lengths[0].macs

    def test_the_preset_says_lengths_and_timing(self):
        cost = thumos("tridet-hacs-slowfast")
        assert cost.lengths[0].rows == 960
        assert cost.timing == (15.0, 8.0)
        cost = thumos("tadtr-small")
        assert (cost.lengths[0].rows, cost.timing, cost.lengths[0].per_minute) == (128, None, None)
        assert thumos("tadtr", fps=15).timing == (15, 8.0)


def on(device, name, channels, classes, settings):
    config = detector_config(name, settings)
    with plain_defaults(device):
        return detector_of(name)(channels, classes, config)


def counted(model, rows, *, autocast=False):
    """Multiply-adds of prediction and of a training step of two clips."""
    device = next(model.parameters()).device
    batch = torch.zeros(2, rows, model.in_channels, device=device)
    mask = torch.zeros(2, rows, dtype=torch.bool, device=device)
    edges = torch.tensor([[2.0, 9.0], [12.0, 20.0]] * 2, dtype=torch.float64)
    targets = Targets(torch.tensor([0, 1] * 2), edges, [2, 2], rows)
    counter = CostCounter(model)
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model.eval()
        with torch.no_grad(), counter.counting("prediction"):
            model(batch, mask)
        model.train()
        with counter.counting("forward"):
            output = model(batch, mask)
        with counter.counting("loss"):
            total = model.loss(output, targets, Whole(targets))["total"]
    with counter.counting("backward"):
        total.backward()
    return {phase: counter.total(phase).macs for phase, _ in counter.by_part}


def random_tadtr(draw):
    heads = draw.choice([2, 4, 8])
    sizes = {
        "d_model": 32 * draw.choice([1, 2, 4]), "num_heads": heads,
        "num_points": draw.randint(1, 6), "encoder_layers": draw.randint(1, 3),
        "decoder_layers": draw.randint(1, 3), "feedforward": draw.randint(10, 200),
        "num_queries": draw.randint(3, 60), "actionness": draw.random() < 0.5,
        "roi_bins": draw.randint(1, 20),
    }  # fmt: skip
    return {"model": sizes}, draw.randint(20, 300)


def random_pyramid(name, draw):
    levels = draw.randint(2, 5)
    sizes = {
        "width": 16 * draw.choice([2, 4]), "head_width": draw.randint(8, 64), "levels": levels,
        "embed_layers": draw.randint(1, 3), "kernel": draw.choice([1, 3, 5]),
        "head_kernel": draw.choice([1, 3, 5]), "head_layers": draw.randint(1, 4),
        "position_code": draw.random() < 0.5,
    }  # fmt: skip
    if name == "actionformer":
        sizes |= {"heads": draw.choice([1, 2, 4]), "mlp_ratio": draw.randint(1, 4)}
        sizes |= {"windows": [draw.choice([-1, 3, 8, 19]) for _ in range(levels)]}
        sizes |= {"stem_layers": draw.randint(0, 2)}
    if name == "tridet":
        sizes |= {"hidden": draw.randint(8, 100), "bins": draw.randint(2, 20)}
        sizes |= {"window": draw.choice([1, 3]), "boundary_kernel": draw.choice([1, 3])}
    ranges = [[0, 4]] * (levels - 1) + [[4, 10000]]
    return {"model": sizes, "loss": {"ranges": ranges}, "data": {"max_length": 1 << 10}}


def beyond_the_formula(model, rows):
    """Rows of zeros between the levels, which heads convolve; gates of zeros, which none does."""
    sizes = model.config.model
    widest = max(sizes.head_kernel, getattr(sizes, "boundary_kernel", 1))
    gaps = sizes.levels * (widest // 2)
    heads = [getattr(model, f"{k}_head", None) for k in ("cls", "reg", "start", "end")]
    found = sum(conv_macs(head, gaps) for head in heads if head is not None)
    if hasattr(model, "start_head"):
        for level, block in enumerate([*model.backbone.stem, *model.backbone.branch]):
            own = rows >> max(0, level - sizes.stem_layers + 1)
            gates = [block.psi, block.fc, block.convw, block.convkw]
            found -= sum(conv_macs(gate, own) for gate in gates) + conv_macs(block.global_fc, 1)
    return found


RANDOM = [("tadtr", seed) for seed in range(8)]
RANDOM += [(n, s) for n in ("actionformer", "tridet", "temporalmaxer") for s in range(4)]


class TestFormulas:
    @pytest.mark.parametrize(("name", "seed"), RANDOM)
    def test_counted_is_the_closed_formula(self, name, seed):
        draw = random.Random(f"{name} {seed}")
        channels, classes = draw.randint(1, 300), draw.randint(2, 40)
        if name == "tadtr":
            settings, rows = random_tadtr(draw)
        else:
            settings = random_pyramid(name, draw)
            rows = draw.randint(1, 12) << (settings["model"]["levels"] - 1)
        model = on("meta", name, channels, classes, settings)
        found = counted(model, rows)
        expected = 2 * sum(model.flops(rows).values())
        if name != "tadtr":
            expected += 2 * beyond_the_formula(model, rows)
        assert found["prediction"] == found["forward"] == expected
        if name == "tadtr":
            features = 2 * rows * channels * settings["model"]["d_model"]
            assert found["backward"] == 2 * expected - features

    @pytest.mark.parametrize("name", ["tadtr-small", "actionformer-small", "temporalmaxer-small"])
    def test_a_cpu_counts_what_meta_counts(self, name):
        # Under autocast convolutions over rows are one product on a CPU, too.
        sizes = {"model": {"drop_path": 0.0}} if name.startswith("actionformer") else {}
        found = []
        for device in ("cpu", "meta"):
            model = on(device, name, 24, 5, sizes)
            if name.startswith("tadtr"):
                found.append(counted(model, 64))
            else:
                found.append(counted(padded(model), 64, autocast=device == "cpu"))
        assert found[0] == found[1]


def padded(model):
    """Takes any batch for one with the padding that it needs."""
    model._check_padding = lambda mask: None
    return model


class TestEveryModel:
    @pytest.mark.parametrize("name", available())
    def test_presets(self, name):
        channels = 4096 if name == "actionformer-ego4d-all" else 64
        cost = model_cost(name, channels=channels, classes=7, batch=2)
        content = json.loads(json.dumps(cost_dict(cost)))
        one = content["lengths"][0]
        assert one["macs"] > 0
        assert one["forward"]["macs"] == pytest.approx(one["macs"], rel=0.02)
        parts = [p["macs"] for p in one["by_part"] if p["phase"] == "prediction"]
        assert sum(parts) == one["forward"]["macs"]
        assert set(one["step"]) == {"forward", "loss", "backward", "all"}
        assert one["step"]["all"]["saved_bytes"] > 0
        assert sum(content["parameters_by_part"].values()) == content["parameters"]

    def test_one_s_own_by_file(self):
        cost = model_cost(OWN, channels=16, classes=3, fps=30, stride=6)
        one = cost.lengths[0]
        assert one.formula is None
        assert one.macs == one.macs_of_recipe == one.forward.macs
        assert one.macs == one.rows * (3 * 64 * (16 + 2 * 64) + 64 * 5)
        # Its loss picks by mask: that asks for values. Nothing is made up in its place.
        assert "loss" not in one.step
        assert any(text.startswith("loss: it asks for values") for text in one.left_out)
        first = one.rows * 3 * 64 * 16  # features need no gradient
        assert one.whole_step.macs == cost.batch * (3 * one.macs - first)
        assert one.per_minute.macs == pytest.approx(300 / one.rows * one.macs)

    def test_one_s_own_by_module(self, tmp_path, monkeypatch):
        (tmp_path / "my_models.py").write_text((ROOT / "examples" / "own_model.py").read_text())
        monkeypatch.chdir(tmp_path)
        cost = model_cost("my_models:RowDetector", channels=16, classes=3, lengths=[50])
        assert cost.detector == "my_models:RowDetector"
        assert cost.lengths[0].macs == 50 * (3 * 64 * (16 + 2 * 64) + 64 * 5)


WRONG = """
from tal_fast.models import Detector
class Values(Detector):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        import torch
        self.linear = torch.nn.Linear(4, 2)
    def forward(self, features, mask):
        return self.linear(features) * float(features.sum())
    def loss(self, *arguments): ...
    candidates = loss
"""


class TestErrors:
    def test_a_forward_pass_that_asks_for_values(self, tmp_path):
        (tmp_path / "values.py").write_text(WRONG)
        with pytest.raises(ConfigError, match="256 rows on the meta device, where tensors have no"):
            model_cost(f"{tmp_path / 'values.py'}:Values", channels=4, classes=2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 0}, "channels: expected at least 1, got 0"),
            ({"classes": -1}, "classes: expected at least 1, got -1"),
            ({"batch": 0}, "batch: expected at least 1, got 0"),
            ({"lengths": [128, 0]}, "lengths: expected at least 1 row, got 0"),
            ({"fps": 0.0}, "fps: expected more than 0, got 0"),
            ({"stride": float("nan")}, "stride: expected more than 0, got nan"),
            ({"settings": ["model.dmodel=3"]}, "unknown setting 'model.dmodel'"),
            ({"name": "tadtr-small", "fps": 30}, "stride: expected with the other"),
            ({"name": "tadtrr"}, "unknown model 'tadtrr'; did you mean 'tadtr'"),
            ({"name": "actionformer-ego4d-all"}, "for 8 channels and 2 classes: expected features"),
        ],
    )
    def test_messages(self, options, message):
        options = {"name": "tadtr", "channels": 8, "classes": 2, **options}
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            model_cost(options.pop("name"), **options)


class TestCommand:
    def test_table_and_file(self, capsys, tmp_path):
        file = tmp_path / "cost.json"
        arguments = ["profile", "model", "--channels", "2048", "--classes", "20"]
        status = cli.main([*arguments, "--lengths", "128,256", "--json", str(file)])
        text = capsys.readouterr().out
        assert status == 0
        assert "8,661,594 parameters" in text
        for shown in ("0.6546", "1.3093", "1.1003", "1.5343", "transformer.encoder", "201.3"):
            assert shown in text
        assert "…" not in text
        assert [one["rows"] for one in json.loads(file.read_text())["lengths"]] == [128, 256]

    def test_a_range_of_lengths(self, capsys):
        arguments = ["profile", "model", "--channels", "4", "--classes", "2", "--model"]
        assert cli.main([*arguments, "tadtr-small", "--lengths", "130:260:60"]) == 0
        text = capsys.readouterr().out
        assert all(f"{rows} rows: " in text for rows in (130, 190, 250))


@pytest.mark.parametrize(
    ("project", "name", "rows", "gmac"),
    [
        ("TadTR", "tadtr", 128, 0.630),
        ("actionformer_release", "actionformer", 2304, 45.25),
        ("actionformer_release", "actionformer", 2400, 56.56),
        ("TriDet", "tridet", 2304, 43.68),
        ("TriDet", "tridet", 2400, 45.50),
        ("TemporalMaxer", "temporalmaxer", 2304, 23.48),
        ("TemporalMaxer", "temporalmaxer", 2400, 24.46),
    ],
)
def test_official_code(project, name, rows, gmac):
    peers = os.environ.get("TAL_FAST_PEERS")
    if peers is None or not (Path(peers) / project).is_dir():
        pytest.skip(f"no {project} under TAL_FAST_PEERS")
    script = Path(__file__).with_name("official_cost.py")
    done = subprocess.run(
        [sys.executable, str(script), project, str(rows)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    official = json.loads(done.stdout.splitlines()[-1])
    cost = thumos(name, rows, settings=["model.actionness=false"] if name == "tadtr" else [])
    one = cost.lengths[0]
    assert official["parameters"] == cost.parameters
    assert official["macs"] / 1e9 == pytest.approx(gmac, rel=1e-3)
    ours = one.macs_of_recipe
    if name == "tadtr":
        # It runs the segment heads twice; its attention's samples are no products.
        sizes = detector_config("tadtr").model
        head = 2 * sizes.d_model**2 + 2 * sizes.d_model
        ours += sizes.decoder_layers * sizes.num_queries * head - core(cost, rows)
    if name == "actionformer":
        # Its chunks compute what they mask: about twice the products of attention.
        model = on("meta", name, 2048, 20, {})
        band = model.flops(one.rows_of_recipe)["attention"]
        assert band < official["attention"] < 2 * band
        ours += official["attention"] - band
    assert official["macs"] == pytest.approx(ours, rel=1e-3)
