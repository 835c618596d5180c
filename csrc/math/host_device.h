// SPDX-License-Identifier: Apache-2.0
// Formulas in csrc/math are written once for CPU kernels, CUDA kernels and their emulation.
#pragma once

#if defined(__CUDACC__)
#define TAL_FAST_HD __host__ __device__ __forceinline__
#else
#define TAL_FAST_HD inline
#endif
