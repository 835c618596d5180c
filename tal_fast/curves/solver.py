# SPDX-License-Identifier: Apache-2.0
"""Weighted least squares of one family to many curves at once.

A bootstrap and a backtest are thousands of small fits of one shape. They share x, so they are
solved together: θ starts on a grid, the linear parameters A and B are eliminated exactly (with
their bounds), and Levenberg-Marquardt steps on θ alone use the Jacobian of what remains after the
linear parameters have followed (variable projection in Kaufman's form; Golub and Pereyra, *Inverse
Problems* 19, 2003). The tests hold it to ``scipy.optimize.least_squares``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tal_fast.curves.families import CEILING, Family
from tal_fast.errors import counted
from tal_fast.typing import Floats, Ints, Mask

__all__ = ["BatchFit", "solve_batch"]


_TINY = 1e-300
_ROWS = 64  # curves per block of the grid search: a block stays within the cache
_ITERATIONS = 200
_STARTS = 3


@dataclass(frozen=True)
class BatchFit:
    """Fits of one family to R curves.

    Attributes:
        family: the shape.
        a: A of each curve, [R].
        b: B of each curve, [R]; zero where the family has none.
        theta: θ of each curve, [R, k].
        loss: weighted sum of squared residuals, [R].
        converged: the last step no longer lowered the loss, [R].
    """

    family: Family
    a: Floats
    b: Floats
    theta: Floats
    loss: Floats
    converged: Mask

    def __call__(self, x: Floats) -> Floats:
        """Returns y of every curve at ``x``, [R, n]."""
        return self.family.evaluate(x, self.a, self.b, self.theta)

    def take(self, rows: slice | Ints) -> BatchFit:
        """Returns the fits of some of the curves."""
        return BatchFit(
            self.family,
            self.a[rows],
            self.b[rows],
            self.theta[rows],
            self.loss[rows],
            self.converged[rows],
        )


def _eliminate(family: Family, phi: Floats, y: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Returns the best A and B within their bounds; all arrays are [R, n], the results [R]."""
    if not family.affine:
        a = (w * phi * y).sum(1) / np.maximum((w * phi * phi).sum(1), _TINY)
        return np.clip(a, 0.0, CEILING), np.zeros(len(a))
    total = w.sum(1)
    mean_phi, mean_y = (w * phi).sum(1) / total, (w * y).sum(1) / total
    centred = phi - mean_phi[:, None]
    spread = (w * centred * centred).sum(1)
    b = -(w * centred * (y - mean_y[:, None])).sum(1) / np.maximum(spread, _TINY)
    b = np.where(spread > _TINY, np.maximum(b, 0.0), 0.0)
    a = mean_y + b * mean_phi
    if family.bounded:
        # y <= CEILING, so that on the edge A = CEILING the best B is not negative either.
        edge = (w * phi * (CEILING - y)).sum(1) / np.maximum((w * phi * phi).sum(1), _TINY)
        over = a > CEILING
        a, b = np.where(over, CEILING, a), np.where(over, edge, b)
    return a, b


def _grid_losses(family: Family, phi: Floats, y: Floats, w: Floats) -> Floats:
    """Returns the loss of every curve at every node, [R, G], from moments.

    Sums of squares lose digits by cancellation; for choosing a start that is good enough.
    """
    total, wy = w.sum(1)[:, None], w * y
    s_y, s_yy = wy.sum(1)[:, None], (wy * y).sum(1)[:, None]
    s_phi, s_phi2, s_phiy = w @ phi.T, w @ (phi * phi).T, wy @ phi.T
    if not family.affine:
        a = np.clip(s_phiy / np.maximum(s_phi2, _TINY), 0.0, CEILING)
        return s_yy - 2.0 * a * s_phiy + a * a * s_phi2
    spread = s_phi2 - s_phi * s_phi / total
    usable = spread > 1e-12 * s_phi2
    b = np.where(usable, (s_phi * s_y / total - s_phiy) / np.where(usable, spread, 1.0), 0.0)
    b = np.maximum(b, 0.0)
    a = (s_y + b * s_phi) / total
    if family.bounded:
        over = a > CEILING
        edge = (CEILING * s_phi - s_phiy) / np.maximum(s_phi2, _TINY)
        a, b = np.where(over, CEILING, a), np.where(over, np.maximum(edge, 0.0), b)
    return (
        s_yy + a * a * total + b * b * s_phi2 - 2.0 * a * s_y + 2.0 * b * s_phiy
        - 2.0 * a * b * s_phi
    )  # fmt: skip


def _starts(family: Family, x: Floats, y: Floats, w: Floats) -> Floats:
    """Returns for every curve the best node of each third of the grid, [R, starts, k]."""
    grid = family.grid
    phi, _ = family.shape(x, grid)
    parts = np.array_split(np.arange(len(grid)), _STARTS)
    chosen = np.empty((len(y), _STARTS), dtype=np.int64)
    for begin in range(0, len(y), _ROWS):
        rows = slice(begin, begin + _ROWS)
        losses = _grid_losses(family, phi, y[rows], w[rows])
        for index, part in enumerate(parts):
            chosen[rows, index] = part[np.argmin(losses[:, part], axis=1)]
    return grid[chosen]


def _project(column: Floats, jacobian: Floats, free: Mask) -> Floats:
    """Removes from the Jacobian [R, n, k] what lies along ``column`` [R, n] where it is free."""
    square = np.maximum((column * column).sum(1), _TINY)
    along = np.matmul(column[:, None, :], jacobian)[:, 0] / square[:, None]
    return jacobian - np.where(free[:, None], along, 0.0)[:, None, :] * column[..., None]


