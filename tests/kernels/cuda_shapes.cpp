// Prints what the launch code asks for, per specialised kernel, from the kernels' own constants: type, K, kernel,
// threads, dynamic shared bytes per ghost mode for heads of 32 channels. Compiled by cuda_report.py with the host
// compiler.
#include "../../kernels/csrc/cuda/aggregate.cuh"
#include "../../kernels/csrc/cuda/gradients.cuh"

#include <cstdio>

using namespace elsa::cuda;

template <typename T, int K>
void print(const char* type) {
  using A = AggregateShape<T, K>;
  using G = GradientShape<T, K>;
  for (int ghosts = 0; ghosts < 3; ++ghosts) {
    std::printf("%s %d aggregate %d %d %zu\n", type, K, ghosts, A::threads, A::shared_bytes(ghosts));
  }
  std::printf("%s %d gradient 1 %d %zu\n", type, K, G::threads, G::shared_bytes(false, 1, 32));
  std::printf("%s %d gradient 2 %d %zu\n", type, K, G::threads, G::shared_bytes(true, 2, 32));
}

template <typename T>
void print_all(const char* type) {
  print<T, 3>(type);
  print<T, 5>(type);
  print<T, 7>(type);
}

int main() {
  std::printf("tile %d %d\n", kTileRows, kTileCols);
  print_all<float>("float");
  print_all<__half>("__half");
  print_all<__nv_bfloat16>("__nv_bfloat16");
}
