# SPDX-License-Identifier: Apache-2.0
"""The shapes that a learning curve is fitted with.

Every family is linear in one or two of its parameters: y = A - B φ(x; θ) or y = A φ(x; θ), with x
the share p in percent and y mAP in points. A is the asymptote (but for ``log2``, which has none)
and at most 100; B is not negative, so that no curve falls. θ is kept in coordinates in which
a step of one is of the same order everywhere, mostly logarithms.

Sources: ``last1``, ``pow3``, ``pow4``, ``log2``, ``exp3``, ``wbl4``, ``mmf4`` are names of LCDB
(Mohr, Viering, Loog, van Rijn, 2022); ``bnsl1`` is a broken neural scaling law with one break
(Caballero et al., arXiv 2210.14891).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit

from tal_fast.curves.learning_curve import CEILING, LAST
from tal_fast.errors import ConfigError, nearest
from tal_fast.typing import Floats

__all__ = ["CEILING", "FAMILIES", "FITTED", "Family", "choose_families"]


@dataclass(frozen=True)
class Family:
    """A shape with its parameters, where they may lie and where a search starts.

    Attributes:
        name: short name.
        title: how people call it.
        formula: y as a function of x, in the parameters' public names.
        affine: y = A - B φ; otherwise y = A φ.
        bounded: A is an asymptote, at most :data:`CEILING`.
        shape: (x of [n], θ of [R, k]) -> (φ of [R, n], its derivative by θ of [R, n, k]).
        box: lowest and highest value of each θ.
        nodes: starting values per θ, spread evenly over its box.
        public: (A, B, θ) -> public name -> value.
        least: fewest levels of p for which a fit makes sense; more than the parameters.
    """

    name: str
    title: str
    formula: str
    affine: bool
    bounded: bool
    shape: Callable[[Floats, Floats], tuple[Floats, Floats]]
    box: tuple[tuple[float, float], ...]
    nodes: tuple[int, ...]
    public: Callable[[float, float, Floats], dict[str, float]]
    least: int

    @property
    def parameters(self) -> int:
        """Number of parameters, the linear ones included."""
        return len(self.box) + 1 + self.affine

    @cached_property
    def grid(self) -> Floats:
        """Starting points θ, [G, k]; those with the same first θ stand together."""
        axes = [
            np.linspace(low, high, count + 2)[1:-1]
            for (low, high), count in zip(self.box, self.nodes, strict=True)
        ]
        return np.array(list(itertools.product(*axes)), dtype=np.float64).reshape(-1, len(self.box))

    def evaluate(self, x: Floats, a: Floats, b: Floats, theta: Floats) -> Floats:
        """Returns y.

        Args:
            x: shares in percent, [n].
            a: A of each curve, [R].
            b: B of each curve, [R]; not used where y = A φ.
            theta: θ of each curve, [R, k].

        Returns:
            mAP in points, [R, n].
        """
        phi, _ = self.shape(np.asarray(x, dtype=np.float64), theta)
        return a[:, None] - b[:, None] * phi if self.affine else a[:, None] * phi


def _log2(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    phi = np.broadcast_to(-np.log(x), (len(theta), len(x)))
    return phi, np.zeros((*phi.shape, 0))


def _pow3(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    exponent = -np.exp(theta[:, :1]) * np.log(x)
    phi = np.exp(exponent)
    return phi, (exponent * phi)[..., None]


def _pow4(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    # Divided by its value at x = 1, which B takes up: steep powers would underflow.
    c, d = np.exp(theta[:, :1]), np.exp(theta[:, 1:])
    exponent = -c * np.log((x + d) / (1.0 + d))
    phi = np.exp(exponent)
    by_d = -c * d * (1.0 / (x + d) - 1.0 / (1.0 + d))
    return phi, np.stack((exponent * phi, by_d * phi), axis=-1)


def _exp3(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    exponent = -np.exp(theta[:, :1]) * x
    phi = np.exp(exponent)
    return phi, (exponent * phi)[..., None]


def _scaled_power(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    """Returns z = (x / s)^d and its derivatives by ln s and ln d."""
    d = np.exp(theta[:, 1:])
    exponent = np.clip(d * (np.log(x) - theta[:, :1]), -600.0, 600.0)
    z = np.exp(exponent)
    return z, np.stack((-d * z, exponent * z), axis=-1)


def _wbl4(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    z, by = _scaled_power(x, theta)
    phi = np.exp(-z)
    # z e^-z is zero long before z overflows.
    return phi, np.where(z[..., None] < 700.0, -by, 0.0) * phi[..., None]


def _mmf4(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    z, by = _scaled_power(x, theta)
    phi = 1.0 / (1.0 + z)
    return phi, -by * (phi * phi)[..., None]


def _hill(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    falling, by = _mmf4(x, theta)
    return 1.0 - falling, -by


def _logistic(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    k, m = np.exp(theta[:, :1]), theta[:, 1:]
    phi = expit(k * (x - m))
    slope = phi * (1.0 - phi)
    return phi, np.stack((slope * k * (x - m), -k * slope), axis=-1)


def _gompertz(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    c = np.exp(theta[:, 1:])
    u = np.exp(np.clip(theta[:, :1] - c * x, -600.0, 600.0))
    phi = np.exp(-u)
    weighted = np.where(u < 700.0, u, 0.0) * phi
    return phi, np.stack((-weighted, weighted * c * x), axis=-1)


def _bnsl1(x: Floats, theta: Floats) -> tuple[Floats, Floats]:
    # In logarithms a line of slope -s0 that bends into one of slope -s1 at d, over a width f.
    s0, s1, f = np.exp(theta[:, :1]), np.exp(theta[:, 1:2]), np.exp(theta[:, 3:])
    log_x = np.log(x)
    v = (log_x - theta[:, 2:3]) / f
    bend = np.logaddexp(0.0, v)
    phi = np.exp(-s0 * log_x - (s1 - s0) * f * bend)
    turn = s1 - s0
    by = (
        s0 * (f * bend - log_x),
        -s1 * f * bend,
        turn * expit(v),
        -turn * f * (bend - v * expit(v)),
    )
    return phi, np.stack(by, axis=-1) * phi[..., None]


def _log_box(low: float, high: float) -> tuple[float, float]:
    return math.log(low), math.log(high)


def _pow4_public(a: float, b: float, theta: Floats) -> dict[str, float]:
    c, d = math.exp(theta[0]), math.exp(theta[1])
    return {"a": a, "b": b * (1.0 + d) ** c, "c": c, "d": d}


def _wbl4_public(a: float, b: float, theta: Floats) -> dict[str, float]:
    d = math.exp(theta[1])
    return {"a": math.exp(-d * theta[0]), "b": b, "c": a, "d": d}


def _mmf4_public(a: float, b: float, theta: Floats) -> dict[str, float]:
    d = math.exp(theta[1])
    return {"a": a - b, "b": math.exp(d * theta[0]), "c": a, "d": d}


def _bnsl1_public(a: float, b: float, theta: Floats) -> dict[str, float]:
    s0, s1, d, f = (math.exp(value) for value in theta)
    return {"a": a, "b": -b, "c0": s0, "c1": s1 - s0, "d": d, "f": f}


_SCALE, _POWER = _log_box(1e-2, 1e5), _log_box(0.05, 12.0)
_RATE, _EXPONENT = _log_box(1e-4, 3.0), _log_box(0.01, 30.0)

# Levels beyond which a family is fitted: one more than its parameters, and more for bnsl1, whose
# break would otherwise be laid around a single point.
FITTED: tuple[Family, ...] = (
    Family("pow3", "pow3", "a - b x^-c", True, True, _pow3, (_EXPONENT,), (48,),
           lambda a, b, t: {"a": a, "b": b, "c": math.exp(t[0])}, 4),
    Family("pow4", "pow4", "a - b (x + d)^-c", True, True, _pow4,
           (_EXPONENT, _log_box(0.01, 1000.0)), (24, 20), _pow4_public, 5),
    Family("log2", "log", "a + b ln x", True, False, _log2, (), (),
           lambda a, b, t: {"a": a, "b": b}, 3),
    Family("exp3", "exp3", "a - b e^(-c x)", True, True, _exp3, (_RATE,), (48,),
           lambda a, b, t: {"a": a, "b": b, "c": math.exp(t[0])}, 4),
    Family("wbl4", "Weibull", "c - b e^(-a x^d)", True, True, _wbl4, (_SCALE, _POWER), (28, 20),
           _wbl4_public, 5),
    Family("mmf4", "MMF4", "(a b + c x^d) / (b + x^d)", True, True, _mmf4, (_SCALE, _POWER),
           (28, 20), _mmf4_public, 5),
    Family("hill", "Hill", "a x^h / (k^h + x^h)", False, True, _hill, (_SCALE, _POWER), (28, 20),
           lambda a, b, t: {"a": a, "k": math.exp(t[0]), "h": math.exp(t[1])}, 4),
    Family("logistic", "logistic", "a / (1 + e^(-k (x - m)))", False, True, _logistic,
           (_RATE, (-200.0, 400.0)), (20, 40),
           lambda a, b, t: {"a": a, "k": math.exp(t[0]), "m": float(t[1])}, 4),
    Family("gompertz", "Gompertz", "a e^(-b e^(-c x))", False, True, _gompertz,
           (_log_box(1e-2, 1e4), _RATE), (20, 24),
           lambda a, b, t: {"a": a, "b": math.exp(t[0]), "c": math.exp(t[1])}, 4),
    Family("bnsl1", "BNSL, 1 break", "a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f)", True, True, _bnsl1,
           (_log_box(0.01, 10.0), _log_box(0.01, 10.0), _log_box(1.0, 100.0), _log_box(0.05, 2.0)),
           (6, 6, 8, 3), _bnsl1_public, 11),
)  # fmt: skip
"""The families that are fitted, in the order of the documentation."""

FAMILIES: dict[str, Family] = {family.name: family for family in FITTED}
"""Name -> family."""


def choose_families(names: Iterable[str] | None) -> tuple[Family, ...]:
    """Returns the families of these names in the usual order; all for None.

    Raises:
        ConfigError: there is no family of a name.
    """
    if names is None:
        return FITTED
    wanted = set(names) - {LAST}
    for name in sorted(wanted - set(FAMILIES)):
        raise ConfigError(
            f"families: expected some of {', '.join(FAMILIES)}, got {name!r}"
            f"{nearest(name, FAMILIES)}"
        )
    if not wanted:
        raise ConfigError(f"families: expected at least one of {', '.join(FAMILIES)}, got none")
    return tuple(family for family in FITTED if family.name in wanted)
