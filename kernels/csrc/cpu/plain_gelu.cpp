#include "target_plain.h"

#include "gelu_kernels.h"

namespace elsa::cpu {
const GeluTable plain_gelu{plain::gelu_kernel<float>, plain::gelu_kernel<double>, plain::gelu_kernel<Half>,
                           plain::gelu_kernel<BFloat>};
}
