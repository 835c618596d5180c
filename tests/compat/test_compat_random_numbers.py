# SPDX-License-Identifier: Apache-2.0
"""torch's kernel of Bernoulli variables: ours in its place gives the same trainings."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from tal_fast import compat
from tal_fast.compat import random_numbers


@pytest.fixture(autouse=True)
def _seeded():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def some_draws() -> list[torch.Tensor]:
    """Dropout and its gradients, draws that ours does not take, and what is drawn next."""
    torch.manual_seed(3)
    x = torch.linspace(-1, 1, 3 * 4096).view(3, 4096).requires_grad_()
    attention = nn.MultiheadAttention(8, 2, dropout=0.3).train()
    found = []
    for p in (0.1, 0.5):
        y = nn.Dropout(p)(x)
        found += [y.detach(), *torch.autograd.grad(y.square().sum(), x)]
    found.append(nn.functional.dropout(x.detach().T, 0.2))  # not contiguous
    found.append(nn.functional.dropout(x.detach().double(), 0.2))
    found.append(nn.functional.dropout(x.detach()[:, :5], 0.2))  # small
    found.append(torch.empty(9000, dtype=torch.bool).bernoulli_(0.3))
    found.append(torch.empty(9000).bernoulli_(0.3, generator=torch.Generator().manual_seed(1)))
    found.append(torch.empty(9000).bernoulli_(0.0))
    found.append(torch.empty(9001).bernoulli_(1.0))
    rows = torch.linspace(0, 1, 90 * 8).view(90, 1, 8)
    found.append(attention(rows, rows, rows)[0].detach())
    with torch.random.fork_rng():
        found.append(torch.empty(5000).bernoulli_())
    found += [torch.rand(3), torch.randn(3), torch.get_rng_state()]
    return found


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_numbers_gradients_and_state_are_torchs(kinds):
    expected = some_draws()
    compat.install(quiet=True)
    assert "torch.bernoulli_" not in kinds("replaced")  # nothing before it is needed
    assert same(some_draws(), expected)
    assert "the same numbers" in kinds("replaced")["torch.bernoulli_"]
    (entry,) = (e for e in compat.report().entries if e.name == "torch.bernoulli_")
    assert entry.calls == 6
    compat.uninstall()
    assert same(some_draws(), expected)
    assert entry.calls == 6


@pytest.mark.parametrize(
    "options", [{"skip": ["bernoulli_"]}, {"only": ["nms_1d_cpu"]}, {"verify": False}]
)
def test_not_where_it_is_not_wanted(options, kinds):
    compat.install(quiet=True, **options)
    some_draws()
    assert not kinds("replaced")
    assert "torch.bernoulli_" not in kinds("left")


def test_what_gives_other_numbers_is_left(monkeypatch, kinds):
    from tal_fast.ops import mt19937_bernoulli

    expected = some_draws()

    def wrong(values: torch.Tensor, state: torch.Tensor, p: float) -> None:
        mt19937_bernoulli.__dict__["original"](values, state, p)
        values[-1] = 1 - values[-1]

    monkeypatch.setattr(
        mt19937_bernoulli, "original", mt19937_bernoulli.mt19937_bernoulli_, raising=False
    )
    monkeypatch.setattr(mt19937_bernoulli, "mt19937_bernoulli_", wrong)
    compat.install(quiet=True)
    assert same(some_draws(), expected)
    assert kinds("left")["torch.bernoulli_"] == "draws other numbers"


def test_a_torch_without_get_kernel_is_left(monkeypatch, kinds):
    monkeypatch.delattr(torch.library, "get_kernel")
    compat.install(quiet=True)
    some_draws()
    assert "does not give its kernels away" in kinds("left")["torch.bernoulli_"]


def test_other_threads_draw_with_torchs_own(kinds):
    compat.install(quiet=True)
    thread = threading.Thread(target=lambda: torch.empty(9000).bernoulli_(0.3))
    thread.start()
    thread.join()
    assert "torch.bernoulli_" not in kinds("replaced")


def test_the_proof_leaves_the_generator_alone():
    compat.install(quiet=True)
    torch.manual_seed(11)
    torch.empty(random_numbers._ENOUGH).bernoulli_(0.5)
    found = torch.rand(4)
    compat.uninstall()
    torch.manual_seed(11)
    torch.empty(random_numbers._ENOUGH).bernoulli_(0.5)
    assert torch.equal(torch.rand(4), found)
