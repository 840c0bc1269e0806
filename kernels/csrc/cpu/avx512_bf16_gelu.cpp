#if defined(__x86_64__)
#include "target_avx512_bf16.h"

#include "gelu_kernels.h"

namespace elsa::cpu {
const GeluKernel avx512_bf16_gelu = avx512_bf16::gelu_kernel<BFloat>;
}
#endif
