#if defined(__x86_64__)
#include "target_avx512_bf16.h"

#include "backward.h"

namespace elsa::cpu {
const BackwardKernel avx512_bf16_backward = avx512_bf16::backward_kernel<BFloat>;
}
#endif
