// The host side of the Hadamard convolution on the CPU: checks, memory, and registration.
#include "../hadamard_checks.h"
#include "dispatch.h"
#include "host.h"

#include <algorithm>
#include <tuple>

namespace elsa::cpu {
namespace {

const HadamardKernel& hadamard_kernel(const Tensor& packed) {
  return kernel_for(*instruction_sets()[active_set()].hadamard, packed.scalar_type());
}

const void* data_or_null(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

std::tuple<Tensor, Tensor> hadamard_forward(const Tensor& packed, const Tensor& weight,
                                            const std::optional<Tensor>& bias, double scale, int64_t dilation,
                                            bool save) {
  const HadamardProblem p = check_hadamard_forward(packed, weight, bias, dilation);
  Tensor local = torch::stable::new_empty(packed, {p.batch, p.height, p.width, p.channels});
  Tensor before = save ? torch::stable::new_empty(packed, {p.batch, p.height, p.width, p.channels})
                       : torch::stable::new_empty(packed, {0});
  prefer_huge_pages(local), prefer_huge_pages(before);
  const HadamardKernel& kernel = hadamard_kernel(packed);
  const HadamardGeometry g = forward_geometry(p, kernel);
  const Tensor dense_packed = torch::stable::contiguous(packed), dense_weight = torch::stable::contiguous(weight);
  const std::optional<Tensor> dense_bias = dense(bias);
  const HadamardForward arguments{g,
                                  dense_packed.const_data_ptr(),
                                  dense_weight.const_data_ptr(),
                                  data_or_null(dense_bias),
                                  scale,
                                  local.mutable_data_ptr(),
                                  save ? before.mutable_data_ptr() : nullptr};
  torch::stable::parallel_for(0, g.chunks * g.slots, 1, [&](int64_t first, int64_t last) {
    const Buffer scratch(kernel.forward_scratch(g));
    kernel.forward(arguments, first, last, scratch.get());
  });
  return {local, before};
}

std::tuple<Tensor, Tensor, Tensor> hadamard_backward(const Tensor& grad_local, const std::optional<Tensor>& grad_rest,
                                                     const Tensor& packed, const Tensor& weight, const Tensor& before,
                                                     double scale, int64_t dilation) {
  const HadamardProblem p = check_hadamard_backward(grad_local, grad_rest, packed, weight, before, dilation);
  const HadamardKernel& kernel = hadamard_kernel(packed);
  const HadamardGeometry g = backward_geometry(p, kernel);
  const int64_t unit_bytes = kernel.partial_bytes(g);

  Tensor grad_packed = torch::stable::new_empty(packed, {p.batch, p.height, p.width, p.packed});
  Tensor grad_weight = torch::stable::new_empty(packed, {p.channels, p.group_width, p.kernel, p.kernel});
  Tensor grad_bias = torch::stable::new_empty(packed, {p.channels});
  prefer_huge_pages(grad_packed);
  const Tensor dense_grad = torch::stable::contiguous(grad_local), dense_packed = torch::stable::contiguous(packed),
               dense_weight = torch::stable::contiguous(weight), dense_before = torch::stable::contiguous(before);
  const std::optional<Tensor> dense_rest = dense(grad_rest);
  const Buffer partial(g.chunks * g.slots * unit_bytes);
  const HadamardBackward arguments{g,
                                   dense_grad.const_data_ptr(),
                                   data_or_null(dense_rest),
                                   dense_packed.const_data_ptr(),
                                   dense_weight.const_data_ptr(),
                                   dense_before.const_data_ptr(),
                                   scale,
                                   grad_packed.mutable_data_ptr(),
                                   partial.get(),
                                   grad_weight.mutable_data_ptr(),
                                   grad_bias.mutable_data_ptr()};
  torch::stable::parallel_for(0, g.chunks * g.slots, 1, [&](int64_t first, int64_t last) {
    const Buffer scratch(kernel.backward_scratch(g));
    kernel.backward(arguments, first, last, scratch.get());
  });
  constexpr int64_t kBytes = 1 << 18;  // fewer are added up before another thread has woken up
  const int64_t grain = std::max<int64_t>(1, kBytes / (g.slots * unit_bytes));
  torch::stable::parallel_for(0, g.chunks, grain,
                              [&](int64_t first, int64_t last) { kernel.reduce(arguments, first, last); });
  return {grad_packed, grad_weight, grad_bias};
}

}  // namespace
}  // namespace elsa::cpu

STABLE_TORCH_LIBRARY_IMPL(elsa, CPU, m) {
  m.impl("hadamard_forward", TORCH_BOX(&elsa::cpu::hadamard_forward));
  m.impl("hadamard_backward", TORCH_BOX(&elsa::cpu::hadamard_backward));
}
