#if defined(__x86_64__)
#include "target_avx2.h"

#include "gelu_kernels.h"

namespace elsa::cpu {
const GeluTable avx2_gelu{avx2::gelu_kernel<float>, avx2::gelu_kernel<double>, avx2::gelu_kernel<Half>,
                           avx2::gelu_kernel<BFloat>};
}
#endif
