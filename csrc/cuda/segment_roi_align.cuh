// SPDX-License-Identifier: Apache-2.0
// Kernels of segment_roi_align. A warp walks over the samples of a bin, its lanes hold channels:
// positions and weights are the same in all lanes, so nothing diverges, and every row is read or
// added to once per bin, in the order and with the weights of the CPU.
#pragma once

#include "cuda/platform.cuh"
#include "math/half.h"
#include "math/segment_roi_align.h"

namespace tal_fast {

// In elements.
struct RoiStrides {
  int64_t batch;
  int64_t channel;
  int64_t row;
};

// What a CPU refuses with an error.
template <typename Roi>
TAL_FAST_DEVICE bool is_valid_roi(const Roi* roi, int64_t batch, bool aligned) {
  const Roi index = roi[0];
  const Roi start = roi[1];
  const Roi end = roi[2];
  const auto limit = static_cast<Roi>(kMaxRoiPosition);
  return index >= Roi(0) && index < static_cast<Roi>(batch) &&
         index == static_cast<Roi>(static_cast<int64_t>(index)) && start >= -limit &&
         start <= limit && end >= -limit && end <= limit && (!aligned || end >= start);
}

// Whether bins [first, last) may read rows [begin, end); with a margin for rounding.
template <typename Roi>
TAL_FAST_DEVICE bool roi_touches(const RoiSampling<Roi>& sampling, int64_t first, int64_t last,
                                 int64_t begin, int64_t end) {
  const Roi from = sampling.base(first);
  const Roi to = sampling.base(last);
  const Roi margin =
      Roi(2) + Roi(1e-6) * ((from < Roi(0) ? -from : from) + (to < Roi(0) ? -to : to));
  return to + margin >= static_cast<Roi>(begin) && from - margin <= static_cast<Roi>(end);
}

// The sampling of a roi as a warp sees it: a lane computes the offset of one sample, which is the
// same in all bins.
template <typename T, typename Roi>
struct WarpSampling {
  RoiSampling<Roi> sampling;
  Roi offset;

  TAL_FAST_DEVICE WarpSampling(const Roi* roi, const RoiAlignShape& shape)
      : sampling(roi, shape), offset(0) {
    if (sampling.samples <= kWarp && lane_index() < sampling.samples) {
      offset = sampling.offset(lane_index());
    }
  }

  // Calls flush(row, weight) for the rows that a bin reads, rising. The samples of a bin touch most
  // rows more than once: the weights of the last two are summed before they are handed out.
  template <typename Flush>
  TAL_FAST_DEVICE void walk(int64_t bin, int64_t rows, Flush&& flush) const {
    int row0 = -1;
    int row1 = -1;
    T weight0 = T(0);
    T weight1 = T(0);
    const auto add = [&](int64_t wide_row, T weight) {
      const int row = static_cast<int>(wide_row);
      if (row == row1) {
        weight1 += weight;
      } else if (row == row0) {
        weight0 += weight;
      } else {
        if (row0 >= 0) {
          flush(row0, weight0);
        }
        row0 = row1;
        weight0 = weight1;
        row1 = row;
        weight1 = weight;
      }
    };
    const Roi base = sampling.base(bin);
    const T share = sampling.samples > 0 ? T(1) / static_cast<T>(sampling.samples) : T(0);
    const bool few = sampling.samples <= kWarp;
    const SampleRange range = few ? SampleRange{0, sampling.samples} : sampling.visible(base, rows);
    for (int64_t i = range.from; i < range.to; ++i) {
      const Roi within =
          few ? __shfl_sync(kAllLanes, offset, static_cast<int>(i)) : sampling.offset(i);
      place_sample(base + within, rows, share, add);
    }
    if (row0 >= 0) {
      flush(row0, weight0);
    }
    if (row1 >= 0) {
      flush(row1, weight1);
    }
  }
};

// kWidth values to or from shared memory in as few accesses as possible.
template <int kWidth, typename C>
TAL_FAST_DEVICE void store_values(Shared<C> target, int i, const C (&values)[kWidth]) {
  constexpr int kPart = kWidth < kPackSize<C> ? kWidth : kPackSize<C>;
  for (int j = 0; j < kWidth; j += kPart) {
    Pack<C, kPart> part;
    for (int l = 0; l < kPart; ++l) {
      part[l] = values[j + l];
    }
    target.template store_pack<kPart>(i + j, part);
  }
}

// A block makes some channels of one roi: a warp a bin at a time, into a tile that turns bins of
// channels into channels of bins. kPacked: channels of a row follow each other and are aligned.
template <typename T, typename Roi, bool kPacked>
struct RoiAlignForward {
  static constexpr const char* kName =
      kPacked ? "segment_roi_align forward" : "segment_roi_align forward, general";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = sizeof(Roi) == 8 ? 3 : 4;
  static constexpr int kWidth = kPacked ? kPackSize<T> : 1;  // channels of a lane
  static constexpr int kChannels = kWarp * kWidth;           // of a block

