// What the host side hands to the kernels of the Hadamard convolution; see plan.h.
#pragma once

#include "plan.h"

namespace elsa::cpu {

struct HadamardGeometry {
  int64_t height, width, packed, channels;
  int64_t group_width, kernel;
  int64_t dilation, phases_y, phases_x, images, image_rows;  // as in Geometry
  int64_t slots;                                             // the same; unit = chunk · slots + slot
  int64_t chunk, chunks;                                     // channels done together: whole groups
};

struct HadamardForward {
  HadamardGeometry geometry;
  const void* packed;
  const void* weight;
  const void* bias;  // null when absent
  double scale;
  void* local;
  void* before;  // null when not wanted
};

struct HadamardBackward {
  HadamardGeometry geometry;
  const void* grad_local;
  const void* grad_rest;  // null when absent
  const void* packed;
  const void* weight;
  const void* before;
  double scale;
  void* grad_packed;
  void* partial;  // [chunk][slot]: sums of the gradients of weight and bias in the kernel's order
  void* grad_weight;
  void* grad_bias;
};

// Both passes for one storage type. Scratch memory is 64-byte aligned and private to the calling thread.
struct HadamardKernel {
  int64_t (*chunk)(const HadamardGeometry&);
  int64_t (*forward_scratch)(const HadamardGeometry&);
  int64_t (*backward_scratch)(const HadamardGeometry&);
  int64_t (*partial_bytes)(const HadamardGeometry&);  // of one unit
  void (*forward)(const HadamardForward&, int64_t first_unit, int64_t last_unit, void* scratch);
  void (*backward)(const HadamardBackward&, int64_t first_unit, int64_t last_unit, void* scratch);
  void (*reduce)(const HadamardBackward&, int64_t first_chunk, int64_t last_chunk);  // the slots' sums in their order
};

using HadamardTable = ByType<HadamardKernel>;

// One per instruction set, defined in NAME_hadamard.cpp.
extern const HadamardTable plain_hadamard;
#if defined(__x86_64__)
extern const HadamardTable avx2_hadamard;
extern const HadamardTable avx512_hadamard;
extern const HadamardKernel avx512_bf16_hadamard;  // for the type that has instructions of its own
#endif

}  // namespace elsa::cpu
