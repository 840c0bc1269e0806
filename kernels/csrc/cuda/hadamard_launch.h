// The CUDA half of the Hadamard convolution behind raw pointers: no torch header, no CUDA header.
#pragma once
#include "launch.h"

namespace elsa::cuda {

// Contiguous tensors of `HadamardProblem`, all in the storage type; what may be absent is null then.
struct HadamardInputs {
  const void *packed, *weight, *bias;
  double scale;
};
struct HadamardOutputs {
  void *local, *before;  // `before` may be absent
};
struct HadamardSaved {
  const void *grad_local, *grad_rest, *before;  // `grad_rest` may be absent
};
struct HadamardGradients {
  void *packed, *weight, *bias;
};

// Bytes of scratch memory that the backward pass needs: partial sums, bounded by `kPartialBytes` or one copy of them.
size_t hadamard_workspace_bytes(const HadamardProblem& problem, Type type);

// Both enqueue on `stream` (a cudaStream_t) and return null, or CUDA's description of what went wrong.
const char* hadamard_forward(const HadamardProblem& problem, Type type, const HadamardInputs& in,
                             const HadamardOutputs& out, void* stream);
const char* hadamard_backward(const HadamardProblem& problem, Type type, const HadamardInputs& in,
                              const HadamardSaved& saved, const HadamardGradients& grads, void* workspace,
                              void* stream);

}  // namespace elsa::cuda
