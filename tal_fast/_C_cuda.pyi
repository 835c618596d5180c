# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels; importing it registers them. Only beside a CUDA build of torch."""

architectures: str
compiler: str
