#if defined(__x86_64__)
#include "target_avx512_bf16.h"

#include "forward.h"

namespace elsa::cpu {
const ForwardKernel avx512_bf16_forward = avx512_bf16::forward_kernel<BFloat>;
}
#endif
