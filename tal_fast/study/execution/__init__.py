# SPDX-License-Identifier: Apache-2.0
"""Trials and where they run: this process, a pool of processes, a Ray cluster."""
