// Kernels in AVX-512 (F, BW, DQ, VL). The pragma, unlike a compiler flag, leaves the choice to the file that includes this.
#pragma once
#pragma GCC target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define ELSA_ISA avx512
#define ELSA_AVX512 1
#define ELSA_VECTOR_BYTES 64
#define ELSA_BLOCK 7
#define ELSA_VECTORS 2
