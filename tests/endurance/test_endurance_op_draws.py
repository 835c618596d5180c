# SPDX-License-Identifier: Apache-2.0
"""Every op of the library has cases with adversarial values, or a reason why not."""

from __future__ import annotations

import random

import pytest
import torch
from endurance import large_ops, op_values
from endurance.op_draws import DRAWS, OTHERWISE
from endurance.ops import same_bits

from tal_fast import ops


def test_every_op_has_cases_or_a_reason():
    assert {*DRAWS, *OTHERWISE} >= set(ops.__all__)
    assert set(OTHERWISE) <= set(ops.__all__) - set(DRAWS)
    assert set(DRAWS) - {"segment_losses"} <= set(ops.__all__)


@pytest.mark.parametrize("dtype", sorted(op_values.BOUNDS, key=str))
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.3, -1e-6, 1e-30])
def test_the_number_above(dtype, value):
    given = torch.tensor(value, dtype=dtype)
    above = op_values.above(value, dtype)
    assert above > float(given)
    assert float(torch.tensor(above, dtype=dtype)) == above
    between = torch.tensor((above + float(given)) / 2, dtype=dtype)
    assert float(between) in (above, float(given))


def test_same_bits_looks_through_strides():
    wide = torch.arange(6.0).view(2, 3)
    assert same_bits(wide[:1, 2], torch.tensor([2.0]))
    assert same_bits(wide.T, wide.T.contiguous())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.parametrize("reader", large_ops._READERS, ids=lambda reader: reader.__name__)
def test_offsets_beyond_32_bits(reader):
    reader(random.Random(1))
