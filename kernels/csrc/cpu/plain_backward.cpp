#include "target_plain.h"

#include "backward.h"

namespace elsa::cpu {
const KernelTable<BackwardArguments> plain_backward{plain::backward_kernel<float>, plain::backward_kernel<double>,
                                                    plain::backward_kernel<Half>, plain::backward_kernel<BFloat>};
}
