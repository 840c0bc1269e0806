#if defined(__x86_64__)
#include "target_avx2.h"

#include "forward.h"

namespace elsa::cpu {
const KernelTable<ForwardArguments> avx2_forward{avx2::forward_kernel<float>, avx2::forward_kernel<double>,
                                                 avx2::forward_kernel<Half>, avx2::forward_kernel<BFloat>};
}
#endif
