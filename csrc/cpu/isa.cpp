// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/available_isas.h"

namespace tal_fast::cpu {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found{Isa::kBaseline};
#if TAL_FAST_X86
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2) {
    found.push_back(Isa::kAvx2);
  }
  if (avx512) {
    found.push_back(Isa::kAvx512);
  }
#endif
  return found;
}

namespace {

Isa select_isa() {
  const std::vector<Isa> available = available_isas();
  const char* forced = std::getenv("TAL_FAST_ISA");
  if (forced == nullptr || *forced == '\0') {
    return available.back();
  }
  const std::string name(forced);
  std::string names;
  for (const Isa isa : available) {
    if (name == isa_name(isa)) {
      return isa;
    }
    names += names.empty() ? "" : ", ";
    names += isa_name(isa);
  }
  throw std::runtime_error("TAL_FAST_ISA: expected one of " + names + " on this machine, got '" +
                           name + "'");
}

}  // namespace

Isa selected_isa() {
  static const Isa selected = select_isa();
  return selected;
}

}  // namespace tal_fast::cpu
