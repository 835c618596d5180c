# SPDX-License-Identifier: Apache-2.0
"""Are annotations and features fit to train with, and do they fit each other?"""

from tal_fast.data.validation.report import write_report
from tal_fast.data.validation.result import Finding, ValidationResult
from tal_fast.data.validation.validate import FeatureQuestion, validate, validate_dataset

__all__ = [
    "FeatureQuestion",
    "Finding",
    "ValidationResult",
    "validate",
    "validate_dataset",
    "write_report",
]
