// SPDX-License-Identifier: Apache-2.0
// How the lanes of a warp share the channels of value's rows (in shared or in global memory) and
// the samples of a query, for all kernels of deformable attention.
#pragma once

#include "cuda/deform_attn_samples.cuh"

namespace tal_fast {

// ---- channels -----------------------------------------------------------------------------------

// kPackSize<T> channels of a row, those from the `available`th on zero. `aligned`: rows are whole
// packs, each aligned to its size.
template <typename T>
TAL_FAST_DEVICE Pack<T, kPackSize<T>> load_channels(const T* source, int64_t available,
                                                    bool aligned) {
  constexpr int N = kPackSize<T>;
  if (aligned && available >= N) {
    return load_pack<N>(source);
  }
  Pack<T, N> pack;
  for (int i = 0; i < N; ++i) {
    pack[i] = i < available ? source[i] : T{};
  }
  return pack;
}

template <typename T>
TAL_FAST_DEVICE void store_channels(T* target, const Pack<T, kPackSize<T>>& pack, int64_t available,
                                    bool aligned) {
  constexpr int N = kPackSize<T>;
  if (aligned && available >= N) {
    store_pack<N>(target, pack);
    return;
  }
  for (int i = 0; i < N; ++i) {
    if (i < available) {
      target[i] = pack[i];
    }
  }
}

// ---- rows of value ------------------------------------------------------------------------------

// The rows of one head (or of a slice of its channels) in shared memory behind a row of zeros,
// which stands for every row outside a level: no sample needs a branch. Padded rows are zeros
// themselves. The taps of a sample are neighbours, together one run of 2 * width elements.
template <typename T>
struct StagedRows {
  using Row = int32_t;
  static constexpr Row kNone = 0;

  Shared<T> memory;  // [1 + S, width]
  int width;         // whole packs

  TAL_FAST_DEVICE Row find(const Level& level, int32_t row) const {
    return row >= 0 && row < level.length ? static_cast<Row>(1 + level.start) + row : kNone;
  }
  TAL_FAST_DEVICE Pack<T, kPackSize<T>> load(Row row, int column) const {
    return memory.template load_pack<kPackSize<T>>(row * width + column);
  }

  // To be followed by wait_for_copies() and a barrier. `source` points to the slice's first channel
  // of row 0, `channels` is how many there are from there on.
  TAL_FAST_DEVICE void stage(const T* source, int64_t stride, const bool* padding, int rows,
                             int64_t channels, bool aligned) const {
    constexpr int N = kPackSize<T>;
    const int packs = width / N;
    const int count = (rows + 1) * packs;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
      const int row = i / packs - 1;
      const int column = i % packs * N;
      if (row < 0 || (padding != nullptr && padding[row])) {
        memory.template store_pack<N>(i * N, Pack<T, N>{});
        continue;
      }
      const T* from = source + row * stride + column;
      if (aligned && column < channels) {
        memory.copy_async(i * N, from);
      } else {
        memory.template store_pack<N>(i * N, load_channels(from, channels - column, false));
      }
    }
  }
};

// The same where they are in global memory.
template <typename T>
struct GlobalRows {
  using Row = int32_t;
  static constexpr Row kNone = -1;

  const T* source;  // the slice's first channel of row 0
  int64_t stride;
  const bool* padding;  // [S] or null
  int64_t channels;
  bool aligned;

  TAL_FAST_DEVICE Row find(const Level& level, int32_t row) const {
    if (row < 0 || row >= level.length) {
      return kNone;
    }
    const Row found = static_cast<Row>(level.start) + row;
    return padding != nullptr && padding[found] ? kNone : found;
  }
  TAL_FAST_DEVICE Pack<T, kPackSize<T>> load(Row row, int column) const {
    if (row == kNone) {
      return Pack<T, kPackSize<T>>{};
    }
    return load_channels(source + row * stride + column, channels - column, aligned);
  }
};

// ---- lanes --------------------------------------------------------------------------------------

// A query (of one head) is worked on by 2 * count neighbouring lanes: `count` lanes, each with one
// pack of channels, for the left taps of its samples and as many for the right taps. So a load of
// shared memory by these lanes is one run without bank conflicts from 128 bytes on, and as many
// loads are in flight as samples are unrolled.
struct Lanes {
  int log2;
  int count;   // 1, 2, 4 or 8
  int index;   // among the lanes of its side
  int side;    // 0: left taps, 1: right taps
  int group;   // of the block
  int groups;  // per block

  TAL_FAST_DEVICE explicit Lanes(int log2_)
      : log2(log2_),
        count(1 << log2_),
        index(static_cast<int>(threadIdx.x) & ((1 << log2_) - 1)),
        side(static_cast<int>(threadIdx.x) >> log2_ & 1),
        group(static_cast<int>(threadIdx.x) >> (log2_ + 1)),
        groups(static_cast<int>(blockDim.x) >> (log2_ + 1)) {}

  // Over the lanes of a side, always in the same order.
  template <typename C>
  TAL_FAST_DEVICE C sum(C value) const {
    for (int offset = count / 2; offset > 0; offset /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, offset);
    }
    return value;
  }
};

// A sample as read.
template <typename Source>
struct FetchedSample {
  bool exists;
  Level level;
  typename Source::Raw raw;
};

template <typename Source>
TAL_FAST_DEVICE FetchedSample<Source> fetch_sample(const DeformAttnSizes& sizes,
                                                   const Levels& levels, const Source& source,
                                                   const QuerySamples& query, int k) {
  if (k >= sizes.samples) {
    return {};
  }
  const int l = k / sizes.points;
  return {true, levels.get(l), source.fetch(query, k, l)};
}

// The same, prepared for the side that its lane is on.
template <typename C, typename Rows>
struct PreparedSample {
  typename Rows::Row row;  // of the side's tap
  C share;                 // the side's part of the weight
  C weight;
  C fraction;
  C length;  // of its level
  C scale;   // d location / d offset
};

// `kByParity`: the sides are not the left and the right taps, but those in even and in odd rows.
template <typename C, bool kByParity, typename Source, typename Rows>
TAL_FAST_DEVICE PreparedSample<C, Rows> prepare_sample(const Source& source, const Rows& rows,
                                                       const Lanes& lanes,
                                                       const FetchedSample<Source>& fetched,
                                                       const Softmax<C>& softmax) {
  if (!fetched.exists) {
    return {Rows::kNone, C(0), C(0), C(0), C(0), C(0)};
  }
  const C length = static_cast<C>(fetched.level.length);
  const Position<C> position = position_at(source.location(fetched.raw, length), length);
  const C weight = source.weight(fetched.raw, softmax);
  const C right = weight * position.fraction;
  const int first_row = static_cast<int>(fetched.level.start);
  const int side = kByParity ? (first_row + position.tap + lanes.side) & 1 : lanes.side;
  return {rows.find(fetched.level, position.tap + side),
          side == 0 ? weight - right : right,
          weight,
          position.fraction,
          length,
          source.scale(fetched.raw, length)};
}

}  // namespace tal_fast
