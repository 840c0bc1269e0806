// The host side of GELU on the CPU: checks, memory, and registration.
#include "dispatch.h"
#include "host.h"

#include <tuple>

namespace elsa::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;  // fewer numbers are done before another thread has woken up

const GeluKernel& gelu_kernel(const Tensor& before) {
  return kernel_for(*instruction_sets()[active_set()].gelu, before.scalar_type());
}

char* at(const Tensor& tensor, int64_t number) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + number * static_cast<int64_t>(tensor.element_size());
}

const char* read_at(const Tensor& tensor, int64_t number) {
  return static_cast<const char*>(tensor.const_data_ptr()) + number * static_cast<int64_t>(tensor.element_size());
}

Tensor gelu_forward(const Tensor& before) {
  check_storage("before", before);
  const Tensor dense = torch::stable::contiguous(before);
  const Tensor local = torch::stable::new_empty(dense, dense.sizes());
  prefer_huge_pages(local);
  const GeluKernel& kernel = gelu_kernel(dense);
  torch::stable::parallel_for(0, dense.numel(), kGrain, [&](int64_t first, int64_t last) {
    kernel.forward(read_at(dense, first), at(local, first), last - first);
  });
  return local;
}

std::tuple<Tensor, Tensor> gelu_backward(const Tensor& grad_local, const Tensor& before) {
  check_storage("before", before);
  check_same_device("grad_local", grad_local, before, "before");
  check_dtype("grad_local", grad_local, before.scalar_type());
  if (shape_of(grad_local) != shape_of(before))
    refuse("grad_local must have shape ", shape_of(before), ", got ", shape_of(grad_local));
  const Tensor dense = torch::stable::contiguous(before), dense_grad = torch::stable::contiguous(grad_local);
  const Tensor grad_before = torch::stable::new_empty(dense, dense.sizes());
  const Tensor local = torch::stable::new_empty(dense, dense.sizes());
  prefer_huge_pages(grad_before), prefer_huge_pages(local);
  const GeluKernel& kernel = gelu_kernel(dense);
  torch::stable::parallel_for(0, dense.numel(), kGrain, [&](int64_t first, int64_t last) {
    kernel.backward(read_at(dense_grad, first), read_at(dense, first), at(grad_before, first), at(local, first),
                    last - first);
  });
  return {grad_before, local};
}

}  // namespace
}  // namespace elsa::cpu

STABLE_TORCH_LIBRARY_IMPL(elsa, CPU, m) {
  m.impl("gelu_forward", TORCH_BOX(&elsa::cpu::gelu_forward));
  m.impl("gelu_backward", TORCH_BOX(&elsa::cpu::gelu_backward));
}
