# SPDX-License-Identifier: Apache-2.0
"""Official point detectors, run on weights and clips that a test gives.

TAL_FAST_PEERS names a folder with checkouts ``actionformer_release``, ``TriDet`` and
``TemporalMaxer``, and in ``site`` what else they import. Each is a package called ``libs``, so each
runs in a process of its own: this file, called with the names of a request and of an answer.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tal_fast.models import Targets, Whole


def run(project: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs an official model; skips the test where there is none.

    Args:
        project: folder of the checkout.
        request: ``config``, a file of the project; ``changes``, ``{section: {key: value}}`` over
            it; ``state``, all weights; ``training``, batches of items; ``prediction``, items.
        folder: for files in between.

    Returns:
        ``training``: (losses, gradients by name) of each batch; ``prediction``: of each item the
        outputs of all levels, ``[P, D]`` by name, and what is decoded of them, with ``ranked`` in
        place of ``logits``.
    """
    peers = os.environ.get("TAL_FAST_PEERS")
    if peers is None or not (Path(peers) / project).is_dir():
        pytest.skip(f"no {project} under TAL_FAST_PEERS")
    files = [str(folder / name) for name in ("request.pt", "answer.pt")]
    torch.save(request, files[0])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, __file__, str(Path(peers) / project), *files],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = torch.load(files[1])
    return answer


def random_weights(model: nn.Module, seed: int) -> None:
    """Gives every parameter a value that no rule of a model leaves out."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in model.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        last = name.rsplit(".", 1)[-1]
        if last == "scale":
            drawn = 0.5 + 0.2 * drawn
        elif last == "weight" and (value.dim() == 1 or value.shape[0] == 1):  # of a normalisation
            drawn = 1.0 + 0.2 * drawn
        elif last == "weight" and value.shape[1] > 1:
            drawn = drawn / (value.shape[1] * value.shape[2]) ** 0.5
        else:
            drawn = 0.2 * drawn
        state[name].copy_(drawn)  # under all its names
    model.load_state_dict(state)


def item(rows: int, channels: int, classes: int, instances: int, seed: int) -> dict[str, Any]:
    """A video as the official loaders give it, with awkward instances: on points, twice, outside.

    Args:
        rows: rows of the video.
        channels: channels of a row.
        classes: number of classes.
        instances: instances, some of them made of others.
        seed: of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(instances, generator=generator) * rows * 0.8
    end = start + torch.rand(instances, generator=generator) * rows * 0.5 + 0.5
    segments = torch.stack((start, end), dim=1)
    labels = torch.randint(0, classes, (instances,), generator=generator)
    if instances > 5:
        segments[1] = segments[0]  # one place, two labels perhaps
        labels[1] = (labels[0] + 1) % classes
        segments[2] = segments[0]  # the very same
        labels[2] = labels[0]
        segments[3] = segments[0] + torch.tensor([0.0, 5e-4])  # a tie by length
        segments[4] = segments[4].round()  # ends on points
        segments[5, 1] = rows + 3.0  # reaches outside
    return {
        "video_id": str(seed),
        "feats": torch.randn(channels, rows, generator=generator),
        "segments": segments,
        "labels": labels,
        "fps": 30.0,
        "duration": rows * 4 / 30,
        "feat_stride": 4,
        "feat_num_frames": 16,
    }


def batch(items: Sequence[dict[str, Any]], length: int) -> tuple[Tensor, Tensor, Targets]:
    """Returns features, mask and targets of such videos in ``length`` rows."""
    features = torch.zeros(len(items), length, items[0]["feats"].shape[0])
    mask = torch.ones(len(items), length, dtype=torch.bool)
    for at, one in enumerate(items):
        rows = one["feats"].shape[1]
        features[at, :rows] = one["feats"].t()
        mask[at, :rows] = False
    targets = Targets(
        torch.cat([one["labels"] for one in items]),
        torch.cat([one["segments"] for one in items]).double() + 0.5,
        [len(one["labels"]) for one in items],
        length,
    )
    return features, mask, targets


def padded(model: Any, items: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Targets]:
    """Returns such a batch in the rows that its longest video needs."""
    longest = max(one["feats"].shape[1] for one in items)
    return batch(items, model.rows_needed(model.config, longest))


