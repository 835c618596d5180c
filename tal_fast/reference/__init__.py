# SPDX-License-Identifier: Apache-2.0
"""Slow, obvious pure-PyTorch twins of the ops: what the tests compare the native code with.

Each module has the name of its op and imports torch alone. Nothing but tests and benchmarks imports
this package.
"""
