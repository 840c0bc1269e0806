#include "target_plain.h"

#include "hadamard.h"

namespace elsa::cpu {
const HadamardTable plain_hadamard{plain::hadamard_kernel<float>, plain::hadamard_kernel<double>,
                                    plain::hadamard_kernel<Half>, plain::hadamard_kernel<BFloat>};
}
