# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, how often, and what it costs.

In the manner of DETAD (Alwassel et al., "Diagnosing Error in Temporal Action Detectors", ECCV
2018): a profile of the false positives, of the missed instances, of the sensitivity to what
instances are like, and the mAP that would be gained if an error did not happen. The definitions are
in ``csrc/evaluation/error_analysis.h``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.errors import ConfigError
from tal_fast.evaluation.problem import Problem
from tal_fast.evaluation.result import EvaluationResult, points
from tal_fast.typing import Floats, Ints, Mask

__all__ = ["BINS", "ERRORS", "ErrorAnalysis", "Sensitivity", "analyse_errors"]


#: Kinds of false positives, numbered from 1 as in ``csrc/evaluation/error_analysis.h``.
ERRORS = ("double", "wrong label", "localization", "confusion", "background")

#: Upper edges of the sizes XS to L (XL is the rest) per characteristic, as DETAD sets them:
#: seconds, share of the video, instances of the class in the video.
BINS: Mapping[str, Mapping[str, tuple[float, ...]]] = MappingProxyType(
    {
        "thumos14": {
            "length": (3, 6, 12, 18),
            "coverage": (0.02, 0.04, 0.06, 0.08),
            "instances": (1, 40, 80),
        },
        "activitynet": {
            "length": (30, 60, 120, 180),
            "coverage": (0.2, 0.4, 0.6, 0.8),
            "instances": (1, 4, 8),
        },
    }
)
_SIZES = {5: ("XS", "S", "M", "L", "XL"), 4: ("XS", "S", "M", "L"), 3: ("S", "M", "L"),
          2: ("S", "L"), 1: ("all",)}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """One characteristic of instances.

    Attributes:
        name: ``length`` (seconds), ``coverage`` (share of the video) or ``instances`` (of the same
            class in the video).
        bins: name of each bin, smallest first.
        edges: upper edge of every bin but the last; a value on the edge is below it.
        instances: int64 [bins].
        ap: float64 [bins, thresholds]; normalised AP, mean over the classes that have instances in
            the bin; NaN where none has.
        missed: float64 [bins, thresholds]; share of the bin's instances that nothing matched.
    """

    name: str
    bins: tuple[str, ...]
    edges: tuple[float, ...]
    instances: Ints
    ap: Floats
    missed: Floats


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """Errors per tIoU threshold.

    Attributes:
        tiou_thresholds: of the evaluation.
        floor: a detection that overlaps every instance by less is background.
        kinds: uint8 [thresholds, detections]; 0 a hit, 1 to 5 as in ``ERRORS``, 6 removed (over an
            ambiguous region).
        profile: int64 [thresholds, depth, 6]; hits and errors among the best G predictions of each
            class, the next G and so on, G being the class's number of instances.
        headroom: float64 [6, thresholds]; mAP gained if the false positives of one kind were not
            there (``ERRORS``), and last if missed instances need not be found.
        missed: float64 [thresholds]; share of the instances that nothing matched.
        normalized_map: float64 [thresholds]; what the bins' AP compares with.
        sensitivity: one per characteristic; coverage only where durations are known.
        matched: int64 [thresholds, detections]; the instance that was matched, or -1.
        best_overlap: float64 [detections]; with any instance of the video.
        best_instance: int64 [detections]; that instance, or -1.
    """

    tiou_thresholds: tuple[float, ...]
    floor: float
    kinds: npt.NDArray[np.uint8]
    profile: Ints
    headroom: Floats
    missed: Floats
    normalized_map: Floats
    sensitivity: tuple[Sensitivity, ...]
    matched: Ints
    best_overlap: Floats
    best_instance: Ints

    def counts(self) -> Ints:
        """Returns int64 [thresholds, 6]: hits and errors among all predictions."""
        return np.stack([np.bincount(row, minlength=7)[:6] for row in self.kinds])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the columns per detection as JSON types."""
        names = ("hit", *(name.replace(" ", "_") for name in ERRORS))
        return {
            "tiou_thresholds": list(self.tiou_thresholds),
            "floor": self.floor,
            "counts": {n: self.counts()[:, i].tolist() for i, n in enumerate(names)},
            "profile": self.profile.tolist(),
            "headroom": {
                name: self.headroom[i].tolist() for i, name in enumerate((*names[1:], "missed"))
            },
            "missed": self.missed.tolist(),
            "normalized_map": self.normalized_map.tolist(),
            "sensitivity": {
                s.name: [
                    {
                        "bin": name,
                        "up_to": s.edges[b] if b < len(s.edges) else None,
                        "instances": int(s.instances[b]),
                        "normalized_ap": [None if np.isnan(x) else x for x in s.ap[b].tolist()],
                        "missed": [None if np.isnan(x) else x for x in s.missed[b].tolist()],
                    }
                    for b, name in enumerate(s.bins)
                ]
                for s in self.sensitivity
            },
        }

    def table(self) -> str:
        """Returns headroom and false positives as text, averaged over the thresholds."""
        lines = ["error          predictions  points of mAP gained without"]
        lines.append("-" * len(lines[0]))
        counts = self.counts().mean(axis=0)
        for i, name in enumerate(ERRORS):
            lines.append(
                f"{name:13}  {counts[i + 1]:11.0f}  {points(self.headroom[i].mean(), '+'):>28}"
            )
        lines.append(f"{'missed':13}  {'':11}  {points(self.headroom[-1].mean(), '+'):>28}")
        return "\n".join(lines)


def analyse_errors(
    result: EvaluationResult,
    *,
    bins: str | Mapping[str, Sequence[float]] = "quantiles",
    floor: float = 0.1,
    depth: int = 10,
) -> ErrorAnalysis:
    """Analyses the errors of an evaluation.

    Args:
        result: of an evaluation.
        bins: sizes of instances: ``quantiles`` (five bins with as many instances each, as far as
            the values allow), ``thumos14``, ``activitynet`` (the bins of DETAD), or upper edges per
            characteristic, at most four.
        floor: tIoU below which a detection is background.
        depth: how many times the number of instances the profile goes down the ranking.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the result has no arrays.
    """
    if not 0 < floor < min(result.tiou_thresholds) or depth < 1:
        raise ConfigError(
            f"analyse_errors: expected depth >= 1 and a floor between 0 and the smallest threshold "
            f"{min(result.tiou_thresholds)}, got {depth} and {floor}"
        )
    source = result.require_source("analyse_errors")
    native = result.native or source.native(result.tiou_thresholds)
    kinds, best_overlap, best_instance, matched, without = native.errors(floor)
    found = native.found  # one bit per threshold
    steps = np.arange(len(result.tiou_thresholds), dtype=np.uint64)
    missed = (found[None, :] >> steps[:, None] & 1) == 0  # [T, G]
    present = result.ground_truth_per_class > 0
    ap = result.ap[present]
    per_class = np.stack(
        [
            np.bincount(source.truth.label, weights=row, minlength=len(source.classes))
            for row in missed.astype(np.float64)
        ],
        axis=1,
    )[present]
    instances = result.ground_truth_per_class[present][:, None]
    hits = instances - per_class
    only_found = np.divide(ap * instances, hits, out=np.zeros_like(ap), where=hits > 0)
    headroom = np.concatenate([without[:, present].mean(axis=1), only_found.mean(axis=0)[None]])
    normalizer = len(source.truth) / max(int(present.sum()), 1)
    characteristics = _characteristics(source)
    everything = np.zeros(len(source.truth), dtype=np.int64)
    return ErrorAnalysis(
        tiou_thresholds=result.tiou_thresholds,
        floor=floor,
        kinds=kinds,
        profile=_profile(kinds, native.ranked, source, depth),
        headroom=headroom - ap.mean(axis=0),
        missed=missed.mean(axis=1),
        normalized_map=native.ap_of_bins(everything, 1, normalizer)[0][present].mean(axis=0),
        sensitivity=tuple(
            _sensitivity(name, values, _edges(name, values, bins), native, missed, normalizer)
            for name, values in characteristics.items()
        ),
        matched=matched,
        best_overlap=best_overlap,
        best_instance=best_instance,
    )


def _profile(kinds: npt.NDArray[np.uint8], ranked: Ints, source: Problem, depth: int) -> Ints:
    """Returns [T, depth, 6]."""
    label = source.found.label[ranked]
    sizes = np.bincount(label, minlength=len(source.classes))
    rank = np.arange(len(label)) - (np.cumsum(sizes) - sizes)[label]
    instances = np.bincount(source.truth.label, minlength=len(source.classes))[label]
    step = rank // np.maximum(instances, 1)
    kept = (instances > 0) & (step < depth)
    out = np.zeros((len(kinds), depth, 6), dtype=np.int64)
    for k, row in enumerate(kinds):
        what = row[ranked]
        use = kept & (what < 6)
        out[k] = np.bincount(step[use] * 6 + what[use], minlength=depth * 6).reshape(depth, 6)
    return out


def _characteristics(source: Problem) -> dict[str, Floats]:
    length = source.truth.end - source.truth.start
    values = {"length": length}
    if source.durations is not None:
        values["coverage"] = length / source.durations[source.truth.video]
    group = source.truth.video * len(source.classes) + source.truth.label
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    values["instances"] = counts[inverse].astype(np.float64)
    return values


def _edges(
    name: str, values: Floats, bins: str | Mapping[str, Sequence[float]]
) -> tuple[float, ...]:
    if isinstance(bins, str) and bins != "quantiles":
        if bins not in BINS:
            raise ConfigError(
                f"analyse_errors: expected bins among quantiles, {', '.join(BINS)}, got {bins!r}"
            )
        return BINS[bins][name]
    if not isinstance(bins, str) and name in bins:
        edges = tuple(float(edge) for edge in bins[name])
        if len(edges) > 4 or list(edges) != sorted(set(edges)):
            raise ConfigError(
                f"analyse_errors: expected at most 4 rising edges of {name}, got {edges}"
            )
        return edges
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return ()
    quantiles = np.unique(np.quantile(known, [0.2, 0.4, 0.6, 0.8], method="lower"))
    return tuple(quantiles[quantiles < known.max()].tolist())


def _sensitivity(
    name: str,
    values: Floats,
    edges: tuple[float, ...],
    native: Any,
    missed: Mask,
    normalizer: float,
) -> Sensitivity:
    num_bins = len(edges) + 1
    # A value on an edge belongs below it.
    which = np.searchsorted(np.array(edges), values, side="left").astype(np.int64)
    which[np.isnan(values)] = -1
    ap = native.ap_of_bins(which, num_bins, normalizer)  # [B, C, T]
    there = ~np.isnan(ap)
    with_any = there.any(axis=1)
    total = np.where(there, ap, 0.0).sum(axis=1)
    mean = np.where(with_any, total / np.maximum(there.sum(axis=1), 1), np.nan)
    sizes = np.bincount(which[which >= 0], minlength=num_bins)
    counts = np.stack(
        [
            np.bincount(which[which >= 0], weights=row[which >= 0], minlength=num_bins)
            for row in missed.astype(np.float64)
        ],
        axis=1,
    )
    shares = np.where(sizes[:, None] > 0, counts / np.maximum(sizes, 1)[:, None], np.nan)
    return Sensitivity(name, _SIZES[num_bins], edges, sizes.astype(np.int64), mean, shares)
