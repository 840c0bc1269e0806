// The operator's schema, for the library that defines it and for those that define it again elsewhere (tests do).
//
// kernels/library.py compares what a library defines with the signatures of the fake kernels that stand for it.
#pragma once

namespace elsa {

// value (B, H, W, C) and logits (B, H, W, G·K²) in one of float16, bfloat16, float32, float64; ghosts (C, K²) in the
// accumulation type: float64 for float64, else float32. Returns (B, H, W, C) in value's type.
constexpr const char* kForwardSchema =
    "attention_forward(Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, int num_heads, "
    "int kernel_size, int dilation) -> Tensor";

// Returns the gradients of value, logits, ghost_mul, ghost_add; that of an absent ghost has no elements.
constexpr const char* kBackwardSchema =
    "attention_backward(Tensor grad_out, Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, "
    "int num_heads, int kernel_size, int dilation) -> (Tensor, Tensor, Tensor, Tensor)";

}  // namespace elsa
