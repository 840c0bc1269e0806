// The kernels in lanes and in planes for float alone, in AVX2; compiled with -I FOLDER/cpu, where the sources may have a
// seeded fault.
#if defined(__x86_64__)
#include "target_avx2.h"

#include "hadamard.h"

namespace elsa::cpu {
const HadamardTable avx2_hadamard{avx2::hadamard_kernel<float>, {}, {}, {}};
}
#endif