  using C = ComputeType<T>;
  // With a multiple of 32 banks all bins of a channel would lie in the same one.
  static constexpr int kStride = kChannels + (kPacked ? kPackSize<C> : 1);

  const T* features;  // [B, C, T], strided
  RoiStrides strides;
  const Roi* rois;  // [K, 3]
  RoiAlignShape shape;
  int64_t batch;
  int64_t chunks;  // of channels
  int bins;        // per turn
  bool packs;      // all bins in one turn, and outputs aligned to packs
  T* out;          // [K, C, R]

  static size_t shared_bytes(int bins) {
    SharedSize size;
    size.take<C>(bins * kStride);
    return size.bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<C> tile = memory.take<C>(bins * kStride);
    const int64_t k = blockIdx.x / chunks;
    const int64_t channel0 = blockIdx.x % chunks * kChannels;
    const int channels = static_cast<int>(
        shape.channels - channel0 < kChannels ? shape.channels - channel0 : kChannels);
    const Roi* roi = rois + 3 * k;
    const bool valid = is_valid_roi(roi, batch, shape.aligned);
    const WarpSampling<C, Roi> sampling(roi, shape);
    const int channel = lane_index() * kWidth;
    const bool active = channel < channels;
    const T* source = features + (valid ? static_cast<int64_t>(roi[0]) * strides.batch : 0) +
                      (channel0 + channel) * strides.channel;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int64_t first = 0; first < shape.bins; first += bins) {
      const int some = static_cast<int>(shape.bins - first < bins ? shape.bins - first : bins);
      for (int p = warp_index(); p < some; p += warps) {
        C sums[kWidth] = {};
        if (valid) {
          sampling.walk(first + p, shape.rows, [&](int row, C weight) {
            if (active) {
              const auto pack = load_pack<kWidth>(source + row * strides.row);
              for (int j = 0; j < kWidth; ++j) {
                sums[j] += weight * widen(pack[j]);
              }
            }
          });
        } else {
          for (int j = 0; j < kWidth; ++j) {
            sums[j] = static_cast<C>(bits_to_float(0x7fc00000u));
          }
        }
        if (active) {
          store_values<kWidth>(tile, p * kStride + channel, sums);
        }
      }
      __syncthreads();
      write(tile, (k * shape.channels + channel0) * shape.bins + first, channels, some);
      __syncthreads();
    }
  }

  TAL_FAST_DEVICE void write(Shared<C> tile, int64_t target, int channels, int some) const {
    constexpr int kOut = kPackSize<T>;
    const int step = static_cast<int>(blockDim.x);
    if (packs) {
      for (int i = static_cast<int>(threadIdx.x) * kOut; i < channels * some; i += step * kOut) {
        int c = i / some;
        int p = i % some;
        Pack<T, kOut> pack;
        for (int j = 0; j < kOut; ++j) {
          pack[j] = narrow<T>(tile.load(p * kStride + c));
          ++p;
          c = p == some ? c + 1 : c;
          p = p == some ? 0 : p;
        }
        store_pack<kOut>(out + target + i, pack);
      }
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < channels * some; i += step) {
        const int c = i / some;
        const int p = i % some;
        out[target + c * shape.bins + p] = narrow<T>(tile.load(p * kStride + c));
      }
    }
  }
};

// A block owns a slice of the rows of some channels of one item, a warp an eighth of the slice, a
// lane a few channels. The block finds the rois that touch its rows, 256 at a time, and goes
// through them in rising order: every sum is made in the order of the CPU.
template <typename T, typename Roi>
struct RoiAlignBackward {
  static constexpr const char* kName = "segment_roi_align backward";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = sizeof(Roi) == 8 ? 2 : 3;
  static constexpr int kWarps = kThreads / kWarp;

