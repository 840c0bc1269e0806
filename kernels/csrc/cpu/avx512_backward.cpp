#if defined(__x86_64__)
#include "target_avx512.h"

#include "backward.h"

namespace elsa::cpu {
const KernelTable<BackwardArguments> avx512_backward{avx512::backward_kernel<float>, avx512::backward_kernel<double>,
                                                     avx512::backward_kernel<Half>, avx512::backward_kernel<BFloat>};
}
#endif
