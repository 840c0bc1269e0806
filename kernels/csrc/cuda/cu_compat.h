// What every kernel source includes: real CUDA under nvcc, under any other compiler the emulator that the tests put
// on the include path (tests/kernels/emu).
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define CU_LAUNCH(kernel, grid, block, smem, stream, ...) kernel<<<grid, block, smem, stream>>>(__VA_ARGS__)
#define CU_SHARED(T, name, dims) __shared__ T name dims

// Hands out a block's dynamic shared memory piece by piece; under emulation every piece is guarded on both sides.
struct SharedMemory {
  unsigned char* next;
  template <typename T>
  __device__ __forceinline__ T* take(size_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += count * sizeof(T);
    return piece;
  }
};
#define CU_DYNAMIC_SHARED(name)                                 \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  SharedMemory name {                                           \
    name##_bytes                                                \
  }

#else

#include "cuemu.h"

#endif
