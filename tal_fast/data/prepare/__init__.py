# SPDX-License-Identifier: Apache-2.0
"""Makers of data directories from data sets as they are distributed."""

from tal_fast.data.prepare.hapt import PrepareReport, prepare_hapt

__all__ = ["PrepareReport", "prepare_hapt"]
