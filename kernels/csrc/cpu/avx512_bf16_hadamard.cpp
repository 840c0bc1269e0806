#if defined(__x86_64__)
#include "target_avx512_bf16.h"

#include "hadamard.h"

namespace elsa::cpu {
const HadamardKernel avx512_bf16_hadamard = avx512_bf16::hadamard_kernel<BFloat>;
}
#endif
