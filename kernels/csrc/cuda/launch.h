// The CUDA half of the operator behind raw pointers: no torch header, no CUDA header.
#pragma once
#include "../problem.h"

#include <cstddef>
#include <cstdint>

namespace elsa::cuda {

enum class Type { f32, f64, f16, bf16 };

// Contiguous tensors of `Problem`; value and logits in the storage type, ghosts in the accumulation type or null.
struct Inputs {
  const void *value, *logits, *ghost_mul, *ghost_add;
};
struct Gradients {
  void *value, *logits, *ghost_mul, *ghost_add;  // the ghosts' may be null
};

// Bytes of scratch memory that `backward` needs: one number per position and head, and partial sums of the ghost
// gradients that are bounded by `kPartialBytes` (or by one copy of them where that alone is larger).
constexpr size_t kPartialBytes = size_t(8) << 20;
size_t workspace_bytes(const Problem& problem, Type type, bool ghost_mul, bool ghost_add);

// Both enqueue on `stream` (a cudaStream_t) and return null, or CUDA's description of what went wrong.
const char* forward(const Problem& problem, Type type, const Inputs& in, void* out, void* stream);
const char* backward(const Problem& problem, Type type, const void* grad_out, const Inputs& in, const Gradients& grads,
                     void* workspace, void* stream);

}  // namespace elsa::cuda
