#if defined(__x86_64__)
#include "target_avx2.h"

#include "backward.h"

namespace elsa::cpu {
const KernelTable<BackwardArguments> avx2_backward{avx2::backward_kernel<float>, avx2::backward_kernel<double>,
                                                   avx2::backward_kernel<Half>, avx2::backward_kernel<BFloat>};
}
#endif
