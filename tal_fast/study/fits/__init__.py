# SPDX-License-Identifier: Apache-2.0
"""Learning curves: families, fits, backtests, extrapolation, calibration, planning."""
