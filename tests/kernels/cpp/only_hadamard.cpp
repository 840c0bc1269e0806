// Stands in for the storage types of the Hadamard convolution that a build leaves out, all but ELSA_PRESENT (float or
// __half): seeded faults are compiled for one type.
#include "../../../kernels/csrc/cuda/cu_compat.h"
#include "../../../kernels/csrc/cuda/hadamard_launch.h"

#include <type_traits>

namespace elsa::cuda {

template <typename T>
const char* hadamard_forward_typed(const HadamardProblem&, const HadamardInputs&, const HadamardOutputs&, void*) {
  return "not in this build";
}
template <typename T>
const char* hadamard_backward_typed(const HadamardProblem&, const HadamardInputs&, const HadamardSaved&,
                                    const HadamardGradients&, void*, void*) {
  return "not in this build";
}
template <typename T>
size_t hadamard_workspace_typed(const HadamardProblem&) {
  return 0;
}

#define ELSA_ABSENT(T)                                                                                              \
  template const char* hadamard_forward_typed<T>(const HadamardProblem&, const HadamardInputs&,                     \
                                                 const HadamardOutputs&, void*);                                    \
  template const char* hadamard_backward_typed<T>(const HadamardProblem&, const HadamardInputs&,                    \
                                                  const HadamardSaved&, const HadamardGradients&, void*, void*);    \
  template size_t hadamard_workspace_typed<T>(const HadamardProblem&);
ELSA_ABSENT(double)
ELSA_ABSENT(__nv_bfloat16)
using Other = std::conditional_t<std::is_same_v<float, ELSA_PRESENT>, __half, float>;
ELSA_ABSENT(Other)

}  // namespace elsa::cuda
