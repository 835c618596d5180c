# SPDX-License-Identifier: Apache-2.0
"""Scores of detections against annotations: natively, without pandas, by anyone's rules.

:func:`evaluate` (files), :func:`evaluate_arrays` and :class:`Evaluator` (video by video) give an
:class:`EvaluationResult`; from it come :func:`recall_at_kx`, :func:`average_recall`,
:func:`bootstrap`, :func:`compare`, :func:`analyse_errors` and :func:`write_report`. The rules are a
:class:`Dialect`; ``docs/dialects.md`` compares them.

Importing this package imports neither torch nor the native library; evaluating does.
"""

from tal_fast.evaluation.detections import Detections
from tal_fast.evaluation.dialects import DIALECTS, Dialect, EvaluationWarning
from tal_fast.evaluation.error_analysis import ERRORS, ErrorAnalysis, analyse_errors
from tal_fast.evaluation.evaluator import DEFAULT_TIOU_THRESHOLDS, evaluate, evaluate_arrays
from tal_fast.evaluation.ground_truth import GroundTruth, read_ground_truth
from tal_fast.evaluation.prediction_files import predicting_model, read_results, write_results
from tal_fast.evaluation.recall import AverageRecall, average_recall, recall_at_kx
from tal_fast.evaluation.report import write_report
from tal_fast.evaluation.result import EvaluationResult
from tal_fast.evaluation.streaming import Evaluator
from tal_fast.evaluation.uncertainty import Comparison, Uncertainty, bootstrap, compare

__all__ = [
    "DEFAULT_TIOU_THRESHOLDS",
    "DIALECTS",
    "ERRORS",
    "AverageRecall",
    "Comparison",
    "Detections",
    "Dialect",
    "ErrorAnalysis",
    "EvaluationResult",
    "EvaluationWarning",
    "Evaluator",
    "GroundTruth",
    "Uncertainty",
    "analyse_errors",
    "average_recall",
    "bootstrap",
    "compare",
    "evaluate",
    "evaluate_arrays",
    "predicting_model",
    "read_ground_truth",
    "read_results",
    "recall_at_kx",
    "write_report",
    "write_results",
]
