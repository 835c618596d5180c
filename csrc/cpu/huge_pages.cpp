// SPDX-License-Identifier: Apache-2.0
#include "cpu/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tal_fast::cpu {
namespace {

// From 32 MiB on glibc gives every allocation a mapping of its own, which ends with the tensor: the
// hint then touches nothing but the result. Smaller ones are mostly memory that was faulted before.
constexpr int64_t kLeastBytes = int64_t{32} << 20;
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLeastBytes) {
    return;
  }
  const auto address = reinterpret_cast<uintptr_t>(data);
  // Whole huge pages inside the result, so that no neighbour is touched.
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  // A refusal (no support in the kernel) costs speed alone.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace tal_fast::cpu
