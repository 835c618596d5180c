# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tal_fast.data.grid import Grid
from tal_fast.errors import DataError


def test_row_covers_one_unit_around_its_centre():
    grid = Grid(stride=25, frames=50, fps=50)
    # Row 3 sees frames 75..125, centred at 100 frames = 2 s.
    assert grid.to_grid(2.0) == 3.5
    assert grid.to_seconds(3.5) == 2.0
    assert grid.to_seconds(3.0) == 1.75
    assert grid.to_seconds(4.0) == 2.25


def test_is_half_a_row_from_actionformer():
    times = np.array([0.0, 1.3, 20.0])
    grid = Grid(stride=4, frames=16, fps=30)
    np.testing.assert_allclose(grid.to_grid(times) - 0.5, times * 30 / 4 - 0.5 * 16 / 4)


@given(
    st.floats(0.1, 64), st.floats(0.1, 64), st.floats(1, 120),
    st.lists(st.floats(-1e4, 1e4), max_size=5),
)  # fmt: skip
def test_there_and_back(stride, frames, fps, times):
    grid = Grid(stride, frames, fps)
    back = grid.to_seconds(grid.to_grid(np.array(times)))
    np.testing.assert_allclose(back, times, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("field", ["stride", "frames", "fps"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_faulty_numbers(field, value):
    with pytest.raises(DataError, match=f"Grid: expected {field} > 0, got {value}"):
        Grid(**{"stride": 1.0, "frames": 1.0, "fps": 1.0, field: value})