  using C = ComputeType<T>;
  static constexpr int kWidth = kPackSize<C>;
  static constexpr int kChannels = kWarp * kWidth;
  static constexpr int kStride = kChannels + kWidth;

  const T* grad;    // [K, C, R]
  const Roi* rois;  // [K, 3]
  int64_t count;    // K
  RoiAlignShape shape;
  int64_t batch;
  int slice;  // rows of a block, a multiple of kWarps
  int64_t slices;
  int64_t chunks;    // of channels
  int bins;          // per turn
  bool grad_packs;   // all bins in one turn, and gradients aligned to packs
  bool packs;        // channels of a row are aligned to packs
  T* grad_features;  // [B, T, C]

  static SharedSize shared_size(int64_t slice, int bins) {
    SharedSize size;
    size.take<int64_t>(kThreads);
    size.take<int32_t>(kWarps);
    size.take<C>(bins * kStride);
    size.take<C>(slice * kChannels);
    return size;
  }

  struct Place {
    int64_t row0;
    int64_t channel0;
    int channels;
  };

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int64_t> found = memory.take<int64_t>(kThreads);
    const Shared<int32_t> counts = memory.take<int32_t>(kWarps);
    const Shared<C> tile = memory.take<C>(bins * kStride);
    const Shared<C> sums = memory.take<C>(slice * kChannels);
    const int64_t chunk = blockIdx.x % chunks;
    const int64_t item = blockIdx.x / chunks / slices;
    const int64_t channel0 = chunk * kChannels;
    const Place place{
        blockIdx.x / chunks % slices * slice, channel0,
        static_cast<int>(shape.channels - channel0 < kChannels ? shape.channels - channel0
                                                               : kChannels)};
    const int own = slice / kWarps;
    const int own_begin = warp_index() * own;
    const int channel = lane_index() * kWidth;
    for (int t = own_begin; t < own_begin + own; ++t) {
      sums.template store_pack<kWidth>(t * kChannels + channel, Pack<C, kWidth>{});
    }
    // Channels beyond the last one complete its pack.
    for (int i = static_cast<int>(threadIdx.x); i < bins * kWidth; i += kThreads) {
      const int c = place.channels + i % kWidth;
      if (c < kChannels) {
        tile.store(i / kWidth * kStride + c, C(0));
      }
    }
    for (int64_t first = 0; first < count; first += kThreads) {
      const int some = find(first, item, place.row0, found, counts);
      for (int m = 0; m < some; ++m) {
        add_roi(found.load(m), place, own_begin, tile, sums);
      }
      // The next search overwrites the list.
      __syncthreads();
    }
    write(item, place, own_begin, sums);
  }

  // Lists the rois of [first, first + 256) that may touch the block's rows, rising, and returns
  // their number.
  TAL_FAST_DEVICE int find(int64_t first, int64_t item, int64_t row0, Shared<int64_t> found,
                           Shared<int32_t> counts) const {
    const int64_t k = first + threadIdx.x;
    bool hit = false;
    if (k < count) {
      const Roi* roi = rois + 3 * k;
      if (is_valid_roi(roi, batch, shape.aligned) && static_cast<int64_t>(roi[0]) == item) {
        hit = roi_touches(RoiSampling<Roi>(roi, shape), 0, shape.bins, row0, row0 + slice);
      }
    }
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    if (lane_index() == 0) {
      counts.store(warp_index(), __popc(hits));
    }
    __syncthreads();
    int before = 0;
    int all = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int some = counts.load(w);
      before += w < warp_index() ? some : 0;
      all += some;
    }
    if (hit) {
      found.store(before + __popc(hits & ((1u << lane_index()) - 1u)), k);
    }
    __syncthreads();
    return all;
  }

  TAL_FAST_DEVICE void add_roi(int64_t k, Place place, int own_begin, Shared<C> tile,
                               Shared<C> sums) const {
    const WarpSampling<C, Roi> sampling(rois + 3 * k, shape);
    const int64_t begin = place.row0 + own_begin;
    const int64_t end = begin + slice / kWarps;
    const int channel = lane_index() * kWidth;
    const bool active = channel < place.channels;
    for (int64_t first = 0; first < shape.bins; first += bins) {
      const int some = static_cast<int>(shape.bins - first < bins ? shape.bins - first : bins);
      read(tile, (k * shape.channels + place.channel0) * shape.bins + first, place.channels, some);
      __syncthreads();
      for (int p = 0; p < some; ++p) {
        if (!roi_touches(sampling.sampling, first + p, first + p + 1, begin, end)) {
          continue;
        }
        Pack<C, kWidth> part{};
        if (active) {
          part = tile.template load_pack<kWidth>(p * kStride + channel);
        }
        sampling.walk(first + p, shape.rows, [&](int64_t row, C weight) {
          if (active && row >= begin && row < end) {
            const int at = static_cast<int>(row - place.row0) * kChannels + channel;
            auto sum = sums.template load_pack<kWidth>(at);
            for (int j = 0; j < kWidth; ++j) {
              sum[j] += weight * part[j];
            }
            sums.template store_pack<kWidth>(at, sum);
          }
        });
      }
      __syncthreads();
    }
  }

  // Channels of bins become bins of channels.
  TAL_FAST_DEVICE void read(Shared<C> tile, int64_t source, int channels, int some) const {
    constexpr int kIn = kPackSize<T>;
    if (grad_packs) {
      for (int i = static_cast<int>(threadIdx.x) * kIn; i < channels * some; i += kThreads * kIn) {
        const auto pack = load_pack<kIn>(grad + source + i);
        int c = i / some;
        int p = i % some;
        for (int j = 0; j < kIn; ++j) {
          tile.store(p * kStride + c, widen(pack[j]));
          ++p;
          c = p == some ? c + 1 : c;
          p = p == some ? 0 : p;
        }
      }
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < channels * some; i += kThreads) {
        const int c = i / some;
        const int p = i % some;
        tile.store(p * kStride + c, widen(grad[source + c * shape.bins + p]));
      }
    }
  }

  // A warp's own rows: no barrier.
  TAL_FAST_DEVICE void write(int64_t item, Place place, int own_begin, Shared<C> sums) const {
    const int channel = lane_index() * kWidth;
    for (int t = own_begin; t < own_begin + slice / kWarps; ++t) {
      const int64_t row = place.row0 + t;
      if (row >= shape.rows || channel >= place.channels) {
        continue;
      }
      const auto sum = sums.template load_pack<kWidth>(t * kChannels + channel);
      T* target =
          grad_features + (item * shape.rows + row) * shape.channels + place.channel0 + channel;
      if (packs) {
        Pack<T, kWidth> pack;
        for (int j = 0; j < kWidth; ++j) {
          pack[j] = narrow<T>(sum[j]);
        }
        store_pack<kWidth>(target, pack);
      } else {
        for (int j = 0; j < kWidth && channel + j < place.channels; ++j) {
          target[j] = narrow<T>(sum[j]);
        }
      }
    }
  }
};

