// What the launch code of both operators shares: kernel sizes as constants, tiles along an axis, checked launches.
#pragma once
#include "cu_compat.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace elsa::cuda {

// The one place where a kernel size known at run time becomes a constant: calls `call` with an integral_constant, or
// says that no specialised kernel has this size.
template <typename Call>
[[nodiscard]] const char* with_kernel_size(int64_t kernel, Call call) {
  switch (kernel) {
    case 3:
      call(std::integral_constant<int, 3>());
      return nullptr;
    case 5:
      call(std::integral_constant<int, 5>());
      return nullptr;
    case 7:
      call(std::integral_constant<int, 7>());
      return nullptr;
    default:
      return "no specialised kernel has this kernel size";
  }
}

inline int tiles_along(int64_t size, int64_t dilation, int64_t tile) {
  return int(((size + dilation - 1) / dilation + tile - 1) / tile);
}

struct Launcher {
  cudaStream_t stream;
  const char* error = nullptr;  // of the first launch that failed; later ones are skipped

  explicit Launcher(void* queue) : stream(static_cast<cudaStream_t>(queue)) {}

  template <typename Kernel, typename... Args>
  void run(Kernel kernel, int64_t blocks, int threads, size_t shared, const Args&... args) {
    if (error) return;
    cudaError_t status = cudaSuccess;
    if (shared > (48 << 10)) {  // more than the default needs the caller's consent
      status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    }
    if (status == cudaSuccess) {
      CU_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), shared, stream, args...);
      status = cudaGetLastError();
    }
    if (status != cudaSuccess) error = cudaGetErrorString(status);
  }
};

// The launches of one problem of either operator.
template <typename P>
struct ProblemLauncher : Launcher {
  const P& p;

  ProblemLauncher(const P& problem, void* queue) : Launcher(queue), p(problem) {}

  int64_t dilation() const { return std::min(p.dilation, std::max(p.height, p.width)); }  // beyond: the same sums
  int64_t tile_count(int rows, int cols) const {
    const int64_t d = dilation();
    return p.batch * std::min(d, p.height) * std::min(d, p.width) * tiles_along(p.height, d, rows) *
           tiles_along(p.width, d, cols);
  }
};

}  // namespace elsa::cuda
