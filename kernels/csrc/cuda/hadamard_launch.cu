// From a type known at run time to the launch code of that type, for the Hadamard convolution.
#include "hadamard_launch.h"
#include "with_type.h"

namespace elsa::cuda {

template <typename T>
const char* hadamard_forward_typed(const HadamardProblem& p, const HadamardInputs& in, const HadamardOutputs& out,
                                   void* stream);
template <typename T>
const char* hadamard_backward_typed(const HadamardProblem& p, const HadamardInputs& in, const HadamardSaved& saved,
                                    const HadamardGradients& grads, void* workspace, void* stream);
template <typename T>
size_t hadamard_workspace_typed(const HadamardProblem& p);

size_t hadamard_workspace_bytes(const HadamardProblem& p, Type type) {
  return with_type(type, [&](auto tag) { return hadamard_workspace_typed<typename decltype(tag)::type>(p); });
}

const char* hadamard_forward(const HadamardProblem& p, Type type, const HadamardInputs& in, const HadamardOutputs& out,
                             void* stream) {
  return with_type(
      type, [&](auto tag) { return hadamard_forward_typed<typename decltype(tag)::type>(p, in, out, stream); });
}

const char* hadamard_backward(const HadamardProblem& p, Type type, const HadamardInputs& in, const HadamardSaved& saved,
                              const HadamardGradients& grads, void* workspace, void* stream) {
  return with_type(type, [&](auto tag) {
    return hadamard_backward_typed<typename decltype(tag)::type>(p, in, saved, grads, workspace, stream);
  });
}

}  // namespace elsa::cuda
