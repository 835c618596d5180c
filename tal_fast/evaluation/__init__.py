# SPDX-License-Identifier: Apache-2.0
"""Mean average precision of detections against annotations, natively and without pandas.

Importing this package imports neither torch nor the native library; evaluating does.
"""

from tal_fast.evaluation.dialects import DIALECTS, Dialect, EvaluationWarning
from tal_fast.evaluation.evaluator import (
    DEFAULT_TIOU_THRESHOLDS,
    Evaluator,
    evaluate,
    evaluate_arrays,
)
from tal_fast.evaluation.ground_truth import GroundTruth, read_ground_truth
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.evaluation.results import Detections, read_results, write_results

__all__ = [
    "DEFAULT_TIOU_THRESHOLDS",
    "DIALECTS",
    "Detections",
    "Dialect",
    "EvaluationResult",
    "EvaluationWarning",
    "Evaluator",
    "GroundTruth",
    "evaluate",
    "evaluate_arrays",
    "read_ground_truth",
    "read_results",
    "write_results",
]
