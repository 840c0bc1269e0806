// Second stage of the parameters' gradients: adds the blocks' partial sums in a fixed order.
#pragma once
#include "types.cuh"

#include <cstdint>

namespace elsa::cuda {

constexpr int kReduceColumns = 32, kReduceGroups = 8;

// out[n] = Σ_slot partial[slot · stride + n]; a block owns 32 columns, eight groups share the slots.
template <typename T>
__global__ void __launch_bounds__(kReduceColumns* kReduceGroups)
    reduce_kernel(const Acc<T>* __restrict__ partial, T* __restrict__ out, int64_t count, int64_t stride, int slots) {
  using A = Acc<T>;
  CU_SHARED(A, sums, [kReduceGroups][kReduceColumns]);
  const int column = threadIdx.x % kReduceColumns, group = threadIdx.x / kReduceColumns;
  const int64_t n = int64_t(blockIdx.x) * kReduceColumns + column;
  A sum = 0;
  if (n < count) {
#pragma unroll 4
    for (int slot = group; slot < slots; slot += kReduceGroups) sum += partial[slot * stride + n];
  }
  sums[group][column] = sum;
  __syncthreads();
  if (group == 0 && n < count) {
    sum = 0;
#pragma unroll
    for (int g = 0; g < kReduceGroups; ++g) sum += sums[g][column];
    out[n] = store<T>(sum);
  }
}

}  // namespace elsa::cuda
