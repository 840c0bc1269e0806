#include "target_plain.h"

#include "forward.h"

namespace elsa::cpu {
const KernelTable<ForwardArguments> plain_forward{plain::forward_kernel<float>, plain::forward_kernel<double>,
                                                  plain::forward_kernel<Half>, plain::forward_kernel<BFloat>};
}
