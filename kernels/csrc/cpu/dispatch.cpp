#include "dispatch.h"

#include "../checks.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace elsa::cpu {
namespace {

std::atomic<int64_t> chosen{-1};  // -1: not decided yet

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

template <class Table, class Kernel>
Table with_bfloat16(Table table, const Kernel& kernel) {
  table.bfloat16 = kernel;
  return table;
}
#endif

std::string supported_names() {
  std::string names;
  for (const InstructionSet& set : instruction_sets())
    if (set.supported) names += (names.empty() ? "" : ", ") + std::string(set.name);
  return names;
}

int64_t initial_set() {
  const auto& sets = instruction_sets();
  const char* wanted = std::getenv("ELSA_CPU_ISA");
  int64_t best = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(sets.size()); ++i) {
    if (!sets[i].supported) continue;
    if (wanted && std::strcmp(wanted, sets[i].name) == 0) return i;
    best = i;
  }
  if (wanted && *wanted) refuse("ELSA_CPU_ISA is '", wanted, "'; this processor can run: ", supported_names());
  return best;
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
#if defined(__x86_64__)
  static const KernelTable<ForwardArguments> bf16_forward = with_bfloat16(avx512_forward, avx512_bf16_forward);
  static const KernelTable<BackwardArguments> bf16_backward = with_bfloat16(avx512_backward, avx512_bf16_backward);
  static const HadamardTable bf16_hadamard = with_bfloat16(avx512_hadamard, avx512_bf16_hadamard);
  static const GeluTable bf16_gelu = with_bfloat16(avx512_gelu, avx512_bf16_gelu);
#endif
  static const std::vector<InstructionSet> sets{
      {"plain", &plain_forward, &plain_backward, &plain_hadamard, &plain_gelu, true},
#if defined(__x86_64__)
      {"avx2", &avx2_forward, &avx2_backward, &avx2_hadamard, &avx2_gelu, has_avx2()},
      {"avx512", &avx512_forward, &avx512_backward, &avx512_hadamard, &avx512_gelu, has_avx512()},
      {"avx512_bf16", &bf16_forward, &bf16_backward, &bf16_hadamard, &bf16_gelu, has_avx512_bf16()},
#endif
  };
  return sets;
}

int64_t active_set() {
  int64_t set = chosen.load(std::memory_order_relaxed);
  if (set < 0) {
    set = initial_set();
    chosen.store(set, std::memory_order_relaxed);
  }
  return set;
}

void choose_set(int64_t index) {
  const auto& sets = instruction_sets();
  if (index < 0 || index >= static_cast<int64_t>(sets.size()) || !sets[index].supported)
    refuse("instruction set ", index, " is not supported here; this processor can run: ", supported_names());
  chosen.store(index, std::memory_order_relaxed);
}

}  // namespace elsa::cpu
