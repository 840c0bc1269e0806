// The Hadamard convolution's kernels for one storage type: a file each, so that they compile side by side.
#include "hadamard_launch.cuh"

namespace elsa::cuda {
ELSA_INSTANTIATE_HADAMARD(double)
}  // namespace elsa::cuda
