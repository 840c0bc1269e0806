// The instructions of the tensor cores that the Hadamard convolution uses, in the layout that the PTX manual gives
// (chapters "mma.m16n8k16", "mma.m16n8k8" and "ldmatrix"). Under the emulator: tests/kernels/emu/tensor.h.
//
// With lane = 4·g + t a lane holds, for D = A·B + D of 16 × K by K × 8:
//   a[0], a[1]: A[g][2t, 2t+1], A[g+8][2t, 2t+1]; a[2], a[3]: the same 8 columns on;
//   b[0]: B[2t, 2t+1][g]; b[1]: the same 8 rows on; d: D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1].
#pragma once
#include "types.cuh"

#include <cstdint>

#ifdef __CUDACC__

namespace elsa::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define ELSA_TENSOR_CORES(...) __VA_ARGS__
#else
#define ELSA_TENSOR_CORES(...) __trap()  // the launch code does not come here
#endif

#define ELSA_MMA_K16(type)                                                                             \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "     \
      "{%8,%9}, {%0,%1,%2,%3};"                                                                        \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define ELSA_MMA_K8(type)                                                                              \
  asm("mma.sync.aligned.m16n8k8.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "      \
      "{%0,%1,%2,%3};"                                                                                 \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(b[0]))

// d += A·B; two registers of A and one of B for every 8 of K.
template <typename T, int K>
__device__ __forceinline__ void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b) {
  static_assert(sizeof(T) == 2 && (K == 8 || K == 16), "half precision, 8 or 16 deep");
  constexpr bool kHalf = std::is_same<T, __half>::value;
  if constexpr (kHalf && K == 16) ELSA_TENSOR_CORES(ELSA_MMA_K16("f16"));
  if constexpr (kHalf && K == 8) ELSA_TENSOR_CORES(ELSA_MMA_K8("f16"));
  if constexpr (!kHalf && K == 16) ELSA_TENSOR_CORES(ELSA_MMA_K16("bf16"));
  if constexpr (!kHalf && K == 8) ELSA_TENSOR_CORES(ELSA_MMA_K8("bf16"));
}

#define ELSA_LDMATRIX_2(trans)                                                                   \
  asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0,%1}, [%2];"                \
               : "=r"(to[0]), "=r"(to[1])                                                        \
               : "r"(address)                                                                    \
               : "memory")
#define ELSA_LDMATRIX_4(trans)                                                                   \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0,%1,%2,%3}, [%4];"          \
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])                              \
               : "r"(address)                                                                    \
               : "memory")

// COUNT matrices of 8 × 8 from shared memory: lane 8·n + i names row i of matrix n, 16 bytes at an aligned address.
// Matrix n lands in to[n] as A's and B's do above: [g][2t, 2t+1], or TRANSPOSED [2t, 2t+1][g].
template <int COUNT, bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t* to, const void* row) {
  static_assert(COUNT == 2 || COUNT == 4, "two or four at a time");
  [[maybe_unused]] const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (COUNT == 4 && !TRANSPOSED) ELSA_TENSOR_CORES(ELSA_LDMATRIX_4(""));
  if constexpr (COUNT == 4 && TRANSPOSED) ELSA_TENSOR_CORES(ELSA_LDMATRIX_4(".trans"));
  if constexpr (COUNT == 2 && !TRANSPOSED) ELSA_TENSOR_CORES(ELSA_LDMATRIX_2(""));
  if constexpr (COUNT == 2 && TRANSPOSED) ELSA_TENSOR_CORES(ELSA_LDMATRIX_2(".trans"));
}

}  // namespace elsa::cuda

#else

#include "tensor.h"

namespace elsa::cuda {
using cuemu::load_matrices;
using cuemu::multiply_matrices;
}  // namespace elsa::cuda

#endif
