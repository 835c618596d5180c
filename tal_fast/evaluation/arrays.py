# SPDX-License-Identifier: Apache-2.0
"""Arrays of whatever a caller has: lists, NumPy arrays, columns of tables, tensors of any kind."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from tal_fast.data.annotation_values import plain
from tal_fast.errors import DataError
from tal_fast.typing import Floats

__all__ = ["as_array", "as_labels", "as_numbers"]


def as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """Returns an array with the values of ``values``, without a change to any.

    Tensors may be on any device, ask for gradients and be bfloat16, which becomes float64.

    Args:
        name: what they are, for messages.
        values: a number, a list or a tuple (also of tensors), an array, a column or a tensor.

    Raises:
        DataError: they do not make an array.
    """
    try:
        return np.asarray(_without_tensors(values))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{name}: expected an array of numbers, got {type(values).__name__} that makes none: "
            f"{error}"
        ) from error


def as_numbers(name: str, values: Any) -> Floats:
    """Returns an array of numbers as float64.

    Args:
        name: what they are, for messages.
        values: as in :func:`as_array`; tables keep numbers as objects, too.

    Raises:
        DataError: they are no real numbers: text, truth values and complex numbers are none.
    """
    array = as_array(name, values)
    if array.dtype == object and all(
        isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, complex))
        for value in array.flat
    ):
        array = array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{name}: expected numbers, got dtype {array.dtype}")
    return array.astype(np.float64)


def as_labels(where: str, values: Any) -> npt.NDArray[Any] | list[str | int]:
    """Returns labels: an array of integers, or a list of names and integers.

    Args:
        where: what is labelled, for messages.
        values: integers of any width, or names: a list, an array of text or of objects, a column.

    Raises:
        DataError: a label is neither a name nor an integer.
    """
    array = as_array(f"{where}: labels", values)
    if array.size == 0:
        return np.zeros(array.shape, np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind in "iu" or array.ndim != 1:
        return array
    # Text, text of NumPy 2, and objects, as which tables keep text.
    if array.dtype.kind not in "UTO":
        raise DataError(f"{where}: expected labels as names or integers, got {array.dtype}")
    labels = [plain(value) for value in array.tolist()]
    for i, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            raise DataError(
                f"{where}, prediction {i}: expected a label as a name or an integer, "
                f"got {label!r:.60}"
            )
    if labels and all(isinstance(label, int) for label in labels):
        return as_array(f"{where}: labels", labels)
    return [str(label) if isinstance(label, str) else label for label in labels]


def _without_tensors(values: Any) -> Any:
    torch = sys.modules.get("torch")  # who has a tensor has imported it; nobody else need
    if torch is None:
        return values
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    if isinstance(values, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in values[:1]):
        return [_without_tensors(value) for value in values]
    return values
