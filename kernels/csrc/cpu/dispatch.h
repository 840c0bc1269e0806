// Which instruction set the CPU kernels run in: the best that the processor has, or less where asked.
#pragma once

#include "gelu_plan.h"
#include "hadamard_plan.h"

#include <cstdint>
#include <vector>

namespace elsa::cpu {

struct InstructionSet {
  const char* name;
  const KernelTable<ForwardArguments>* forward;
  const KernelTable<BackwardArguments>* backward;
  const HadamardTable* hadamard;
  const GeluTable* gelu;
  bool supported;  // by this processor
};

// From the plainest to the widest.
const std::vector<InstructionSet>& instruction_sets();

// The index of the set in use. At first it is the widest supported one, or the one that the environment variable
// ELSA_CPU_ISA names (plain, avx2, avx512, avx512_bf16); a name that is unknown or not supported here is refused at each call.
int64_t active_set();
// Chooses a set by index, for tests; refused where it is not supported.
void choose_set(int64_t index);

}  // namespace elsa::cpu
