// Tensor cores: the twin of kernels/csrc/cuda/hadamard_mma.cuh, a whole warp at a time, with the PTX manual's layout.
#pragma once
#include "block.h"
#include "halves.h"

namespace cuemu {

inline void need_whole_warp(int line) {
  Quiet quiet;
  const Machine& m = machine();
  if (m.warps[m.current->warp].live != 0xffffffffu) fail("matrix operation" + at_line(line) + ": lanes are missing");
}

// What a lane shows to the others of its warp while all of them stand in the same operation.
template <class Shown, class Read>
void exchange(const Shown& shown, int line, Read read) {
  Quiet quiet;
  Thread& t = *machine().current;
  const void* address = &shown;
  std::memcpy(t.given, &address, sizeof address);
  meet_warp(0xffffffffu, line, t.lane);
  read([&](unsigned lane) -> const Shown& {
    const void* other;
    std::memcpy(&other, machine().threads[t.warp * kWarp + lane]->given, sizeof other);
    return *static_cast<const Shown*>(other);
  });
  meet_warp(0xffffffffu, line, t.lane);  // nobody leaves before all have read
}

inline float widen(uint32_t pair, int which, __half) {
  return __half2float({uint16_t(pair >> 16 * which)});
}
inline float widen(uint32_t pair, int which, __nv_bfloat16) {
  return __bfloat162float({uint16_t(pair >> 16 * which)});
}

template <class T, int K>
void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b, int line = __builtin_LINE()) {
  need_whole_warp(line);
  struct Operands {
    uint32_t a[K / 4], b[K / 8];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a), std::memcpy(mine.b, b, sizeof mine.b);
  exchange(mine, line, [&](auto of_lane) {
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned row = lane() / 4 + e / 2 * 8, column = lane() % 4 * 2 + e % 2;
      for (unsigned k = 0; k < K; ++k) {
        const unsigned pair = k % 8 / 2;
        const float x = widen(of_lane(row % 8 * 4 + pair).a[k / 8 * 2 + row / 8], k % 2, T{});
        d[e] += x * widen(of_lane(column * 4 + pair).b[k / 8], k % 2, T{});
      }
    }
  });
}

template <int COUNT, bool TRANSPOSED>
void load_matrices(uint32_t* to, const void* row, int line = __builtin_LINE()) {
  need_whole_warp(line);
  if (lane() < 8 * COUNT) {
    if (uintptr_t(row) % 16) fail("load of matrices" + at_line(line) + ": a row is not aligned to 16 bytes");
    const unsigned char* p = static_cast<const unsigned char*>(row);
    if (p < machine().arena || p + 16 > machine().arena + kArena) {
      fail("load of matrices" + at_line(line) + ": a row is not in shared memory");
    }
  }
  exchange(row, line, [&](auto of_lane) {
    const unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned n = 0; n < COUNT; ++n) {
      uint32_t pair = 0;
      for (unsigned k = 0; k < 2; ++k) {
        const void* from = of_lane(8 * n + (TRANSPOSED ? 2 * t + k : g));
        Loud loud;
        pair |= uint32_t(static_cast<const uint16_t*>(from)[TRANSPOSED ? g : 2 * t + k]) << 16 * k;
      }
      to[n] = pair;
    }
  });
}

}  // namespace cuemu
