// What the compiled Hadamard convolution asks of its arguments; see checks.h.
#pragma once

#include "checks.h"

namespace elsa {

inline void check_like_packed(const char* name, const Tensor& tensor, const Tensor& packed,
                              std::initializer_list<int64_t> shape) {
  check_same_device(name, tensor, packed, "packed");
  check_dtype(name, tensor, packed.scalar_type());
  check_shape(name, tensor, shape);
}

inline HadamardProblem check_hadamard(const Tensor& packed, const Tensor& weight, int64_t dilation) {
  check_storage("packed", packed);
  if (packed.dim() != 4) refuse("packed must be [B, H, W, D], got shape ", shape_of(packed));
  if (weight.dim() != 4 || weight.size(2) != weight.size(3))
    refuse("weight must be [C_q, width, K, K], got shape ", shape_of(weight));
  HadamardProblem p{};
  p.batch = packed.size(0), p.height = packed.size(1), p.width = packed.size(2), p.packed = packed.size(3);
  p.channels = weight.size(0), p.group_width = weight.size(1), p.kernel = weight.size(2), p.dilation = dilation;
  check_window(p.kernel, dilation);
  if (p.channels < 1 || p.group_width < 1)
    refuse("weight needs at least one channel and one channel a group, got shape ", shape_of(weight));
  if (p.channels % p.group_width != 0)
    refuse("the group width must divide the channels: ", p.channels, " channels, ", p.group_width, " a group");
  if (p.height < 1 || p.width < 1) refuse("packed needs at least one position, got shape ", shape_of(packed));
  if (p.packed < 2 * p.channels)
    refuse("packed must hold ", p.channels, " channels of query and of key, got shape ", shape_of(packed));
  check_like_packed("weight", weight, packed, {p.channels, p.group_width, p.kernel, p.kernel});
  return p;
}

// Arguments of hadamard_forward: packed (B, H, W, D), weight (C_q, width, K, K), bias (C_q,).
inline HadamardProblem check_hadamard_forward(const Tensor& packed, const Tensor& weight,
                                              const std::optional<Tensor>& bias, int64_t dilation) {
  const HadamardProblem p = check_hadamard(packed, weight, dilation);
  if (bias) check_like_packed("bias", *bias, packed, {p.channels});
  return p;
}

// Arguments of hadamard_backward: grad_local and before (B, H, W, C_q), grad_rest (B, H, W, D - 2·C_q) or absent.
inline HadamardProblem check_hadamard_backward(const Tensor& grad_local, const std::optional<Tensor>& grad_rest,
                                               const Tensor& packed, const Tensor& weight, const Tensor& before,
                                               int64_t dilation) {
  const HadamardProblem p = check_hadamard(packed, weight, dilation);
  check_like_packed("grad_local", grad_local, packed, {p.batch, p.height, p.width, p.channels});
  if (grad_rest) check_like_packed("grad_rest", *grad_rest, packed, {p.batch, p.height, p.width, p.rest()});
  check_like_packed("before", before, packed, {p.batch, p.height, p.width, p.channels});
  return p;
}

}  // namespace elsa
