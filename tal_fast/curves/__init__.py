# SPDX-License-Identifier: Apache-2.0
"""Learning curves from anywhere: read, fitted, backtested, extrapolated, planned from, drawn.

Nothing here knows studies, trials or models: a curve is a table of shares and scores.
"""

from tal_fast.curves.curve_files import read_curve, read_curves
from tal_fast.curves.drawing import draw
from tal_fast.curves.learning_curve import CurvePoint, LearningCurve
from tal_fast.curves.paper_tables import TableForm

__all__ = [
    "CurvePoint",
    "LearningCurve",
    "TableForm",
    "draw",
    "read_curve",
    "read_curves",
]