def _residuals(
    family: Family, x: Floats, y: Floats, w: Floats, root: Floats, theta: Floats
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    phi, by = family.shape(x, theta)
    a, b = _eliminate(family, phi, y, w)
    fitted = a[:, None] - b[:, None] * phi if family.affine else a[:, None] * phi
    residual = root * (y - fitted)
    return (residual * residual).sum(1), residual, a, b, phi, by


def _jacobian(
    family: Family, root: Floats, a: Floats, b: Floats, phi: Floats, by: Floats
) -> Floats:
    if not family.affine:
        jacobian = (root * a[:, None])[..., None] * by
        return _project(root * phi, jacobian, (a > 0.0) & (a < CEILING))
    jacobian = (root * -b[:, None])[..., None] * by
    free_a = (a < CEILING) if family.bounded else np.ones(len(a), dtype=bool)
    # With both columns free they are made orthogonal first; A fixed leaves φ as it is.
    share = (root * root * phi).sum(1) / (root * root).sum(1)
    column = root * (phi - np.where(free_a, share, 0.0)[:, None])
    return _project(column, _project(root, jacobian, free_a), b > 0.0)


def _descend(family: Family, x: Floats, y: Floats, w: Floats, theta: Floats) -> BatchFit:
    low, high = (np.array(side) for side in zip(*family.box, strict=True))
    root = np.sqrt(w)
    theta = theta.copy()
    loss, residual, a, b, phi, by = _residuals(family, x, y, w, root, theta)
    # What a fit has to reach is set by rounding: below this share of y no loss is distinguished.
    floor = 1e-22 * (w * y * y).sum(1)
    damping = np.full(len(y), 1e-2)
    active = np.arange(len(y))
    identity = np.eye(theta.shape[1])
    for _ in range(_ITERATIONS):
        if not len(active):
            break
        i = active
        jacobian = _jacobian(family, root[i], a[i], b[i], phi[i], by[i])
        gradient = np.matmul(residual[i, None, :], jacobian)[:, 0]
        # A parameter on its bound whose descent leads outside stays there.
        held = ((theta[i] <= low) & (gradient < 0)) | ((theta[i] >= high) & (gradient > 0))
        gradient = np.where(held, 0.0, gradient)
        hessian = np.matmul(jacobian.transpose(0, 2, 1), jacobian)
        moving = ~held[:, :, None] & ~held[:, None, :]
        hessian = np.where(moving, hessian, 0.0)
        diagonal = np.einsum("rkk->rk", hessian)
        scale = np.maximum(diagonal, 1e-12 * diagonal.max(1, keepdims=True) + 1e-30)
        system = hessian + (damping[i, None] * scale + 1e-14 * scale)[:, :, None] * identity
        step = np.linalg.solve(system, gradient[..., None])[..., 0]
        # Half a box per step at most: the grid has put the start near.
        step = np.clip(step, (low - high) / 2, (high - low) / 2)
        trial = np.clip(theta[i] + step, low, high)
        new = _residuals(family, x, y[i], w[i], root[i], trial)
        gained = loss[i] - new[0]
        better = gained > 0.0
        done = better & (gained <= 1e-10 * new[0] + floor[i])
        done |= ~better & (damping[i] > 1e7)
        done |= np.abs(trial - theta[i]).max(1) <= 1e-10
        rows = i[better]
        theta[rows] = trial[better]
        loss[rows], residual[rows], a[rows], b[rows], phi[rows], by[rows] = (
            part[better] for part in new
        )
        damping[i] = np.where(better, damping[i] * 0.2, damping[i] * 6.0).clip(1e-12, 1e9)
        active = i[~done]
    converged = np.ones(len(y), dtype=bool)
    converged[active] = False
    return BatchFit(family, a, b, theta, loss, converged)


def solve_batch(family: Family, x: Floats, y: Floats, w: Floats) -> BatchFit:
    """Fits a family to R curves over the same x.

    Args:
        family: the shape.
        x: shares in percent, [n].
        y: mAP in points, at most 100, [R, n].
        w: weights (one over variance), [R, n]; zero leaves a point out.

    Returns:
        The best fit of each curve from several starts.

    Raises:
        ValueError: a shape does not fit, or a curve has too few points of positive weight.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    w = np.ascontiguousarray(np.broadcast_to(np.asarray(w, dtype=np.float64), y.shape))
    if y.ndim != 2 or x.shape != y.shape[1:]:
        raise ValueError(f"solve_batch: expected x [n] and y [R, n], got {x.shape} and {y.shape}")
    if len(y) and (w > 0).sum(1).min() < family.parameters:
        raise ValueError(
            f"solve_batch: expected at least {counted(family.parameters, 'point')} for "
            f"{family.name}, "
            f"got {(w > 0).sum(1).min()}"
        )
    # Only ratios of weights matter to a fit; near one they keep all sums in range.
    unit = w.max(1, keepdims=True, initial=_TINY)
    scaled = w / unit
    if not family.box:
        theta = np.zeros((len(y), 0))
        phi, _ = family.shape(x, theta)
        a, b = _eliminate(family, phi, y, scaled)
        loss = (scaled * (y - a[:, None] + b[:, None] * phi) ** 2).sum(1)
        return BatchFit(family, a, b, theta, loss * unit[:, 0], np.ones(len(y), dtype=bool))
    starts = _starts(family, x, y, scaled)
    count = starts.shape[1]
    fit = _descend(
        family,
        x,
        np.repeat(y, count, axis=0),
        np.repeat(scaled, count, axis=0),
        starts.reshape(len(y) * count, -1),
    )
    best = np.argmin(fit.loss.reshape(len(y), count), axis=1) + count * np.arange(len(y))
    chosen = fit.take(best)
    return replace(chosen, loss=chosen.loss * unit[:, 0])
