#if defined(__x86_64__)
#include "target_avx2.h"

#include "hadamard.h"

namespace elsa::cpu {
const HadamardTable avx2_hadamard{avx2::hadamard_kernel<float>, avx2::hadamard_kernel<double>,
                                   avx2::hadamard_kernel<Half>, avx2::hadamard_kernel<BFloat>};
}
#endif
