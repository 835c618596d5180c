# SPDX-License-Identifier: Apache-2.0
"""Every op of the library has cases with adversarial values, or a reason why not."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from endurance import large_ops, op_values
from endurance.op_compare import Differs, bits, check_bits, compare
from endurance.op_draws import DRAWS, OTHERWISE, _assignments
from endurance.op_values import Call, results
from endurance.ops import _counted, groups
from endurance.record import Batch

from tal_fast import ops
from tal_fast.reference.linear_assignment import linear_assignment


def test_every_op_has_cases_or_a_reason():
    assert {*DRAWS, *OTHERWISE} >= set(ops.__all__)
    assert set(OTHERWISE) <= set(ops.__all__) - set(DRAWS)
    assert set(DRAWS) - {"segment_losses"} <= set(ops.__all__)


@pytest.mark.parametrize("dtype", sorted(op_values.BOUNDS, key=str))
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 0.3, -1e-6, 1e-30])
def test_the_number_above(dtype, value):
    given = torch.tensor(value, dtype=dtype)
    above = float(op_values.above(np.array([value]), dtype)[0])
    assert above > float(given)
    assert float(torch.tensor(above, dtype=dtype)) == above
    between = torch.tensor((above + float(given)) / 2, dtype=dtype)
    assert float(between) in (above, float(given))


def test_other_layouts_hold_the_same_numbers_otherwise():
    given = torch.arange(24.0).view(2, 3, 4)
    layouts = [op_values.other_layout(random.Random(seed), given) for seed in range(20)]
    assert all(torch.equal(layout, given) for layout in layouts)
    assert len({(x.stride(), x.storage_offset()) for x in layouts}) == 3


def test_bits_look_through_strides():
    wide = torch.arange(6.0).view(2, 3)
    assert bits([wide[:1, 2]]) == bits([torch.tensor([2.0])])
    assert bits([wide.T]) == bits([wide.T.contiguous()])
    assert bits([torch.tensor([0.0])]) != bits([torch.tensor([-0.0])])
    assert bits([torch.zeros(2)]) != bits([torch.zeros(1, 2)])
    assert bits([torch.zeros(1), torch.zeros(2)]) != bits([torch.zeros(2), torch.zeros(1)])


def _broken(call: Call, case: int, change) -> Call:
    """A call whose op gives another result in one case."""
    runs = itertools.count()

    def op(*tensors):
        found = results(call.op(*tensors))
        return [change(x) for x in found] if next(runs) == case else found

    return dataclasses.replace(call, op=op)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[..., None]])
def test_a_wrong_result_is_told_with_its_case(name, change):
    for seed in range(100):
        call = DRAWS[name](random.Random(seed))
        if call.told is None and all(x.numel() for x in call.run()[7]):
            break
    else:
        pytest.skip("told by sums or scores alone")
    with pytest.raises(Differs) as told:
        compare(call, _broken(call, 7, change).run())
    assert told.value.at == 7


def test_other_bits_are_told_with_their_case():
    call = DRAWS["segment_iou"](random.Random(3))
    with pytest.raises(Differs, match="words") as told:
        check_bits(call.run(), _broken(call, 19, torch.neg).run(), "words")
    assert told.value.at == 19


def test_every_case_of_a_lost_group_counts():
    batch = Batch("any", 1, 30, 15)  # cases 30 to 39 of one group, 40 to 44 of the next
    assert list(groups(batch)) == [20, 40]
    outcome = _counted(batch, {20: "why"})
    assert (outcome.lost, outcome.done) == (10, 5)
    assert [failure.number for failure in outcome.failures] == [30]


@pytest.mark.parametrize("sizes", [(0, 2), (1, 1), (3, 2), (2, 5), (4, 4)])
def test_the_least_cost_is_that_of_the_twin(sizes):
    costs = torch.randn(sizes[0] * sizes[1], dtype=torch.float64)
    ((least, _),) = linear_assignment(costs, *([size] for size in sizes))
    sums = costs[_assignments(*sizes)].sum(-1)
    assert float(sums.min()) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("reader", large_ops._READERS, ids=lambda reader: reader.__name__)
def test_offsets_beyond_32_bits(reader):
    reader(random.Random(1))
