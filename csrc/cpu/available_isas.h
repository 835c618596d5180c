// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "cpu/isa.h"

namespace tal_fast::cpu {

// All sets that this machine can run and this library has kernels for, slowest first.
std::vector<Isa> available_isas();

}  // namespace tal_fast::cpu
