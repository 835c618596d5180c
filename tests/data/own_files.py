# SPDX-License-Identifier: Apache-2.0
"""A folder of features and a table of segments, as somebody brings them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tal_fast.data.prepare import FeatureChoice, prepare_csv

RATE = 5.0
SECONDS = 20


class Own:
    """Ten videos of 20 s with five rows a second; each has a run and a walk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = [f"clip_{number:02d}" for number in range(10)]
        self.header = ["video", "start", "end", "label"]
        self.lines = [
            [name, start, start + 2.5, label]
            for number, name in enumerate(self.names)
            for label, start in (("run", 1.0 + number), ("walk", 14.0))
        ]
        (path / "features").mkdir()
        for number, name in enumerate(self.names):
            rng = np.random.default_rng(number)
            array = rng.normal(size=(int(SECONDS * RATE), 4)).astype(np.float32)
            np.save(path / "features" / f"{name}.npy", array)

    def column(self, name: str, value) -> None:
        """Adds a column; ``value`` is that of all videos, or a function of a video's number."""
        self.header.append(name)
        for line in self.lines:
            number = self.names.index(line[0])
            line.append(value(number) if callable(value) else value)

    def write(self, separator: str = ",", start: str = "") -> Path:
        file = self.path / "segments.csv"
        rows = [self.header, *self.lines]
        text = start + "".join(separator.join(map(str, row)) + "\n" for row in rows)
        file.write_text(text, "utf-8")
        return file

    def features(self, **form) -> FeatureChoice:
        return FeatureChoice.at_rate([self.path / "features"], RATE, **form)

    def prepare(self, **options):
        out = self.path / "out"
        return prepare_csv(self.write(), self.features(), out, **options)
