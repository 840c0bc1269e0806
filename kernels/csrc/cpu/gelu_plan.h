// What the host side hands to the kernels of GELU: flat arrays of one storage type.
#pragma once

#include "plan.h"

namespace elsa::cpu {

struct GeluKernel {
  void (*forward)(const void* before, void* local, int64_t count);
  // One reading of `before` for both: its gradient, and GELU again, which the weights behind it need for theirs.
  void (*backward)(const void* grad_local, const void* before, void* grad_before, void* local, int64_t count);
};

using GeluTable = ByType<GeluKernel>;

// One per instruction set, defined in NAME_gelu.cpp.
extern const GeluTable plain_gelu;
#if defined(__x86_64__)
extern const GeluTable avx2_gelu;
extern const GeluTable avx512_gelu;
extern const GeluKernel avx512_bf16_gelu;  // for the type that has instructions of its own
#endif

}  // namespace elsa::cpu