// [B, C, T] -> [B, T, C] in tiles whose sides are 128 bytes.
template <typename T>
struct RoiAlignTranspose {
  static constexpr const char* kName = "segment_roi_align transpose";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 6;
  static constexpr int kSide = 128 / static_cast<int>(sizeof(T));
  static constexpr int kTile = kSide * (kSide + 1);

  const T* features;  // [B, C, T], the rows of a channel one after the other
  int64_t batch_stride;
  int64_t channel_stride;
  int64_t channels;
  int64_t rows;
  int64_t channel_tiles;
  int64_t row_tiles;
  T* out;  // [B, T, C]

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<T> tile = memory.take<T>(kTile);
    const int64_t channel0 = blockIdx.x % channel_tiles * kSide;
    const int64_t row0 = blockIdx.x / channel_tiles % row_tiles * kSide;
    const int64_t b = blockIdx.x / channel_tiles / row_tiles;
    for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kThreads) {
      const int64_t c = channel0 + i / kSide;
      const int64_t t = row0 + i % kSide;
      if (c < channels && t < rows) {
        tile.store(i / kSide * (kSide + 1) + i % kSide,
                   features[b * batch_stride + c * channel_stride + t]);
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kThreads) {
      const int64_t c = channel0 + i % kSide;
      const int64_t t = row0 + i / kSide;
      if (c < channels && t < rows) {
        out[(b * rows + t) * channels + c] = tile.load(i % kSide * (kSide + 1) + i / kSide);
      }
    }
  }
};

}  // namespace tal_fast
