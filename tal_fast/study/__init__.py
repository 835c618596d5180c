# SPDX-License-Identifier: Apache-2.0
"""The data-efficiency study: sample, train, evaluate, repeat, and draw the curve.

Algorithm 1 of the study that this library continues::

    D_train, D_test <- split(D, 0.2)
    for p = 10 %, ..., 100 %:
        for i = 1, ..., 5:
            train on sample(D_train, p), evaluate on D_test
        report mean and standard deviation of mAP

A study is a directory; running it again runs only the trials that are missing.
"""

from tal_fast.study.runner import run_study
from tal_fast.study.shares import parse_fractions
from tal_fast.study.spec import StudySpec
from tal_fast.study.summary import StudyResult, report_study

__all__ = ["StudyResult", "StudySpec", "parse_fractions", "report_study", "run_study"]
