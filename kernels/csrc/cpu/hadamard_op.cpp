// The host side of the Hadamard convolution on the CPU: checks, division of the work, and registration.
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

// By the sizes alone, as for the other operator (op_cpu.cpp); a slot computes the K - 1 rows around its own again.
HadamardGeometry geometry_of(const HadamardProblem& p, const HadamardKernel& kernel) {
  HadamardGeometry g{};
  g.height = p.height, g.width = p.width, g.packed = p.packed, g.channels = p.channels;
  g.group_width = p.group_width, g.kernel = p.kernel;
  divide_dilated(p, g);
  g.chunk = kernel.chunk(g), g.chunks = ceil_div(g.channels, g.chunk);
  constexpr int64_t kUnits = 256;  // enough for the balance of a large machine
  const int64_t rows = g.images * g.image_rows, rows_per_slot = 4 * std::max<int64_t>(p.kernel, 4);
  g.slots = std::clamp<int64_t>(rows / rows_per_slot, 1, ceil_div(kUnits, g.chunks));
  return g;
}

const void* data_or_null(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

std::tuple<Tensor, Tensor> hadamard_forward(const Tensor& packed, const Tensor& weight, const std::optional<Tensor>& bias,
                                            double scale, int64_t dilation, bool save) {
  const HadamardProblem p = check_hadamard_forward(packed, weight, bias, dilation);
  Tensor local = torch::stable::new_empty(packed, {p.batch, p.height, p.width, p.channels});
  Tensor before = save ? torch::stable::new_empty(packed, {p.batch, p.height, p.width, p.channels})
                       : torch::stable::new_empty(packed, {0});
  prefer_huge_pages(local), prefer_huge_pages(before);
  const HadamardKernel& kernel = hadamard_kernel(packed);
  const HadamardGeometry g = geometry_of(p, kernel);
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
  HadamardGeometry g = geometry_of(p, kernel);
  constexpr int64_t kPartialBytes = 4 << 20;
  const int64_t unit_bytes = kernel.partial_bytes(g);
  g.slots = std::clamp<int64_t>(kPartialBytes / (g.chunks * unit_bytes), 1, g.slots);

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
