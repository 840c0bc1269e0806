// What the host sides of the CPU kernels share: memory, and the choice of a kernel by type.
#pragma once

#include "../checks.h"
#include "division.h"

#include <algorithm>
#include <cstddef>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace elsa::cpu {

constexpr std::size_t kAlignment = 64;

// Uninitialised memory on a cache line's boundary, private to one call or one thread.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : memory_(::operator new(static_cast<std::size_t>(std::max<int64_t>(bytes, 1)), std::align_val_t(kAlignment))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(memory_, std::align_val_t(kAlignment)); }
  void* get() const { return memory_; }

 private:
  void* memory_;
};

// The allocator hands out large arrays as untouched pages: each of 4 KiB costs a fault of a microsecond or two, as much as
// the kernels need for it. A refusal of the kernel's to make them 2 MiB large is no error.
inline void prefer_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20, kFresh = 4 * kHuge;  // smaller ones are mostly memory that was in use before
  const uintptr_t first = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t bytes = static_cast<uintptr_t>(tensor.numel()) * static_cast<uintptr_t>(tensor.element_size());
  const uintptr_t start = (first + kHuge - 1) / kHuge * kHuge, stop = (first + bytes) / kHuge * kHuge;
  if (bytes >= kFresh) madvise(reinterpret_cast<void*>(start), stop - start, MADV_HUGEPAGE);
#endif
}

// The kernel of one storage type out of a table of an instruction set.
template <class Table>
const auto& kernel_for(const Table& table, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return table.float32;
    case ScalarType::Double: return table.float64;
    case ScalarType::Half: return table.float16;
    default: return table.bfloat16;
  }
}

}  // namespace elsa::cpu
