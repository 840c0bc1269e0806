// Kernels for bfloat16 in AVX-512 with its instructions for that type (BF16). Everything else is as in target_avx512.h.
#pragma once
#pragma GCC target("avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define ELSA_ISA avx512_bf16
#define ELSA_AVX512 1
#define ELSA_AVX512_BF16 1
#define ELSA_VECTOR_BYTES 64
#define ELSA_BLOCK 7
#define ELSA_VECTORS 2
