#if defined(__x86_64__)
#include "target_avx512.h"

#include "gelu_kernels.h"

namespace elsa::cpu {
const GeluTable avx512_gelu{avx512::gelu_kernel<float>, avx512::gelu_kernel<double>, avx512::gelu_kernel<Half>,
                           avx512::gelu_kernel<BFloat>};
}
#endif
