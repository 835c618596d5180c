// SPDX-License-Identifier: Apache-2.0
// Fewer page faults for large results.
#pragma once

#include <cstdint>

namespace tal_fast::cpu {

// Hints that the memory of a large fresh result, which is about to be written as a whole, is best
// backed by huge pages. A fresh allocation of this size costs one page fault per 4 KiB, which takes
// several times as long as writing it. Does nothing for a small result, or where the system has no
// such hint; values and addresses never change.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace tal_fast::cpu
