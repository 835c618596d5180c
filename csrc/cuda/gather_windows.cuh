// SPDX-License-Identifier: Apache-2.0
// Kernels of gather_windows: one pass at the speed of copying. The rows of a window follow each
// other in the store as in the batch, so that without a transposition a window is one run of
// memory.
#pragma once

#include <type_traits>

#include "cuda/platform.cuh"

namespace tal_fast {

struct WindowShape {
  int64_t store_rows;  // R
  int64_t channels;    // C
  int64_t length;      // rows of a window in the batch
};

// The rows of a window that are in the store: [begin, end) of [0, length). All others are padding,
// also those that first_row and rows place outside the store: nothing else is ever read.
struct RealRows {
  int64_t first;  // row of the store for row 0 of the window; may be negative
  int64_t begin;
  int64_t end;
};

TAL_FAST_DEVICE RealRows real_rows(int64_t first, int64_t rows, WindowShape shape) {
  // Clamped first: sums of arbitrary numbers could overflow.
  first = first < -shape.length ? -shape.length : first;
  first = first > shape.store_rows ? shape.store_rows : first;
  const int64_t begin = first < 0 ? -first : 0;
  int64_t end = rows < shape.length ? rows : shape.length;
  end = end < shape.store_rows - first ? end : shape.store_rows - first;
  return {first, begin, end > begin ? end : begin};
}

template <typename Out, typename In>
TAL_FAST_DEVICE Out gathered(In value) {
  if constexpr (std::is_same_v<In, Out>) {
    return value;
  } else {
    return static_cast<Out>(widen(value));
  }
}

// kWidth elements per access: kPackSize<Out> where rows are aligned to it, else 1.
template <typename In, typename Out, int kWidth>
struct GatherWindows {
  static constexpr const char* kName = kWidth > 1 ? "gather_windows" : "gather_windows, general";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 6;
  static constexpr int kTurns = 4;  // loads in flight
  static constexpr int64_t kPerBlock = int64_t{kThreads} * kWidth * kTurns;

  const In* store;           // [R, C]
  const int64_t* first_row;  // [B]
  const int64_t* rows;       // [B]
  WindowShape shape;
  int64_t blocks_per_window;
  Out* out;    // [B, length, C]
  bool* mask;  // [B, length]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t b = blockIdx.x / blocks_per_window;
    const int64_t part = blockIdx.x % blocks_per_window;
    const RealRows real = real_rows(first_row[b], rows[b], shape);
    const int64_t size = shape.length * shape.channels;
    const int64_t begin = real.begin * shape.channels;
    const int64_t end = real.end * shape.channels;
    // Of row 0, which need not exist.
    const int64_t origin = real.first * shape.channels;
    const int64_t first = part * kPerBlock + int64_t{threadIdx.x} * kWidth;
    Pack<In, kWidth> loaded[kTurns];
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t i = first + int64_t{turn} * kThreads * kWidth;
      if (i >= begin && i < end) {
        loaded[turn] = load_pack<kWidth>(store + (origin + i));
      }
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t i = first + int64_t{turn} * kThreads * kWidth;
      if (i < size) {
        const bool exists = i >= begin && i < end;
        Pack<Out, kWidth> pack;
        for (int j = 0; j < kWidth; ++j) {
          pack[j] = exists ? gathered<Out>(loaded[turn][j]) : Out{};
        }
        store_pack<kWidth>(out + b * size + i, pack);
      }
    }
    for (int64_t t = part * kThreads + threadIdx.x; t < shape.length;
         t += blocks_per_window * kThreads) {
      mask[b * shape.length + t] = t < real.begin || t >= real.end;
    }
  }
};

// A block turns round one tile of rows and channels in shared memory. Where kPacked, rows of the
// store and of the output are aligned to packs: 8 lanes read 128 bytes of a row, and after the
// barrier write 128 bytes of a channel. The packs of a channel are exchanged by its number, so that
// neither side has a bank conflict.
template <typename In, typename Out, bool kPacked>
struct GatherWindowsTransposed {
  static constexpr const char* kName =
      kPacked ? "gather_windows transposed" : "gather_windows transposed, general";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;
  static constexpr int kWidth = kPackSize<Out>;
  static constexpr int kRowPacks = 8;
  static constexpr int kRows = kRowPacks * kWidth;
  static constexpr int kChannels = 128;
  static constexpr int kStride = kPacked ? kRows : kRows + 1;  // between channels
  static constexpr int kTile = kChannels * kStride;