def assert_same_numbers(
    model: Any,
    project: str,
    config: str,
    changes: dict[str, Any],
    training: list[list[dict[str, Any]]],
    prediction: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Compares losses, gradients, outputs and candidates with those of the official code.

    Args:
        model: ours; the official one gets its weights.
        project: folder of the checkout.
        config: a file of the project.
        changes: ``{section: {key: value}}`` over it.
        training: batches of items, one step after the other.
        prediction: items, which we take one by one and all together.
        folder: for files in between.
    """
    state = {name: value for name, value in model.state_dict().items() if name != "normaliser"}
    request = {
        "config": config,
        "changes": changes,
        "state": state,
        "training": training,
        "prediction": prediction,
    }
    answer = run(project, request, folder)

    model.train()
    names = {"classification": "cls_loss", "regression": "reg_loss", "total": "final_loss"}
    for items, (losses, gradients) in zip(training, answer["training"], strict=True):
        features, mask, targets = padded(model, items)
        model.zero_grad()
        found = model.loss(model(features, mask), targets, Whole(targets))
        found["total"].backward()
        for ours, theirs in names.items():
            assert found[ours].item() == pytest.approx(losses[theirs], rel=1e-5)
        for name, parameter in model.named_parameters():
            theirs = gradients[name]
            if parameter.grad is None:
                assert theirs is None or not theirs.any(), name
            elif theirs is None:
                assert not parameter.grad.any(), name
            else:
                scale = max(float(theirs.abs().max()), 1e-3)
                error = float((parameter.grad - theirs).abs().max())
                assert error <= 1e-4 * scale, (name, error, scale)

    model.eval()
    levels = model.config.model.levels
    features, mask, _ = padded(model, prediction)
    with torch.no_grad():
        together = model(features, mask)
    for at, (one, theirs) in enumerate(zip(prediction, answer["prediction"], strict=True)):
        features, mask, _ = padded(model, [one])
        with torch.no_grad():
            alone = model(features, mask)
        real = theirs["valid"]
        for output, row in ((alone, 0), (together, at)):
            for name in output._fields[:-1]:
                expected = theirs[name][real]
                found = getattr(output, name)[row][output.valid[row]]
                error = float((found - expected).abs().max())
                assert error <= 1e-4 * float(expected.abs().max()), (one["video_id"], name, error)
        fed = {name: theirs[name][None] for name in alone._fields}
        fed["logits"] = theirs["ranked"][None]
        finest = ~real[: len(real) * 2 ** (levels - 1) // (2**levels - 1)]
        chosen = model.candidates(alone._replace(**fed), finest[None])
        keep = chosen.valid[0]
        torch.testing.assert_close(chosen.scores[0][keep], theirs["scores"], atol=0, rtol=1e-6)
        assert torch.equal(chosen.labels[0][keep], theirs["labels"])
        segments = (chosen.segments[0][keep] - 0.5).float()
        torch.testing.assert_close(segments, theirs["segments"], atol=1e-4, rtol=1e-5)


def _answer(root: str, request: dict[str, Any]) -> dict[str, Any]:
    sys.modules["nms_1d_cpu"] = types.ModuleType("nms_1d_cpu")
    sys.path.insert(0, root)
    sys.path.append(str(Path(root).parent / "site"))
    modeling = importlib.import_module("libs.modeling")
    config = importlib.import_module("libs.core").load_config(f"{root}/{request['config']}")
    for section, changes in request["changes"].items():
        config[section].update(changes)
    model = modeling.make_meta_arch(config["model_name"], **config["model"])
    model.load_state_dict(request["state"])
    # What is drawn in training has a test of its own.
    for part in model.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0
    model.train()
    training = []
    for items in request["training"]:
        model.zero_grad()
        losses = model(items)
        losses["final_loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        training.append(
            (
                {name: float(value.detach()) for name, value in losses.items()},
                {name: None if g is None else g.clone() for name, g in gradients.items()},
            )
        )
    model.eval()
    with torch.no_grad():
        return {
            "training": training,
            "prediction": [_outputs(model, one) for one in request["prediction"]],
        }


def _outputs(model: Any, one: dict[str, Any]) -> dict[str, Tensor]:
    features, masks = model.preprocessing([one])
    levels, masks = model.neck(*model.backbone(features, masks))
    heads = {
        "logits": "cls_head",
        "offsets": "reg_head",
        "starts": "start_head",
        "ends": "end_head",
    }
    found = {
        name: [level[0].t() for level in getattr(model, head)(levels, masks)]
        for name, head in heads.items()
        if hasattr(model, head)
    }
    real = [mask[0, 0] for mask in masks]
    boundaries = [
        [level.t() for level in found[name]] for name in ("starts", "ends") if name in found
    ]
    # Decoded from logits of the same order without near ties, some of them below the threshold.
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    flat = joined["logits"].flatten()
    ranked = torch.empty_like(flat)
    ranked[flat.argsort(stable=True)] = torch.linspace(-8, 3, len(flat))
    ranked = ranked.view_as(joined["logits"])
    decoded = model.inference_single_video(
        model.point_generator(levels),
        real,
        ranked.split([len(mask) for mask in real]),
        found["offsets"],
        *boundaries,
    )
    return {**joined, "ranked": ranked, "valid": torch.cat(real), **decoded}


if __name__ == "__main__":
    torch.save(_answer(sys.argv[1], torch.load(sys.argv[2])), sys.argv[3])
