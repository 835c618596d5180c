# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of this library and of others: bent bytes, bent members, bent content."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

import torch
from endurance.feature_cases import bent_archive
from endurance.mutators import bent_bytes, bent_content
from endurance.subject import Subject, check_command, expect, refusal
from endurance.text_cases import CLASSES, write_dataset

from tal_fast.models import detector_of
from tal_fast.training import load_config
from tal_fast.training.checkpoint import load_model, save_model

_SETTINGS = (
    "model.d_model=32",
    "model.num_heads=4",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.feedforward=16",
    "model.num_queries=4",
    "model.roi_bins=2",
    "data.window=32",
)
_ODD_TENSORS = (
    lambda t: t.double(),
    lambda t: t.to(torch.int64),
    lambda t: t * float("nan"),
    lambda t: t[:-1],
    lambda t: t.unsqueeze(0),
    lambda t: t.reshape(-1)[:1].expand(t.numel()).reshape(t.shape),
    lambda t: torch.empty(0),
    lambda t: t.to(torch.bfloat16),
    lambda t: torch.nn.Parameter(t),
)


class Checkpoints(Subject):
    name, command_every = "checkpoints", 40

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.data = write_dataset(folder / "data")
        config = load_config(preset="tadtr-small", overrides=_SETTINGS)
        torch.manual_seed(0)
        model = detector_of(config.name)(4, len(CLASSES), config.detector)
        save_model(folder / "sound.pt", model.state_dict(), config, CLASSES, 4)
        self.bytes = (folder / "sound.pt").read_bytes()
        self.content = torch.load(folder / "sound.pt", weights_only=True)

    def make(self, rng: random.Random) -> Path:
        path = self.fresh() / "checkpoint.pt"
        how = rng.random()
        if how < 0.1:
            data = self.bytes
        elif how < 0.4:
            data = bent_bytes(rng, self.bytes)
        elif how < 0.6:
            data = bent_archive(rng, self.bytes)
        else:
            out = io.BytesIO()
            torch.save(self._bent(rng), out, _use_new_zipfile_serialization=rng.random() < 0.8)
            data = out.getvalue()
        path.write_bytes(data)
        return path

    def _bent(self, rng: random.Random) -> Any:
        content = {**self.content, "model": dict(self.content["model"])}
        weights = content["model"]
        if rng.random() < 0.5:
            key = rng.choice(list(weights))
            weights[key] = rng.choice(_ODD_TENSORS)(weights[key])
            return content
        rest = copy.deepcopy({k: v for k, v in content.items() if k != "model"})
        bent = bent_content(rng, rest, twice=False)
        return {"model": weights, **bent} if rng.random() < 0.95 else bent

    def check(self, path: Path, rng: random.Random) -> bool:
        with refusal():
            model, config, classes = load_model(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            expect(list(classes) == list(content["classes"]), "other classes")
            expect(config.name == content["config"]["name"], "another model")
            for key, value in model.state_dict().items():
                given = content["model"][key].detach().float()
                expect(bool(torch.isfinite(value).all()), key, "is not finite")
                expect(torch.equal(value, given), "other weights", key)
            return True
        return False

    def commands(self, path: Path, rng: random.Random) -> None:
        check_command(
            "predict", "--checkpoint", path, "--data", self.data, "--out", path.with_name("r.json")
        )
        check_command(
            "import-checkpoint",
            path,
            "--data",
            self.data,
            "--preset",
            "tadtr-small",
            "--out",
            path.with_name("imported"),
        )


SUBJECTS: tuple[type[Subject], ...] = (Checkpoints,)
