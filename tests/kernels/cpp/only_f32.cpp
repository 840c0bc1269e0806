// Stands in for the storage types that a build leaves out (seeded faults are compiled for float alone).
#include "../../../kernels/csrc/cuda/cu_compat.h"
#include "../../../kernels/csrc/cuda/launch.h"

namespace elsa::cuda {

template <typename T>
const char* forward_typed(const Problem&, const Inputs&, void*, void*) {
  return "not in this build";
}
template <typename T>
const char* backward_typed(const Problem&, const void*, const Inputs&, const Gradients&, void*, void*) {
  return "not in this build";
}
template <typename T>
size_t workspace_typed(const Problem&, bool, bool) {
  return 0;
}

#define ELSA_ABSENT(T)                                                                                                \
  template const char* forward_typed<T>(const Problem&, const Inputs&, void*, void*);                                 \
  template const char* backward_typed<T>(const Problem&, const void*, const Inputs&, const Gradients&, void*, void*); \
  template size_t workspace_typed<T>(const Problem&, bool, bool);
ELSA_ABSENT(double)
ELSA_ABSENT(__half)
ELSA_ABSENT(__nv_bfloat16)

}  // namespace elsa::cuda
