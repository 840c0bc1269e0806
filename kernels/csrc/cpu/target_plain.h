// Kernels in the instructions that every processor of the architecture has (SSE2 on x86-64).
#pragma once
#define ELSA_ISA plain
#define ELSA_VECTOR_BYTES 16
#define ELSA_BLOCK 7
#define ELSA_VECTORS 1
