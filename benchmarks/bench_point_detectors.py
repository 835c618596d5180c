# SPDX-License-Identifier: Apache-2.0
"""Training steps and predictions of ActionFormer, TriDet and TemporalMaxer, and the official ones.

Recordings have the lengths of real ones and random content: those of HAPT (300 channels, 12
classes) for the small presets, those of THUMOS14's validation videos (2048 channels, 20 classes)
for the full ones. Batches are our loader's, two random crops each, and both codes get the same.
Before anything is timed the official model takes our weights, and its loss must be ours.

A step is all that happens to a batch that has been read: forward, loss, backward, clipping,
optimiser, schedule and moving average. A prediction is all from a feature file to detections after
suppression, of every recording that HAPT tests on. It runs on first weights, with which every
score passes the threshold: suppression has most to do.

As a program it prints where the time of a step goes and the peak memory of a training, each code in
a process of its own: ``TAL_FAST_PEERS=DIR python benchmarks/bench_point_detectors.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import psutil
import pytest
import torch
import yaml
from harness import Peer
from peers import PeerMissingError
from peers.point_detectors import OfficialDetector, official_item

from tal_fast.data.batches import Batch
from tal_fast.data.dataset import TALDataset, open_dataset
from tal_fast.data.loader import FeatureLoader
from tal_fast.models import Detector, Targets, Whole, detector_of
from tal_fast.training import ExperimentConfig, load_config
from tal_fast.training.ema import WeightAverage
from tal_fast.training.environment import peak_memory_mib
from tal_fast.training.inference import detect
from tal_fast.training.step import Stepper

MODELS = ("actionformer", "tridet", "temporalmaxer")
# Facts of the data sets. HAPT: feature rows of its training and its test recordings.
HAPT_TRAIN = (
    822, 770, 838, 698, 673, 600, 659, 1282, 686, 640, 621, 653, 656, 660, 697, 661, 686, 686, 841,
    844, 851, 780, 762, 712, 831, 778, 716, 701, 801, 718, 848, 813, 826, 811, 729, 755, 821, 752,
    745, 715, 940, 762,
)  # fmt: skip
HAPT_TEST = (
    720, 661, 705, 634, 648, 623, 628, 463, 394, 664, 645, 711, 686, 894, 801, 786, 717, 827, 776,
)  # fmt: skip
# THUMOS14: 20 quantiles of the validation videos' lengths, at a row per 4 frames, up to 2304 rows.
THUMOS14 = (
    150, 242, 328, 460, 563, 692, 802, 900, 984, 1043, 1195, 1282, 1400, 1476, 1652, 1778, 2224,
    2304, 2304, 2304,
)  # fmt: skip
TIMING = {"fps": 50.0, "stride": 25, "frames": 50}
# channels, classes, training recordings, test recordings
SIZES = {"-small": (300, 12, HAPT_TRAIN, HAPT_TEST), "": (2048, 20, THUMOS14, ())}
BATCH, BATCHES, INSTANCES = 2, 7, 20


def make_dataset(folder: Path, preset: str) -> TALDataset:
    """Writes recordings of the right lengths, and opens them."""
    channels, classes, train, test = SIZES["-small" if preset.endswith("-small") else ""]
    numbers = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    database: dict[str, Any] = {}
    for at, rows in enumerate((*train, *test)):
        name = f"r{at:03}"
        features = numbers.standard_normal((rows, channels), dtype=np.float32)
        np.save(folder / "features" / f"{name}.npy", features)
        seconds = rows * TIMING["stride"] / TIMING["fps"]
        edges = np.sort(numbers.uniform(0, seconds, 2 * INSTANCES)).reshape(-1, 2).tolist()
        database[name] = {
            "subset": "training" if at < len(train) else "validation",
            "duration": seconds,
            "fps": TIMING["fps"],
            "annotations": [
                {"segment": edge, "label": f"c{(at + place) % classes:02}"}
                for place, edge in enumerate(edges)
            ],
        }
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    spec = {
        "format": 1,
        "name": "lengths",
        "annotations": "annotations.json",
        "features": "features",
        "feature": {"layout": "TC", "channels": channels, **TIMING},
        "splits": {"train": "training", **({"test": "validation"} if test else {})},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    return open_dataset(folder)


class Ours:
    """Our model behind a step of training.

    Args:
        preset: its name.
        data: what it is trained on.
        overrides: of settings.
    """

    def __init__(self, preset: str, data: TALDataset, *overrides: str) -> None:
        torch.manual_seed(0)
        self.config: ExperimentConfig = load_config(
            preset=preset, overrides=["training.amp=float32", *overrides]
        )
        detector = detector_of(self.config.name)
        self.model: Detector = detector(data.channels, data.num_classes, self.config.detector)
        self.model.train()
        self.stepper = Stepper(self.model, self.config)
        self.stepper.set_learning_rate(1e-4)
        self.average = WeightAverage(self.model, 0.999, "plain")

    def batches(self, data: TALDataset) -> list[Batch]:
        """Returns some batches of random crops."""
        clips = self.model.clips(
            self.config.detector, data, list(data.splits["train"]), training=True
        )
        with FeatureLoader(clips, BATCH, shuffle=True, drop_last=True, seed=0) as loader:
            return [batch for batch, _ in zip(loader, range(BATCHES), strict=False)]

    def step(self, batch: Batch) -> float:
        """Trains on a batch and returns its loss."""
        losses = self.stepper.run(batch, "benchmark")
        self.average.update(self.model)
        return float(losses["total"])


def official_items(batch: Batch) -> list[dict[str, Any]]:
    """Returns a batch in the words of the official codes."""
    items = []
    labels, edges = batch.labels.split(batch.counts), batch.edges.split(batch.counts)
    for at, rows in enumerate(batch.lengths):
        item = official_item(batch.videos[at], batch.features[at, :rows].numpy(), np.empty((0, 2)),
                             labels[at].numpy(), 1e8, TIMING)  # fmt: skip
        items.append({**item, "segments": (edges[at] - 0.5).float()})
    return items


def same_loss(preset: str, data: TALDataset, ours: Ours, official: OfficialDetector) -> None:
    """With our weights, and nothing left out at random, the official loss is ours."""
    noise = ["model.input_noise=0"] if preset.startswith("tridet") else []
    mine = Ours(preset, data, *noise)
    theirs = OfficialDetector(preset, data.channels, data.num_classes, steps_per_epoch=10)
    state = {name: value for name, value in ours.model.state_dict().items() if name != "normaliser"}
    mine.model.load_state_dict(state)
    theirs.model.load_state_dict(state)
    official.model.load_state_dict(state)
    official.average.set(official.model)
    theirs.model.input_noise = 0.0
    for part in [*mine.model.modules(), *theirs.model.modules()]:
        for name in ("probability", "drop_prob"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
    batch = ours.batches(data)[0]
    output = mine.model(batch.features, batch.mask)
    targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
    found = float(mine.model.loss(output, targets, Whole(targets))["total"].detach())
    expected = float(theirs.loss(official_items(batch)).detach())
    assert abs(found - expected) <= 1e-4 * expected, (found, expected)


def official_of(preset: str, data: TALDataset, ours: Ours) -> OfficialDetector | None:
    """Returns the official model with our weights, its loss verified; None where it is absent."""
    try:
        official = OfficialDetector(preset, data.channels, data.num_classes, steps_per_epoch=10)
    except PeerMissingError:
        return None
    same_loss(preset, data, ours, official)
    return official


def taking_turns(step: Callable[[Any], Any], batches: list[Any]) -> Callable[[], Any]:
    """Returns a call that steps through the batches, all of them again and again."""
    calls = 0

    def call() -> Any:
        nonlocal calls
        calls += 1
        return step(batches[(calls - 1) % len(batches)])

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.mark.parametrize("size", ["-small", ""], ids=["hapt", "thumos14"])
@pytest.mark.parametrize("name", MODELS)
def test_training_step(compare: Any, folder: Path, name: str, size: str) -> None:
    preset = name + size
    data = make_dataset(folder, preset)
    ours = Ours(preset, data)
    batches = ours.batches(data)
    peers = []
    official = official_of(preset, data, ours)
    if official is not None:
        call = taking_turns(official.step, [official_items(batch) for batch in batches])
        peers.append(Peer(f"official {name}", call, *((2, 3.3) if size else (1.67, 2.5))))
    compare(
        "training step",
        f"{preset}, lengths of {'HAPT' if size else 'THUMOS14'}",
        taking_turns(ours.step, batches),
        peers,
        check=lambda a, b: None,
        verified="loss of the official model with our weights",
        repetitions=21 if size else 7,
    )


@pytest.mark.parametrize("name", MODELS)
def test_prediction(compare: Any, folder: Path, name: str) -> None:
    preset = f"{name}-small"
    data = make_dataset(folder, preset)
    ours = Ours(preset, data)
    tests = list(data.splits["test"])
    peers = []
    official = official_of(preset, data, ours)
    if official is not None:

        def theirs() -> int:
            found = 0
            for video in tests:
                features = np.load(folder / "features" / f"{video}.npy")
                item = official_item(video, features, np.empty((0, 2)), np.empty(0),
                                     data.annotations.videos[video].duration, TIMING)  # fmt: skip
                found += len(official.predict(item, average=True)["scores"])
            return found

        peers.append(Peer(f"official {name}", theirs, 4, 10))

    def predict() -> int:
        return len(detect(ours.model, data, tests, ours.config.training))

    def same_number(mine: int, other: int) -> None:
        assert abs(mine - other) <= 0.01 * other, (mine, other)

    compare(
        "prediction",
        f"{preset}, {len(tests)} recordings of HAPT's lengths",
        predict,
        peers,
        check=same_number,
        verified="loss of the official model with our weights, number of detections",
        repetitions=5,
    )


PHASES = ("forward and loss", "backward", "update")


def phases_of_ours(ours: Ours, batch: Batch) -> tuple[float, ...]:
    """Makes a step and returns the CPU seconds of its phases."""
    marks = [time.process_time()]
    targets = Targets(batch.labels, batch.edges, batch.counts, batch.padded)
    output = ours.model(batch.features, batch.mask)
    total = ours.model.loss(output, targets, Whole(targets))["total"]
    marks.append(time.process_time())
    total.backward()
    marks.append(time.process_time())
    ours.stepper.update()
    ours.average.update(ours.model)
    marks.append(time.process_time())
    return tuple(after - before for before, after in itertools.pairwise(marks))


def phases_of_official(
    official: OfficialDetector, items: list[dict[str, Any]]
) -> tuple[float, ...]:
    """Makes a step and returns the CPU seconds of its phases."""
    marks = [time.process_time()]
    total = official.loss(items)
    marks.append(time.process_time())
    total.backward()
    marks.append(time.process_time())
    official.update()
    marks.append(time.process_time())
    return tuple(after - before for before, after in itertools.pairwise(marks))


def print_phases(preset: str, repetitions: int) -> None:
    """Prints where the time of a step goes, ours and the official one in turn."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "data", preset)
        ours = Ours(preset, data)
        official = OfficialDetector(preset, data.channels, data.num_classes, steps_per_epoch=10)
        same_loss(preset, data, ours, official)
        taken: dict[str, list[tuple[float, ...]]] = {"tal_fast": [], "official": []}
        for at, batch in zip(range(repetitions + 2), itertools.cycle(ours.batches(data))):
            found = phases_of_ours(ours, batch), phases_of_official(official, official_items(batch))
            if at >= 2:  # two to warm up
                for code, times in zip(taken, found, strict=True):
                    taken[code].append(times)
    whole = {code: statistics.median(map(sum, times)) for code, times in taken.items()}
    for code, times in taken.items():
        medians = (statistics.median(phase) for phase in zip(*times, strict=True))
        parts = ", ".join(f"{n} {t * 1e3:.0f}" for n, t in zip(PHASES, medians, strict=True))
        share = whole[code] / whole["official"]
        print(f"{preset}: {code}: {whole[code] * 1e3:.0f} ms of CPU ({share:.2f}): {parts}")


def print_memory(preset: str, code: str) -> None:
    """Prints the peak memory of some steps in this process, and how much of it they added."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "data", preset)
        ours = Ours(preset, data)
        batches = ours.batches(data)
        if code == "official":
            official = OfficialDetector(preset, data.channels, data.num_classes, steps_per_epoch=10)
            items = [official_items(batch) for batch in batches]
            call = taking_turns(official.step, items)
        else:
            call = taking_turns(ours.step, batches)
        before = psutil.Process().memory_info().rss / 2**20
        for _ in batches:
            call()
        peak = peak_memory_mib()
        print(f"{preset}: {code}: peak {peak:.0f} MiB, {peak - before:.0f} MiB of it by the steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=[f"{m}{s}" for s in SIZES for m in MODELS])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(*arguments.memory_of)
        return
    print(machine.header())
    for preset in arguments.presets:
        print_phases(preset, arguments.repetitions)
        for code in ("tal_fast", "official"):
            command = [sys.executable, __file__, "--memory-of", preset, code]
            subprocess.run([*command, "--threads", str(arguments.threads)], check=True)


if __name__ == "__main__":
    main()
