// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU kernels use, chosen once at run time.
//
// A kernel file, for example csrc/cpu/segment_iou.cpp, is compiled once per instruction set, each
// time with another TAL_FAST_ISA_NAMESPACE, and puts all it defines into
// tal_fast::cpu::TAL_FAST_ISA_NAMESPACE. Its header declares the entry points for every set:
//
//   namespace tal_fast::cpu {
//   TAL_FAST_FOR_EACH_ISA(template <typename T> void segment_iou(const T* a, int64_t n);)
//   }
//
// and the op calls the chosen one: TAL_FAST_ISA_CALL(segment_iou<float>)(a, n). The reader's loops
// are built in the same way, in tal_fast::reader: TAL_FAST_ISA_CALL_IN(reader, ...).
//
// A kernel file must not instantiate templates or inline functions of a shared header that could be
// emitted out of line (std::vector, std::sort): the linker keeps one copy of such a function for
// the whole library, perhaps the one with AVX-512 instructions, and older machines would then
// execute it. Small inline helpers go into an anonymous namespace or are `static inline`.
//
// Every kernel includes this once per instruction set: no header of the standard library here
// (<string> and <vector> alone are 0.3 s each time, <memory> and <functional> as much again).
#pragma once

namespace tal_fast::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The instruction set in use: the best one that machine and binary have, or the one that the
// environment variable TAL_FAST_ISA (baseline, avx2, avx512) asks for. The variable is read once.
// Throws std::runtime_error when the variable names an unknown or unavailable set.
Isa selected_isa();

const char* isa_name(Isa isa);

}  // namespace tal_fast::cpu

#if TAL_FAST_X86
#define TAL_FAST_FOR_EACH_ISA(...) \
  namespace baseline {             \
  __VA_ARGS__                      \
  }                                \
  namespace avx2 {                 \
  __VA_ARGS__                      \
  }                                \
  namespace avx512 {               \
  __VA_ARGS__                      \
  }
#define TAL_FAST_ISA_CALL_IN(folder, ...)                           \
  (::tal_fast::cpu::selected_isa() == ::tal_fast::cpu::Isa::kAvx512 \
       ? &::tal_fast::folder::avx512::__VA_ARGS__                   \
   : ::tal_fast::cpu::selected_isa() == ::tal_fast::cpu::Isa::kAvx2 \
       ? &::tal_fast::folder::avx2::__VA_ARGS__                     \
       : &::tal_fast::folder::baseline::__VA_ARGS__)
#else
#define TAL_FAST_FOR_EACH_ISA(...) \
  namespace baseline {             \
  __VA_ARGS__                      \
  }
#define TAL_FAST_ISA_CALL_IN(folder, ...) (&::tal_fast::folder::baseline::__VA_ARGS__)
#endif
#define TAL_FAST_ISA_CALL(...) TAL_FAST_ISA_CALL_IN(cpu, __VA_ARGS__)
