// The sizes of one call, after they were checked: what every backend computes from. No torch header, no CUDA header.
#pragma once

#include <cstdint>

namespace elsa {

// 64-bit throughout: Swin-B at batch 128 has more threads' worth of work than 32 bits count.
struct Problem {
  int64_t batch, height, width, channels;
  int64_t heads, kernel, dilation;

  int64_t head_dim() const { return channels / heads; }
  int64_t taps() const { return kernel * kernel; }
  int64_t positions() const { return batch * height * width; }
};

// The Hadamard convolution: `channels` of query and of key, `packed` in one position of the projection that holds both.
struct HadamardProblem {
  int64_t batch, height, width, packed, channels;
  int64_t group_width, kernel, dilation;

  int64_t taps() const { return kernel * kernel; }
  int64_t positions() const { return batch * height * width; }
  int64_t rest() const { return packed - 2 * channels; }
};

}  // namespace elsa
