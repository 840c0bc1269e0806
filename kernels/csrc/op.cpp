// The schema of the operator. Every backend registers its implementation for its own dispatch key; fake kernels,
// autograd and the autocast rule are registered from Python (kernels/library.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(elsa, m) {
  // value (B, H, W, C) and logits (B, H, W, G·K²) in one of float16, bfloat16, float32, float64; ghosts (C, K²) in
  // the accumulation type: float64 for float64, else float32. Returns (B, H, W, C) in value's type.
  m.def(
      "attention_forward(Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, int num_heads, "
      "int kernel_size, int dilation) -> Tensor");
  // Returns the gradients of value, logits, ghost_mul, ghost_add; that of an absent ghost has no elements.
  m.def(
      "attention_backward(Tensor grad_out, Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, "
      "int num_heads, int kernel_size, int dilation) -> (Tensor, Tensor, Tensor, Tensor)");
}
