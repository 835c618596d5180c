# SPDX-License-Identifier: Apache-2.0
"""The official ActionFormer, TriDet and TemporalMaxer, as they run on a CPU.

github.com/happyharrycn/actionformer_release (61ea7eb), dingfengshi/TriDet (764b816) and
TuanTNG/TemporalMaxer (4030cdf), their files unchanged: models, crops, optimisers, schedules and
averages are theirs. They need ``pandas`` and ``joblib``, and for predictions the extension
``nms_1d_cpu``, built in ``libs/utils`` (``setup.py build_ext --inplace``).
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers import checkout

__all__ = ["PROJECTS", "OfficialDetector", "official_item"]

PROJECTS = {
    "actionformer": "actionformer_release",
    "tridet": "TriDet",
    "temporalmaxer": "TemporalMaxer",
}
"""Folder of each model's checkout."""

_CONFIGS = {
    "actionformer": "thumos_i3d",
    "tridet": "thumos_i3d",
    "temporalmaxer": "temporalmaxer_thumos_i3d",
}
# Sizes of our presets in the words of the official configurations.
_SMALL: dict[str, dict[str, Any]] = {
    "actionformer": {"embd_dim": 128, "fpn_dim": 128, "head_dim": 128, "n_mha_win_size": 9},
    "tridet": {"embd_dim": 128, "fpn_dim": 128, "head_dim": 128, "sgp_mlp_dim": 192},
    "temporalmaxer": {"embd_dim": 256, "fpn_dim": 256, "head_dim": 256},
}
_SMALL_LENGTH = 1280
_SMALL_EPOCHS = {"warmup_epochs": 5, "epochs": 35}
_CROP = (0.9, 1.0)
_LEAST_INSIDE = 0.5


class OfficialDetector:
    """A peer's model with its optimiser, schedule and average, at the sizes of one of our presets.

    Args:
        preset: ``actionformer``, ``tridet`` or ``temporalmaxer``, or with ``-small`` behind it.
        in_channels: channels of a feature row.
        num_classes: number of classes.
        steps_per_epoch: of the schedule.
        learning_rate: its own when None.

    Raises:
        PeerMissingError: the checkout is not there.
    """

    def __init__(
        self,
        preset: str,
        in_channels: int,
        num_classes: int,
        *,
        steps_per_epoch: int,
        learning_rate: float | None = None,
    ) -> None:
        name = preset.removesuffix("-small")
        self.name = name
        libs = _libs(checkout(PROJECTS[name]))
        config = copy.deepcopy(
            libs["core"].load_config(
                str(checkout(PROJECTS[name]) / f"configs/{_CONFIGS[name]}.yaml")
            )
        )
        small = preset.endswith("-small")
        self.length: int = _SMALL_LENGTH if small else config["dataset"]["max_seq_len"]
        changes = {"input_dim": in_channels, "num_classes": num_classes, "max_seq_len": self.length}
        config["model"].update(changes, **(_SMALL[name] if small else {}))
        options = config["opt"]
        options.update(_SMALL_EPOCHS if small else {})
        if learning_rate is not None:
            options["learning_rate"] = learning_rate
        self.epochs: int = options["warmup_epochs"] + options["epochs"]
        self.model = libs["modeling"].make_meta_arch(config["model_name"], **config["model"])
        self._clip_norm: float = config["train_cfg"]["clip_grad_l2norm"]
        tools = libs["utils"]
        self._optimizer = tools.make_optimizer(self.model, options)
        self._scheduler = tools.make_scheduler(self._optimizer, options, steps_per_epoch)
        self.average = tools.ModelEma(self.model)
        self._crop = libs["datasets.data_utils"].truncate_feats
        self.model.train()

    def crop(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns a random crop of a video, as its loader draws it."""
        slack = () if self.name == "tridet" else (item["feat_offset"],)
        found: dict[str, Any] = self._crop(item, self.length, _LEAST_INSIDE, *slack, _CROP)
        return found

    def loss(self, items: Sequence[dict[str, Any]]) -> Tensor:
        """Returns the loss of a batch."""
        total: Tensor = self.model(items)["final_loss"]
        return total

    def update(self) -> None:
        """Clips the gradients, steps, and averages the weights, in its order."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._scheduler.step()
        self.average.update(self.model)
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, items: Sequence[dict[str, Any]]) -> float:
        """Trains on a batch and returns its loss."""
        loss = self.loss(items)
        loss.backward()
        self.update()
        return float(loss.detach())

    @torch.no_grad()
    def predict(self, item: dict[str, Any], *, average: bool) -> dict[str, Tensor]:
        """Returns ``segments`` in seconds, ``scores`` and ``labels`` of one video."""
        model = self.average.module if average else self.model
        was_training = model.training
        model.eval()
        found: dict[str, Tensor] = model([item])[0]
        model.train(was_training)
        return found


def official_item(
    name: str, features: np.ndarray[Any, Any], segments: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any], duration: float, timing: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Returns a video as the official loaders give it.

    Args:
        name: of the video.
        features: ``[T, C]``.
        segments: ``[N, 2]``, in seconds.
        labels: ``[N]``.
        duration: in seconds.
        timing: ``fps``, and ``stride`` and ``frames`` of a feature row, in frames.
    """
    fps, stride, frames = timing["fps"], timing["stride"], timing["frames"]
    offset = 0.5 * frames / stride
    rows = np.asarray(segments, dtype=np.float32).reshape(-1, 2) * fps / stride - offset
    return {
        "video_id": name,
        "feats": torch.from_numpy(np.ascontiguousarray(features.T.astype(np.float32))),
        "segments": torch.from_numpy(rows.astype(np.float32)),
        "labels": torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        "fps": fps,
        "duration": duration,
        "feat_stride": stride,
        "feat_num_frames": frames,
        "feat_offset": offset,
    }


_loaded: dict[Path, dict[str, types.ModuleType]] = {}


def _libs(root: Path) -> dict[str, types.ModuleType]:
    """Imports a project's ``libs``, a name that all three share, and frees the name again."""
    if root in _loaded:
        return _loaded[root]
    before = list(sys.path)
    own = {"nms_1d_cpu"} & set(sys.modules)
    sys.path[:0] = [str(root), str(root / "libs/utils")]
    sys.path.append(str(root.parent / "site"))
    try:
        if not any((root / "libs/utils").glob("nms_1d_cpu*")):
            sys.modules["nms_1d_cpu"] = types.ModuleType("nms_1d_cpu")  # trainings do without
        parts = ("core", "modeling", "utils", "datasets.data_utils")
        found = {part: importlib.import_module(f"libs.{part}") for part in parts}
    finally:
        sys.path[:] = before
        for name in [*sys.modules]:
            if name.split(".")[0] == "libs" or (name == "nms_1d_cpu" and not own):
                del sys.modules[name]
    _loaded[root] = found
    return found
