# SPDX-License-Identifier: Apache-2.0
"""Trials on the machines of a Ray cluster; nothing here is imported for a study without one."""
