# SPDX-License-Identifier: Apache-2.0
"""Datasets of other projects, to be handed to torch's DataLoader.

Each runs the project's own reading code on our files. TadTR's dataset class and ActionFormer's are
used whole; of OpenTAD its ``LoadFeats`` and ``SlidingWindowTrunc``, without the registry (mmengine)
that strings them together. Modules that they import and that reading ``.npy`` files does not need
(pandas, h5py, easydict) may be absent; an empty module takes their place.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from peers import checkout, in_place

_NOT_NEEDED = ("pandas", "h5py", "easydict", "tqdm")

__all__ = ["ActionFormerItems", "opentad_windows", "tadtr_windows"]


def _load(package: str, folder: Path, module: str, *, search: Path | None = None,
          given: dict[str, types.ModuleType] | None = None) -> types.ModuleType:  # fmt: skip
    """Imports a module of a project's package without running its ``__init__`` files.

    Args:
        package: name to give the package, as in ``peer_tadtr``.
        folder: of the package.
        module: dotted name within it.
        search: a folder to import from meanwhile.
        given: modules of the package that are put in place of its own.
    """
    full = f"{package}.{module}"
    if full in sys.modules:
        return sys.modules[full]
    parts = module.split(".")[:-1]
    for depth in range(len(parts) + 1):
        made = types.ModuleType(".".join([package, *parts[:depth]]))
        made.__path__ = [str(folder.joinpath(*parts[:depth]))]
        sys.modules[made.__name__] = made
    sys.modules |= {f"{package}.{name}": value for name, value in (given or {}).items()}
    absent = [name for name in _NOT_NEEDED if importlib.util.find_spec(name) is None]
    with in_place({name: types.ModuleType(name) for name in absent}, search):
        return importlib.import_module(full)


class _Windows(Dataset[torch.Tensor]):
    """Features of the given windows as a project's code returns them."""

    def __init__(self, read: Any, count: int) -> None:
        self.read = read
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(index)


def tadtr_windows(windows: Sequence[tuple[str, int, int]], folder: Path, length: int) -> Any:
    """TadTR's ``TADDataset`` over given windows; an item is float32 [C, length].

    Raises:
        PeerMissingError: the checkout is not there.
    """
    root = checkout("TadTR")
    module = _load("peer_tadtr", root / "datasets", "tad_dataset", search=root)
    dataset = module.TADDataset.__new__(module.TADDataset)
    # What its constructor sets from its configuration; the windows are ours.
    dataset.feature_info = {"local_path": str(folder), "format": "npy", "fn_templ": "%s.npy"}
    dataset.online_slice, dataset.slice_len, dataset.padding = True, length, True
    dataset.mem_cache, dataset.is_image_input = False, False
    dataset.cached_data, dataset.all_video_data = {}, {}
    dataset.video_list = [f"{v}_window_{start}_{stop}" for v, start, stop in windows]
    dataset.video_dict = {
        name: {"src_vid_name": window[0], "feature_fps": 1.0}
        for name, window in zip(dataset.video_list, windows, strict=True)
    }
    return _Windows(dataset._get_feature_data, len(windows))


def opentad_windows(windows: Sequence[tuple[str, int, int]], folder: Path, length: int) -> Any:
    """OpenTAD's reading steps over given windows; an item is float32 [C, length].

    Raises:
        PeerMissingError: the checkout is not there.
    """
    root = checkout("OpenTAD")
    builder = types.ModuleType("builder")
    registry = types.SimpleNamespace(register_module=lambda: lambda kind: kind)
    builder.PIPELINES = registry  # type: ignore[attr-defined]
    module = _load("peer_opentad", root / "opentad", "datasets.transforms.loading",
                   given={"datasets.builder": builder})  # fmt: skip
    load, cut = module.LoadFeats("npy"), module.SlidingWindowTrunc()

    def read(index: int) -> torch.Tensor:
        video, start, stop = windows[index]
        item = load({"video_name": video, "data_path": str(folder)})
        item["feats"] = torch.from_numpy(item["feats"])  # its ConvertToTensor
        item |= {"window_size": length, "feature_start_idx": start, "feature_end_idx": stop - 1}
        return cut(item)["feats"].T  # its Rearrange to [C, T], a view

    return _Windows(read, len(windows))


class ActionFormerItems:
    """ActionFormer's ``THUMOS14Dataset`` for training over our videos.

    Raises:
        PeerMissingError: the checkout is not there.
    """

    def __init__(self, annotations: Path, folder: Path, channels: int, max_length: int) -> None:
        root = checkout("actionformer_release")
        module = _load("peer_actionformer", root / "libs/datasets", "thumos14")
        self.random = sys.modules["peer_actionformer.data_utils"].random
        content = json.loads(annotations.read_text(encoding="utf-8"))["database"]
        labels = {a["label"] for entry in content.values() for a in entry["annotations"]}
        self.dataset = module.THUMOS14Dataset(
            True, ("training",), str(folder), str(annotations), 1, 1, None, 1, max_length, 0.5,
            (0.9, 1.0), channels, len(labels), None, ".npy", False,
        )  # fmt: skip
        self.names = [item["id"] for item in self.dataset.data_list]

    def item(self, index: int) -> np.ndarray[Any, Any]:
        """Returns its item's features, float32 [C, T]."""
        return self.dataset[index]["feats"].numpy()
