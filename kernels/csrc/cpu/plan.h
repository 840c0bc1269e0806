// What the host side hands to the kernels of one instruction set: sizes, pointers, and who does which rows.
// Plain data only: this header is compiled into files that are built for different instruction sets, so it must not
// bring in any inline function that the linker could share between them.
#pragma once

#include <cstdint>

namespace elsa::cpu {

// Storage of the two half-precision types; all arithmetic is done in float.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// A dilated problem is dilation² independent dense ones: positions with equal (y mod d, x mod d) only ever meet each
// other. Each is an "image" with its own strides, so the kernels know nothing of dilation.
struct Geometry {
  int64_t height, width, channels;
  int64_t heads, head_dim;
  int64_t kernel, taps;
  int64_t dilation;
  int64_t phases_y, phases_x;  // images per batch entry along each axis: min(dilation, size)
  int64_t images;              // batch · phases_y · phases_x
  int64_t image_rows;          // rows of the tallest image; shorter ones leave their last row empty
  int64_t slots;               // the images' rows in order are cut into this many equal ranges; unit = slot · heads + head
  int64_t ghost_stride;        // channels per tap of a packed ghost: head_dim rounded up to whole vectors
  int64_t ghost_pairs;         // of every so many channels of a ghost, the even ones lie first; 0: all in their order
  int64_t value_batch, value_row, value_column;  // elements of value from one to the next; its channels lie side by side
};

// Packed ghosts and their gradients are [head][tap][ghost_stride] in the accumulation type, null when absent;
// gradients have one such array per slot, which the host adds up in order.
struct ForwardArguments {
  Geometry geometry;
  const void* value;
  const void* logits;
  const void* ghost_mul;
  const void* ghost_add;
  void* out;
};

struct BackwardArguments {
  Geometry geometry;
  const void* grad_out;
  const void* value;
  const void* logits;
  const void* ghost_mul;
  const void* ghost_add;
  void* grad_value;
  void* grad_logits;
  void* grad_mul;
  void* grad_add;
};

// One pass for one storage type: the range of units to do, on memory that is 64-byte aligned and private to the
// calling thread.
template <class Arguments>
struct Kernel {
  int64_t lanes;                             // packed ghosts are padded to a multiple of this
  int64_t (*ghost_pairs)(const Geometry&);
  int64_t (*scratch_bytes)(const Geometry&);
  void (*run)(const Arguments&, int64_t first_unit, int64_t last_unit, void* scratch);
};
using ForwardKernel = Kernel<ForwardArguments>;
using BackwardKernel = Kernel<BackwardArguments>;

// One kernel for each storage type.
template <class OfType>
struct ByType {
  OfType float32, float64, float16, bfloat16;
};
template <class Arguments>
using KernelTable = ByType<Kernel<Arguments>>;

// One pair per instruction set, defined in NAME_forward.cpp and NAME_backward.cpp. Only x86-64 has more than one.
extern const KernelTable<ForwardArguments> plain_forward;
extern const KernelTable<BackwardArguments> plain_backward;
#if defined(__x86_64__)
extern const KernelTable<ForwardArguments> avx2_forward;
extern const KernelTable<BackwardArguments> avx2_backward;
extern const KernelTable<ForwardArguments> avx512_forward;
extern const KernelTable<BackwardArguments> avx512_backward;
// For the type that has instructions of its own; the others are those of AVX-512.
extern const ForwardKernel avx512_bf16_forward;
extern const BackwardKernel avx512_bf16_backward;
#endif

}  // namespace elsa::cpu
