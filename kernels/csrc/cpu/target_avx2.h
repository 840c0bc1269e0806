// Kernels in AVX2, FMA and F16C. The pragma, unlike a compiler flag, leaves the choice to the file that includes this.
#pragma once
#pragma GCC target("avx,avx2,fma,f16c")
#define ELSA_ISA avx2
#define ELSA_AVX2 1
#define ELSA_VECTOR_BYTES 32
#define ELSA_BLOCK 7
#define ELSA_VECTORS 1
