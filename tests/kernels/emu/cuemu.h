// Runs CUDA C++ kernels on the CPU, for correctness tests only (GCC or Clang, C++20, Linux).
//
// Included by kernels/csrc/cuda/cu_compat.h where nvcc is not the compiler. One CUDA thread is one fiber; blocks run one after
// another. What this shows and what it cannot show is in docs/cuda.md.
#pragma once
#include "halves.h"
#include "scheduler.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>

// ---- language ----
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::cuemu::machine().current->index)
#define blockIdx (::cuemu::machine().block_index)
#define blockDim (::cuemu::machine().block_size)
#define gridDim (::cuemu::machine().grid_size)

#define CUEMU_WIDTH(w, ...) (w)
#define CUEMU_OR_32(...) CUEMU_WIDTH(__VA_ARGS__ __VA_OPT__(, ) 32)
#define __syncthreads() ((void)::cuemu::barrier(__LINE__))
#define __syncthreads_count(p) (int(::cuemu::barrier(__LINE__, (p))))
#define __shfl_sync(m, v, s, ...) ::cuemu::shuffle(m, v, ::cuemu::source_index(s, CUEMU_OR_32(__VA_ARGS__)), __LINE__)
#define __shfl_down_sync(m, v, d, ...) \
  ::cuemu::shuffle(m, v, ::cuemu::source_down(d, CUEMU_OR_32(__VA_ARGS__)), __LINE__)
#define __shfl_up_sync(m, v, d, ...) ::cuemu::shuffle(m, v, ::cuemu::source_up(d, CUEMU_OR_32(__VA_ARGS__)), __LINE__)
#define __shfl_xor_sync(m, v, d, ...) ::cuemu::shuffle(m, v, ::cuemu::source_xor(d, CUEMU_OR_32(__VA_ARGS__)), __LINE__)
#define __ballot_sync(m, p) ::cuemu::ballot(m, p, __LINE__)
#define __syncwarp() ((void)::cuemu::meet_warp(0xffffffffu, __LINE__, 0, true))

// ---- what cu_compat.h promises ----
#define CU_LAUNCH(kernel, grid, block, smem, stream, ...) \
  ::cuemu::launch(kernel, grid, block, smem, stream, __VA_ARGS__)
#define CU_SHARED(T, name, dims) \
  typedef T name##_type dims;    \
  static char name##_key;        \
  name##_type& name = *static_cast<name##_type*>(::cuemu::shared_piece(&name##_key, sizeof(name##_type)))

struct SharedMemory {
  size_t used = 0, pieces = 0;
  template <typename T>
  T* take(size_t count) {
    static char keys[cuemu::kPieces];
    const size_t offset = used;
    used += count * sizeof(T);
    if (used > cuemu::machine().dynamic_bytes) cuemu::fail("more dynamic shared memory used than launched with");
    return static_cast<T*>(cuemu::shared_piece(&keys[pieces++], count * sizeof(T), offset));
  }
};
#define CU_DYNAMIC_SHARED(name) SharedMemory name

// ---- runtime ----
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

template <class Kernel>  // in force for the next launch
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || size_t(bytes) > cuemu::kSharedLimit) return cudaErrorInvalidValue;
  cuemu::machine().allowed_bytes = size_t(bytes);
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75 };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* text = std::getenv("CUEMU_CAPABILITY");  // the first digit of an older device's
  *value = text ? std::atoi(text) : 8;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}  // the emulator throws instead
inline const char* cudaGetErrorString(cudaError_t error) {
  return error ? "invalid argument" : "no error";
}
