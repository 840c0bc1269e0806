#if defined(__x86_64__)
#include "target_avx512.h"

#include "hadamard.h"

namespace elsa::cpu {
const HadamardTable avx512_hadamard{avx512::hadamard_kernel<float>, avx512::hadamard_kernel<double>,
                                     avx512::hadamard_kernel<Half>, avx512::hadamard_kernel<BFloat>};
}
#endif
