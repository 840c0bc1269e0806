// The kernels for one storage type: a file each, so that they compile side by side.
#include "launch.cuh"

namespace elsa::cuda {
ELSA_INSTANTIATE(__half)
}  // namespace elsa::cuda
