# SPDX-License-Identifier: Apache-2.0
"""What ``install`` and the launcher can be told, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tal_fast.errors import ConfigError, nearest

__all__ = ["FUNCTIONS", "MENDS", "MODULES", "NMS", "OF_TORCH", "POOLS", "Options"]

#: Modules that other codebases compile.
MODULES = (
    "Align1D",
    "MultiScaleDeformableAttention",
    "MultiScaleTemporalDeformableAttention",
    "TemporalDeformableAttention",
    "boundary_max_pooling_cuda",
    "grid_sample1d_cuda",
    "nms_1d_cpu",
)

#: Functions that are recognised.
FUNCTIONS = (
    "Soft_NMS",
    "average_recall_vs_avg_nr_proposals",
    "batched_nms",
    "compute_average_precision_detection",
    "compute_topkx_recall_detection",
    "deform_attn_core_pytorch",
    "ms_deform_attn_core_pytorch",
    "multi_scale_deformable_attn_pytorch",
    "soft_nms",
    "temporal_nms",
)

#: Of torch itself: a kernel, and a function that takes a second.
OF_TORCH = ("bernoulli_", "use_deterministic_algorithms")

MENDS = ("numpy", "opentad", "pandas", "torch.load")
POOLS = "pools"
NMS = ("literal", "fused")


@dataclass(frozen=True)
class Options:
    """What is to be replaced, and how; :func:`tal_fast.compat.install` says what each means."""

    skip: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()
    mend: bool = True
    verify: bool = True
    nms: str = "literal"
    device: str | None = None
    report: str | None = None
    quiet: bool = False

    @classmethod
    def of(cls, *, skip: Iterable[str] = (), only: Iterable[str] = (), **others: Any) -> Options:
        """Returns checked options.

        Raises:
            ConfigError: a name or a word is unknown, or the folder of the report does not exist.
        """
        options = cls(skip=_names("skip", skip), only=_names("only", only), **others)
        for name, value, known in (
            ("nms", options.nms, NMS),
            ("device", options.device, (None, "cpu")),
        ):
            if value not in known:
                words = ", ".join(str(word) for word in known)
                raise ConfigError(
                    f"tal_fast.compat: expected {name} to be one of {words}, got {value!r}"
                )
        both = options.skip & options.only
        if both:
            raise ConfigError(
                f"tal_fast.compat: expected a name in skip or in only, got {min(both)!r} in both"
            )
        if options.report is not None and not os.path.isdir(Path(options.report).absolute().parent):
            raise ConfigError(
                f"tal_fast.compat: expected report to be in a folder that exists, "
                f"got {options.report!r}"
            )
        return options

    def wants(self, name: str, module: str = "") -> bool:
        """Whether a module or function is to be ours, ``name`` alone or in ``module``."""
        names = {name, f"{module}.{name}"}
        return not names & self.skip and (not self.only or bool(names & self.only))

    def mends(self, name: str) -> bool:
        """Whether one of :data:`MENDS` is to be made."""
        return self.mend and name not in self.skip

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, from which :meth:`of` makes the same options."""
        return {**asdict(self), "skip": sorted(self.skip), "only": sorted(self.only)}


def _names(argument: str, given: Iterable[str]) -> frozenset[str]:
    if isinstance(given, str):
        given = given.split(",")
    names = frozenset(name.strip() for name in given if name.strip())
    # A mend or pool cannot be the only thing: it serves what is replaced.
    ours = (*MODULES, *FUNCTIONS, *OF_TORCH)
    known = ours if argument == "only" else (*ours, *MENDS, POOLS)
    for name in sorted(names):
        if name not in known and name.rpartition(".")[2] not in ours:
            raise ConfigError(
                f"tal_fast.compat: expected {argument} to name one of {', '.join(sorted(known))}, "
                f"alone or behind its module, got {name!r}{nearest(name, known)}"
            )
    return names