  const In* store;           // [R, C]
  const int64_t* first_row;  // [B]
  const int64_t* rows;       // [B]
  WindowShape shape;
  int64_t row_tiles;
  int64_t channel_tiles;
  Out* out;    // [B, C, length]
  bool* mask;  // [B, length]

  static TAL_FAST_DEVICE int place(int channel, int row) {
    if constexpr (kPacked) {
      const int pack = (row / kWidth) ^ ((channel / kWidth) % kRowPacks);
      return channel * kStride + pack * kWidth + row % kWidth;
    } else {
      return channel * kStride + row;
    }
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<Out> tile = memory.take<Out>(kTile);
    const int64_t b = blockIdx.x / (row_tiles * channel_tiles);
    const int64_t within = blockIdx.x % (row_tiles * channel_tiles);
    const int64_t row0 = within / channel_tiles * kRows;
    const int64_t channel0 = within % channel_tiles * kChannels;
    const RealRows real = real_rows(first_row[b], rows[b], shape);
    Out* target = out + (b * shape.channels + channel0) * shape.length + row0;
    const int64_t channels = shape.channels - channel0;  // perhaps more than the tile has
    const int64_t length = shape.length - row0;
    if constexpr (kPacked) {
      read_packs(tile, real, row0, channel0, channels);
    } else {
      read(tile, real, row0, channel0, channels);
    }
    __syncthreads();
    if constexpr (kPacked) {
      for (int i = threadIdx.x; i < kChannels * kRowPacks; i += kThreads) {
        const int channel = i / kRowPacks;
        const int row = i % kRowPacks * kWidth;
        if (channel < channels && row < length) {
          store_pack<kWidth>(target + channel * shape.length + row,
                             tile.template load_pack<kWidth>(place(channel, row)));
        }
      }
    } else {
      for (int i = threadIdx.x; i < kChannels * kRows; i += kThreads) {
        const int channel = i / kRows;
        const int row = i % kRows;
        if (channel < channels && row < length) {
          target[channel * shape.length + row] = tile.load(place(channel, row));
        }
      }
    }
    if (channel0 == 0 && threadIdx.x < kRows && threadIdx.x < length) {
      const int64_t t = row0 + threadIdx.x;
      mask[b * shape.length + t] = t < real.begin || t >= real.end;
    }
  }

  // A warp takes 8 packs of 4 rows at a time.
  TAL_FAST_DEVICE void read_packs(Shared<Out> tile, RealRows real, int64_t row0, int64_t channel0,
                                  int64_t channels) const {
    constexpr int kGroups = kChannels / kWidth / 8;
    constexpr int kTurns = kChannels / kWidth * kRows / kThreads;
    constexpr int kWarps = kThreads / kWarp;
    Pack<In, kWidth> loaded[kTurns];
    for (int turn = 0; turn < kTurns; ++turn) {
      const int task = turn * kWarps + warp_index();
      const int channel = (task % kGroups * 8 + lane_index() % 8) * kWidth;
      const int64_t row = row0 + task / kGroups * 4 + lane_index() / 8;
      if (row >= real.begin && row < real.end && channel < channels) {
        loaded[turn] =
            load_pack<kWidth>(store + (real.first + row) * shape.channels + channel0 + channel);
      }
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      const int task = turn * kWarps + warp_index();
      const int channel = (task % kGroups * 8 + lane_index() % 8) * kWidth;
      const int row = task / kGroups * 4 + lane_index() / 8;
      const bool exists = row0 + row >= real.begin && row0 + row < real.end && channel < channels;
      for (int j = 0; j < kWidth; ++j) {
        tile.store(place(channel + j, row), exists ? gathered<Out>(loaded[turn][j]) : Out{});
      }
    }
  }

  TAL_FAST_DEVICE void read(Shared<Out> tile, RealRows real, int64_t row0, int64_t channel0,
                            int64_t channels) const {
    for (int i = threadIdx.x; i < kChannels * kRows; i += kThreads) {
      const int channel = i % kChannels;
      const int row = i / kChannels;
      Out value{};
      if (row0 + row >= real.begin && row0 + row < real.end && channel < channels) {
        value =
            gathered<Out>(store[(real.first + row0 + row) * shape.channels + channel0 + channel]);
      }
      tile.store(place(channel, row), value);
    }
  }
};

}  // namespace tal_fast
