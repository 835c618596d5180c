# SPDX-License-Identifier: Apache-2.0
"""torch's own random numbers, a vector at a time: against torch, and against the twin."""

from __future__ import annotations

import pytest
import torch

from tal_fast.ops.mt19937_bernoulli import mt19937_bernoulli_
from tal_fast.reference.mt19937_bernoulli import mt19937_bernoulli as twin

pytestmark = pytest.mark.cpu_only  # there is no CUDA kernel


def generator(seed: int, draws: int) -> torch.Generator:
    """One from which single words were drawn before, as ``randint`` draws them."""
    found = torch.Generator().manual_seed(seed)
    torch.empty(draws, dtype=torch.int32).random_(generator=found)
    return found


# 624 words are made at a time, and an element takes two: odd numbers of draws split one.
@pytest.mark.parametrize("draws", [0, 1, 2, 311, 622, 623, 624, 625, 1001])
@pytest.mark.parametrize("count", [0, 1, 2, 311, 312, 313, 1000, 5001])
def test_values_and_state_are_torchs(count, draws):
    for p in (0.0, 2.0**-53, 0.1, 0.5, 0.9, 1.0):
        source = generator(count, draws)
        state = source.get_state()
        expected = torch.empty(count).bernoulli_(p, generator=source)
        values = torch.full((count,), -7.0)
        mt19937_bernoulli_(values, state, p)
        assert torch.equal(values, expected)
        assert torch.equal(state, source.get_state())
        following = torch.Generator()
        following.set_state(state)
        assert torch.equal(torch.rand(3, generator=following), torch.rand(3, generator=source))


@pytest.mark.parametrize("draws", [0, 1, 623])
def test_values_are_those_of_the_twin(draws):
    state = generator(5, draws).get_state()
    expected = twin(700, state, 0.3)
    values = torch.empty(7, 100)
    mt19937_bernoulli_(values, state, 0.3)
    assert torch.equal(values.flatten(), expected)


def test_what_the_normal_distribution_keeps_stays():
    source = generator(0, 3)
    torch.randn(1, generator=source)  # of a pair, one is kept
    state = source.get_state()
    torch.empty(9).bernoulli_(0.5, generator=source)
    mt19937_bernoulli_(torch.empty(9), state, 0.5)
    assert torch.equal(state, source.get_state())


def test_refuses_wrong_input():
    values, state = torch.empty(4), generator(0, 0).get_state()
    with pytest.raises(RuntimeError, match="values of dtype float32, got float64"):
        mt19937_bernoulli_(values.double(), state, 0.5)
    with pytest.raises(RuntimeError, match="values to be contiguous"):
        mt19937_bernoulli_(torch.empty(4, 4).T, state, 0.5)
    with pytest.raises(RuntimeError, match=r"p in \[0, 1\], got 1.5"):
        mt19937_bernoulli_(values, state, 1.5)
    with pytest.raises(RuntimeError, match=r"p in \[0, 1\], got -?nan"):
        mt19937_bernoulli_(values, state, float("nan"))
    with pytest.raises(RuntimeError, match=r"uint8 of shape \[5056\], got torch.uint8 of shape"):
        mt19937_bernoulli_(values, state[8:], 0.5)
    with pytest.raises(RuntimeError, match="expected a state of MT19937, got one with 0 words"):
        mt19937_bernoulli_(values, torch.zeros_like(state), 0.5)
    with pytest.raises(TypeError, match=r"expected state to be a torch\.Tensor, got list"):
        mt19937_bernoulli_(values, [], 0.5)
    with pytest.raises(RuntimeError, match="values on the CPU, got meta"):
        mt19937_bernoulli_(values.to("meta"), state.to("meta"), 0.5)


def test_opcheck():
    state = generator(0, 1).get_state().view(torch.int64)
    torch.library.opcheck(
        torch.ops.tal_fast.mt19937_bernoulli_.default, (torch.empty(20), state, 0.5)
    )
