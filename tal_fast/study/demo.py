# SPDX-License-Identifier: Apache-2.0
"""The study that ``tal-fast study demo`` runs: small enough to watch, large enough to rise."""

from __future__ import annotations

from pathlib import Path

from tal_fast.data import open_dataset
from tal_fast.errors import DataError
from tal_fast.study.spec import StudySpec

__all__ = ["demo_spec", "prepare_demo_data"]

DEMO_FRACTIONS = (0.1, 0.2, 0.4, 0.7, 1.0)
DEMO_REPETITIONS = 3
DEMO_MODEL = "tadtr-small"
# Half the usual batch: at a tenth of these few videos there would be a step per epoch.
DEMO_OVERRIDES = {"training.batch_size": 8}
DEMO_JOBS = 2
_DATA = "data"


def prepare_demo_data(out: Path) -> Path:
    """Makes the synthetic demo data under ``out`` unless it is there.

    Returns:
        The data directory.

    Raises:
        DataError: what is there is no whole data set, or it cannot be written.
    """
    from tal_fast.data.synthetic import make_synthetic

    data = out / _DATA
    if data.exists():
        try:
            open_dataset(data)
        except DataError as error:
            raise DataError(f"{error}; remove {data} to make the demo data again") from error
        return data
    make_synthetic(data, size="demo", seed=0)
    return data


def demo_spec(out: Path, *, jobs: int | None = None) -> StudySpec:
    """Returns the demo's study in ``out``, on the data of :func:`prepare_demo_data`."""
    return StudySpec(
        data=out / _DATA,
        out=out,
        model=DEMO_MODEL,
        fractions=DEMO_FRACTIONS,
        repetitions=DEMO_REPETITIONS,
        overrides=DEMO_OVERRIDES,
        jobs=DEMO_JOBS if jobs is None else jobs,
    )
