# SPDX-License-Identifier: Apache-2.0
"""What an array of any format is as features: [T, C] of floating numbers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tal_fast.data.extents import Layout, two_axes
from tal_fast.errors import DataError

__all__ = ["Reduce", "as_crops", "as_rows", "check_dtype", "reduced"]

Reduce = int | Literal["mean"]
"""What to take of the crops of [T, N, C]: the one of this number, from 0 on, or their mean."""


def check_dtype(where: str, dtype: np.dtype[Any]) -> None:
    """Checks that numbers of a type can be features.

    Raises:
        DataError: if they are neither floating numbers nor integers.
    """
    if dtype.kind == "O":
        raise DataError(
            f"{where}: expected numbers, got Python objects (dtype object); they are never "
            "unpickled: save a float array"
        )
    if dtype.kind not in "fiu":
        raise DataError(
            f"{where}: expected dtype float16, float32 or float64, or integers, got {dtype}"
        )


def as_rows(where: str, values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """Returns an array as features.

    Args:
        where: file and array, for messages.
        values: of two axes besides those of length 1.
        layout: what its axes mean.

    Returns:
        [T, C] of float16, float32 or float64. Integers become the narrowest float32 or float64
        that holds all of their type.

    Raises:
        DataError: if the array is none of numbers, of other axes, or holds numbers that float64
            cannot.
    """
    check_dtype(where, values.dtype)
    rows = values.reshape(two_axes(where, values.shape, layout))
    floats = _as_floats(where, rows)
    return floats if layout == "TC" else floats.T


def as_crops(where: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns an array of crops, in the middle of three axes besides those of length 1.

    Args:
        where: file and array, for messages.
        values: [T, N, C] or [C, N, T], with N crops.

    Raises:
        DataError: if it is of other axes or types, or holds numbers that float64 cannot.
    """
    check_dtype(where, values.dtype)
    shape = list(values.shape)
    axes = shape if len(shape) == 3 else [size for size in shape if size != 1]
    if len(axes) != 3 or 0 in axes:
        raise DataError(f"{where}: expected crops [T, N, C] to reduce, got shape {shape}")
    return _as_floats(where, values.reshape(axes))


def reduced(where: str, crops: npt.NDArray[Any], reduce: Reduce) -> npt.NDArray[Any]:
    """Returns one of the crops of [T, N, C], or their mean (in float64): [T, C].

    Raises:
        DataError: if there is no such crop.
    """
    if reduce == "mean":
        mean: npt.NDArray[Any] = crops.mean(axis=1, dtype=np.float64)
        return mean
    if reduce >= crops.shape[1]:
        raise DataError(f"{where}: expected a crop from 0 to {crops.shape[1] - 1}, got {reduce}")
    return crops[:, reduce]


def _as_floats(where: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f" and values.dtype.itemsize <= 8:
        return values
    if values.dtype.kind != "f" and values.dtype.itemsize <= 2:
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        floats = values.astype(np.float64)
    if values.dtype.kind == "f":
        doubtful = (floats.astype(values.dtype) != values) & ~np.isnan(floats)
    elif values.dtype.itemsize <= 4:
        return floats
    else:
        doubtful = np.abs(floats) >= 2.0**53  # below, float64 holds every integer
    for index in np.argwhere(doubtful).tolist():
        value = values[tuple(index)]
        if value.dtype.kind == "f" or int(floats[tuple(index)]) != int(value):
            raise DataError(
                f"{where}: element {index}: {value} is no float64 number; store the array as "
                "float64 or float32"
            )
    return floats
