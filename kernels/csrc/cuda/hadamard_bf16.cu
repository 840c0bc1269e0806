// The Hadamard convolution's kernels for one storage type: a file each, so that they compile side by side.
#include "hadamard_launch.cuh"

namespace elsa::cuda {
ELSA_INSTANTIATE_HADAMARD(__nv_bfloat16)
}  // namespace elsa::cuda
