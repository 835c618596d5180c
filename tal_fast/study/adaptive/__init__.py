# SPDX-License-Identifier: Apache-2.0
"""Studies that choose their own trials: what is asked, what is known, what to train next.

:mod:`~tal_fast.study.adaptive.policy` is a pure function of the finished and running trials; the
directory of trials is all that a study needs to go on. Everything here is for one curve.
"""
