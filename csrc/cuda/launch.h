// SPDX-License-Identifier: Apache-2.0
// How ops reach a GPU: device, stream, limits and launches. The emulated build
// (tests/cuda_emulator) compiles the same launchers and registers them for CPU tensors in a library
// of its own.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "cuda/platform.cuh"
#include "ops/tensor_checks.h"

#if defined(__CUDACC__)
#include <torch/csrc/stable/accelerator.h>

#include <atomic>

// Ranges for profilers; not every toolkit brings the header.
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define TAL_FAST_NVTX 1
#endif
#else
#include <cstdlib>
#include <cstring>
#include <typeinfo>
#endif

// TAL_FAST_CUDA_IMPL(m) { m.impl("segment_iou", TORCH_BOX(&segment_iou_cuda)); }
#if defined(__CUDACC__)
#define TAL_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(tal_fast, CUDA, m)
#elif defined(TAL_FAST_COUNTED)
#define TAL_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(tal_fast_counted, CPU, m)
#else
#define TAL_FAST_CUDA_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(tal_fast_emulated, CPU, m)
#endif

namespace tal_fast {

// What the choice between kernels may depend on.
struct DeviceLimits {
  int multiprocessors;
  size_t shared_per_block;           // bytes, the opt-in maximum
  size_t shared_per_multiprocessor;  // bytes
};

#if defined(__CUDACC__)

inline void check_cuda(cudaError_t status, const char* what) {
  TAL_FAST_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

// Makes the tensor's device current while it lives, and knows the stream to launch on.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  int32_t device() const { return device_; }

  // Asked once per device and thread: ops ask in every call.
  const DeviceLimits& limits() const {
    thread_local int32_t known_device = -1;
    thread_local DeviceLimits known = {};
    if (known_device != device_) {
      const auto read = [&](cudaDeviceAttr attribute) {
        int value = 0;
        check_cuda(cudaDeviceGetAttribute(&value, attribute, device_), "cudaDeviceGetAttribute");
        return value;
      };
      known = {read(cudaDevAttrMultiProcessorCount),
               static_cast<size_t>(read(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
               static_cast<size_t>(read(cudaDevAttrMaxSharedMemoryPerMultiprocessor))};
      known_device = device_;
    }
    return known;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    kernel_entry(const __grid_constant__ Kernel kernel) {
  kernel();
}

// Lets blocks of a kernel have all the shared memory that the device gives; without asking they get
// at most 48 KiB. Once per kernel and device, and never less: a size that changed from launch to
// launch could be another thread's, or that of another launch in the same graph.
template <typename Kernel>
cudaError_t allow_shared_memory(const DeviceScope& scope) {
  constexpr int32_t kKnown = 64;
  static std::atomic<uint64_t> asked{0};  // a bit per device
  const int32_t device = scope.device();
  const uint64_t bit = device < kKnown ? uint64_t{1} << device : 0;
  if ((asked.load(std::memory_order_acquire) & bit) != 0) {
    return cudaSuccess;
  }
  const cudaError_t status =
      cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(scope.limits().shared_per_block));
  if (status == cudaSuccess) {
    asked.fetch_or(bit, std::memory_order_release);
  }
  return status;
}

// Runs `kernel` on the scope's stream. Blocks are one-dimensional; the grid has no empty dimension.
template <typename Kernel>
void launch(const DeviceScope& scope, dim3 grid, int threads, size_t shared_bytes,
            const Kernel& kernel) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  const auto check = [&](cudaError_t status) {
    TAL_FAST_CHECK(status == cudaSuccess, Kernel::kName, ": launch of ", grid.x, " x ", grid.y,
                   " x ", grid.z, " blocks of ", threads, " threads with ", shared_bytes,
                   " bytes of shared memory: ", cudaGetErrorString(status));
  };
  if (shared_bytes > kWithoutAsking) {
    check(allow_shared_memory<Kernel>(scope));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = scope.stream();
#if defined(TAL_FAST_NVTX)
  nvtxRangePushA(Kernel::kName);
#endif
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel_entry<Kernel>, kernel);
#if defined(TAL_FAST_NVTX)
  nvtxRangePop();
#endif
  check(status);
}

// Copies from the GPU to the host and waits for it: the only place where the library does. For what
// an op's outputs cannot be allocated without.
inline void read_back(const DeviceScope& scope, const char* op, const void* device, size_t bytes,
                      void* host) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(scope.stream(), &status), "cudaStreamIsCapturing");
  TAL_FAST_CHECK(status == cudaStreamCaptureStatusNone, op,
                 ": expected no CUDA graph capture, since the host must read the size of the "
                 "result; use ",
                 op, "_padded, whose outputs have a fixed size");
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, scope.stream()), op);
  check_cuda(cudaStreamSynchronize(scope.stream()), op);
}

#else

class DeviceScope {
 public:
  explicit DeviceScope(const Tensor&) {}

  // Those of an H100; TAL_FAST_EMULATED_SHARED=bytes makes it a smaller device, so that tests reach
  // the kernels for what does not fit.
  DeviceLimits limits() const {
    const char* bytes = std::getenv("TAL_FAST_EMULATED_SHARED");
    const size_t shared = bytes != nullptr ? std::strtoull(bytes, nullptr, 10) : 227 * 1024;
    return {132, shared, 228 * 1024};
  }
};

template <typename Kernel>
void launch(const DeviceScope&, dim3 grid, int threads, size_t shared_bytes, const Kernel& kernel) {
  emulator::launch(Kernel::kName, typeid(Kernel).name(), {Kernel::kThreads, Kernel::kBlocks}, grid,
                   dim3(static_cast<unsigned>(threads)), shared_bytes, sizeof(Kernel),
                   [&kernel] { kernel(); });
}

inline void read_back(const DeviceScope&, const char*, const void* device, size_t bytes,
                      void* host) {
  std::memcpy(host, device, bytes);
}

#endif

// An output or a workspace. The emulator fills it with NaN, so that what a kernel forgets to write
// shows.
inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  Tensor tensor = empty_beside(like, sizes, type);
#if !defined(__CUDACC__)
  emulator::poison(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel()) *
                                                  static_cast<size_t>(tensor.element_size()));
#endif
  return tensor;
}

inline Tensor allocate(const Tensor& like, const std::vector<int64_t>& sizes) {
  return allocate(like, sizes, like.scalar_type());
}

inline int64_t ceil_div(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace tal_fast
