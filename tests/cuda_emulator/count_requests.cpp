// SPDX-License-Identifier: Apache-2.0
#include "count_requests.h"

#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

namespace tal_fast::emulator {
namespace {

constexpr uint64_t kSector = 32;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kBank = 4;
constexpr int kBanks = 32;

}  // namespace

bool is_shared(Request request) {
  return request == Request::kSharedLoad || request == Request::kSharedStore ||
         request == Request::kSharedAtomic;
}

// ---- addresses ----------------------------------------------------------------------------------

// The launching thread's stack, where parameters are.
Addresses::Range Addresses::host_stack() {
  thread_local const Range known = [] {
    pthread_attr_t attributes;
    void* low = nullptr;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
      return Range{};
    }
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
    const auto begin = reinterpret_cast<uintptr_t>(low);
    return Range{begin, begin + size};
  }();
  return known;
}

// Constants, and threadIdx and its kin: this library itself.
const std::vector<Addresses::Range>& Addresses::library() {
  static const char marker = 0;  // anything of this library
  static const std::vector<Range> known = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          std::vector<Range> parts;
          bool here = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& part = info->dlpi_phdr[i];
            if (part.p_type != PT_LOAD) {
              continue;
            }
            const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
            parts.push_back({begin, begin + part.p_memsz});
            here = here || parts.back().holds(reinterpret_cast<uintptr_t>(&marker));
          }
          if (here) {
            *static_cast<std::vector<Range>*>(data) = std::move(parts);
          }
          return here ? 1 : 0;
        },
        &found);
    return found;
  }();
  return known;
}

Addresses::Addresses() : stack_(host_stack()) {}

bool Addresses::are_global(uintptr_t address) const {
  if (stack_.holds(address) || !outside_of_block(address)) {
    return false;
  }
  const std::vector<Range>& parts = library();
  return std::none_of(parts.begin(), parts.end(),
                      [&](const Range& part) { return part.holds(address); });
}

// ---- bytes --------------------------------------------------------------------------------------

// Its bytes, and the last block that touched each sector.
struct TouchedMemory::Page {
  std::array<uint64_t, kPage / 64> read{}, written{};
  std::array<uint32_t, kPage / kSector> read_by{}, written_by{};
};

void TouchedMemory::DeletePage::operator()(Page* page) const {
  delete page;
}

TouchedMemory::Page* TouchedMemory::page_of(uint64_t number) {
  if (number != last_) {
    auto& page = pages_[number];
    if (page == nullptr) {
      page.reset(new Page);
    }
    last_ = number;
    page_ = page.get();
  }
  return page_;
}

void TouchedMemory::touch_bytes(uint64_t begin, uint64_t end, bool written) {
  uint64_t fresh = 0;
  while (begin < end) {
    Page* page = page_of(begin / kPage);
    const uint64_t first = begin % kPage;
    const uint64_t count = std::min({end - begin, kPage - first, 64 - first % 64});
    const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << first % 64;
    uint64_t& word = (written ? page->written : page->read)[first / 64];
    fresh += static_cast<uint64_t>(std::popcount(mask & ~word));
    word |= mask;
    begin += count;
  }
  bytes_[written ? 1 : 0] += fresh;
}

void TouchedMemory::touch_sector(uint64_t sector, bool written) {
  constexpr uint64_t kOfPage = kPage / kSector;
  Page* page = page_of(sector / kOfPage);
  uint32_t& last = (written ? page->written_by : page->read_by)[sector % kOfPage];
  if (last != block_) {
    last = block_;
    ++sectors_[written ? 1 : 0];
  }
}

// ---- requests
// -----------------------------------------------------------------------------------

void close_global(const Pending& request, Request kind, TouchedMemory* memory, Sums* one) {
  std::array<std::pair<uint64_t, uint64_t>, kLanes> spans;
  size_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((request.lanes >> lane & 1u) != 0) {
      const auto l = static_cast<size_t>(lane);
      spans[count++] = {request.addresses[l], request.addresses[l] + request.widths[l]};
      one->bytes += request.widths[l];
    }
  }
  std::sort(spans.begin(), spans.begin() + static_cast<std::ptrdiff_t>(count));
  uint64_t distinct = 0;
  uint64_t next_sector = 0;
  for (size_t i = 0; i < count;) {
    auto [begin, end] = spans[i];
    for (++i; i < count && spans[i].first <= end; ++i) {
      end = std::max(end, spans[i].second);
    }
    distinct += end - begin;
    const uint64_t last = (end - 1) / kSector;
    for (uint64_t sector = std::max(begin / kSector, next_sector); sector <= last; ++sector) {
      ++one->cost;
      if (kind != Request::kStore) {
        memory->touch_sector(sector, false);
      }
      if (kind != Request::kLoad) {
        memory->touch_sector(sector, true);
      }
    }
    next_sector = last + 1;
    if (kind != Request::kStore) {
      memory->touch_bytes(begin, end, false);
    }
    if (kind != Request::kLoad) {
      memory->touch_bytes(begin, end, true);
    }
  }
  one->ideal = (distinct + kSector - 1) / kSector;
}

// 32 lanes with up to 4 bytes are served together, 16 with 8, 8 with 16. Of those served together
// each bank gives one word per wavefront, to all who want it; atomics one to each.
void close_shared(const Pending& request, Request kind, Sums* one) {
  const int together = request.bytes <= 4 ? 32 : request.bytes <= 8 ? 16 : 8;
  for (int first = 0; first < kLanes; first += together) {
    std::array<uint64_t, static_cast<size_t>(kLanes) * 4> words;
    size_t count = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if ((request.lanes >> lane & 1u) == 0) {
        continue;
      }
      const auto l = static_cast<size_t>(lane);
      one->bytes += request.widths[l];
      for (uint64_t byte = 0; byte < request.widths[l]; byte += kBank) {
        words[count++] = (request.addresses[l] + byte) / kBank;
      }
    }
    if (count == 0) {
      continue;
    }
    const auto end = words.begin() + static_cast<std::ptrdiff_t>(count);
    std::sort(words.begin(), end);
    const auto distinct = static_cast<size_t>(std::unique(words.begin(), end) - words.begin());
    one->ideal += (distinct + kBanks - 1) / kBanks;
    std::array<uint64_t, kBanks> of_bank{};
    if (kind == Request::kSharedAtomic) {
      for (int lane = first; lane < first + together; ++lane) {
        if ((request.lanes >> lane & 1u) != 0) {
          ++of_bank[request.addresses[static_cast<size_t>(lane)] / kBank % kBanks];
        }
      }
    } else {
      for (size_t i = 0; i < distinct; ++i) {
        ++of_bank[words[i] % kBanks];
      }
    }
    one->cost += *std::max_element(of_bank.begin(), of_bank.end());
  }
}

}  // namespace tal_fast::emulator
