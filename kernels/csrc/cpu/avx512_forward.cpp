#if defined(__x86_64__)
#include "target_avx512.h"

#include "forward.h"

namespace elsa::cpu {
const KernelTable<ForwardArguments> avx512_forward{avx512::forward_kernel<float>, avx512::forward_kernel<double>,
                                                   avx512::forward_kernel<Half>, avx512::forward_kernel<BFloat>};
}
#endif
