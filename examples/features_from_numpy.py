# SPDX-License-Identifier: Apache-2.0
r"""Features of one's own from a NumPy pipeline, and the segments beside them.

python examples/features_from_numpy.py data/raw
tal-fast prepare csv --segments data/raw/segments.csv --features data/raw/features \
  --stride 10 --frames 50 --fps 50 --out data/mine

The recordings are made up, so that there is something to run: a sensor of three axes, 50 samples a
second, in which somebody walks, jumps and waves. Put a reader of your own in the place of
``recordings``; everything else can stay.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FPS = 50  # samples per second of the signal
FRAMES = 50  # samples that a row of features sees: one second
STRIDE = 10  # samples between two rows: FPS / STRIDE = 5 rows per second
SECONDS = 60
KINDS = {"walk": (1.8, 1.0), "jump": (3.0, 3.0), "wave": (5.0, 1.5)}  # Hz, amplitude


def recordings() -> Iterator[tuple[str, np.ndarray, list[tuple[float, float, str]]]]:
    """Yields name, signal [samples, 3] and segments (start, end, label) in seconds."""
    for number in range(14):
        rng = np.random.default_rng(number)
        signal = 1.5 * rng.normal(size=(SECONDS * FPS, 3))
        segments, time = [], 2.0
        for label in rng.permutation([*KINDS, *KINDS]):
            start, end = time + rng.uniform(0, 3), time + rng.uniform(5, 8)
            hertz, amplitude = KINDS[label]
            rows = slice(round(start * FPS), round(end * FPS))
            phase = 2 * np.pi * hertz * np.arange(rows.stop - rows.start) / FPS
            signal[rows] += amplitude * np.stack((np.sin(phase), np.cos(phase), phase * 0 + 1), 1)
            segments.append((round(start, 2), round(end, 2), str(label)))
            time = end
        yield f"recording_{number:02d}", signal, segments


def features(signal: np.ndarray) -> np.ndarray:
    """Returns [rows, channels], float32: statistics and spectrum of each second.

    Row i sees the samples i x STRIDE to i x STRIDE + FRAMES. That is all that tal_fast has to know.
    """
    windows = np.lib.stride_tricks.sliding_window_view(signal, FRAMES, axis=0)[::STRIDE]
    spectrum = np.abs(np.fft.rfft(windows - windows.mean(-1, keepdims=True), axis=-1))[..., 1:9]
    parts = (windows.mean(-1), windows.std(-1), np.log1p(spectrum).reshape(len(windows), -1))
    return np.concatenate(parts, axis=1).astype(np.float32)


def main(out: Path) -> None:
    """Writes ``out/features/<name>.npy`` and ``out/segments.csv``."""
    (out / "features").mkdir(parents=True, exist_ok=True)
    with open(out / "segments.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "start", "end", "label"])
        for name, signal, segments in recordings():
            rows = features(signal)
            np.save(out / "features" / f"{name}.npy", rows)
            table.writerows([name, *segment] for segment in segments)
    print(f"{out}: rows of {rows.shape[1]} channels, {FPS / STRIDE:g} a second, and segments.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
