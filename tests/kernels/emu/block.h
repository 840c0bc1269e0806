// One thread block after another: scheduler, barriers, warp collectives, shared memory.
//
// One OS thread runs the whole grid, so runs are deterministic. Reported as exceptions that name line, block and
// thread: divergent barriers, a return before a barrier, dead-locked or divergent warp operations, bad masks, bad
// sizes, too much shared memory. Shared memory starts as NaN and has guard zones between its pieces.
#pragma once
#include "fiber.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace cuemu {

constexpr unsigned kWarp = 32;
constexpr size_t kSharedLimit = 227 << 10, kDefaultShared = 48 << 10, kGuard = 128;
constexpr size_t kPieces = 32, kArena = kSharedLimit + (kPieces + 1) * 3 * kGuard;
#ifdef __SANITIZE_THREAD__
constexpr size_t kFiberSets = 8;  // neighbouring blocks are different TSan threads, so races between blocks show
#else
constexpr size_t kFiberSets = 1;
#endif

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// CUEMU_ORDER=fwd|rev|<seed>: the order in which threads run between barriers.
struct Options {
  enum Order { forward, reverse, shuffled } order = forward;
  unsigned seed = 0;
  bool strict_exit = true;  // a return before a barrier is an error, as it is undefined behaviour in CUDA
  Options() {
    const char* text = std::getenv("CUEMU_ORDER");
    if (!text || !std::strcmp(text, "fwd")) return;
    order = std::strcmp(text, "rev") ? shuffled : reverse;
    seed = unsigned(std::atoi(text));
  }
};
inline Options& options() {
  static Options instance;
  return instance;
}

enum class State : uint8_t { ready, at_barrier, at_warp, done };

struct Thread : Fiber {
  State state = State::done;
  uint3 index{};
  unsigned lane = 0, warp = 0;
  unsigned char given[16], received[16];  // warp collectives: what the lane deposits and what it gets
  unsigned source = 0;
  uint32_t ballot = 0;
};
struct Rendezvous {
  uint32_t mask, arrived;
  int line;
};
struct Warp {
  uint32_t live = 0;
  std::vector<Rendezvous> open;
};
struct Piece {  // of shared memory
  const void* key;
  unsigned char* data;
  size_t bytes;
};

struct Machine {
  uint3 block_index{};
  dim3 block_size, grid_size;
  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> order;
  Thread main, *current = nullptr;
  unsigned count = 0, live = 0, arrived = 0, exited = 0;
  int barrier_line = 0;
  long predicate = 0, predicate_result = 0;  // __syncthreads_count
  std::vector<Piece> pieces;
  size_t shared_used = 0, dynamic_bytes = 0, allowed_bytes = kDefaultShared;
  std::vector<std::unique_ptr<unsigned char[]>> arenas;
  unsigned char* arena = nullptr;
  const std::function<void()>* body = nullptr;
  size_t block_number = 0;
  std::exception_ptr error;
  std::mt19937 random;
  char start_tag = 0, end_tag = 0;
};
inline Machine& machine() {
  static Machine instance;
  return instance;
}

[[noreturn]] inline void fail(const std::string& message) {
  const Machine& m = machine();
  const uint3 t = m.current ? m.current->index : uint3{}, b = m.block_index;
  char place[160];
  std::snprintf(place, sizeof place, " [block %u,%u,%u thread %u,%u,%u]", b.x, b.y, b.z, t.x, t.y, t.z);
  throw Error("cuemu: " + message + place);
}
inline std::string at_line(int line) {
  return " at line " + std::to_string(line);
}

inline void yield() {
  Machine& m = machine();
  Thread* me = m.current;
  asm volatile("" ::: "memory");
  switch_fiber(*me, m.main, false, true);
  asm volatile("" ::: "memory");
}

// A TSan tag: addresses behind the arena, so that each block has its own.
inline void* tag(Machine& m, unsigned i) {
  return m.arena + kArena + i;
}

// ---- block barrier ----
inline void release_barrier(Machine& m) {
  m.arrived = 0;
  m.predicate_result = m.predicate, m.predicate = 0;
  for (Thread* t : m.threads) {
    if (t->state == State::at_barrier) t->state = State::ready;
  }
}
inline long barrier(int line, long predicate = 0) {
  Quiet quiet;
  Machine& m = machine();
  if (m.exited && options().strict_exit) {
    fail("__syncthreads" + at_line(line) + " after another thread of the block has returned");
  }
  if (m.arrived == 0) m.barrier_line = line;
  else if (m.barrier_line != line)
    fail("divergent __syncthreads" + at_line(line) + " here," + at_line(m.barrier_line) + " elsewhere");
  m.predicate += predicate != 0;
  release(tag(m, 0));
  m.current->state = State::at_barrier;
  if (++m.arrived == m.live) release_barrier(m);
  yield();
  acquire(tag(m, 0));
  return m.predicate_result;
}

// ---- warp collectives ----
// Completes every rendezvous of the warp that all its live lanes have reached.
inline void complete_warp(Machine& m, unsigned number) {
  Warp& w = m.warps[number];
  const auto lane_of = [&](unsigned l) -> Thread& { return *m.threads[number * kWarp + l]; };
  for (size_t k = 0; k < w.open.size();) {
    const uint32_t need = w.open[k].mask & w.live;
    if ((w.open[k].arrived & need) != need) {
      ++k;
      continue;
    }
    uint32_t ballot = 0;
    for (unsigned l = 0; l < kWarp; ++l) {
      if (need >> l & 1) ballot |= uint32_t(lane_of(l).given[0] != 0) << l;
    }
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!(need >> l & 1)) continue;
      Thread& t = lane_of(l);
      t.ballot = ballot;
      const bool defined = t.source < kWarp && (need >> t.source & 1);
      if (defined) std::memcpy(t.received, lane_of(t.source).given, sizeof t.received);
      else std::memset(t.received, 0xff, sizeof t.received);  // undefined in CUDA; here NaN or −1
      t.state = State::ready;
    }
    w.open.erase(w.open.begin() + long(k));
  }
}
// Only __syncwarp orders memory (`fence`).
inline Thread& meet_warp(uint32_t mask, int line, unsigned source, bool fence = false) {
  Quiet quiet;
  Machine& m = machine();
  Thread& t = *m.current;
  Warp& w = m.warps[t.warp];
  if (!(mask >> t.lane & 1)) fail("warp operation" + at_line(line) + ": own lane not in mask");
  Rendezvous* meeting = nullptr;
  for (auto& open : w.open) {
    if (open.mask == mask) meeting = &open;
    else if (open.mask & mask) fail("warp operation" + at_line(line) + ": overlapping masks in flight");
  }
  if (!meeting) meeting = &w.open.emplace_back(Rendezvous{mask, 0, line});
  if (meeting->line != line) {
    fail("divergent warp operation" + at_line(line) + " here," + at_line(meeting->line) + " in another lane");
  }
  meeting->arrived |= 1u << t.lane;
  t.source = source;
  if (fence) release(tag(m, 1 + t.warp));
  t.state = State::at_warp;
  complete_warp(m, t.warp);
  yield();
  if (fence) acquire(tag(m, 1 + t.warp));
  return t;
}
template <class T>
T shuffle(uint32_t mask, T value, unsigned source, int line) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable<T>::value, "shuffled type");
  Quiet quiet;
  std::memcpy(machine().current->given, &value, sizeof value);
  Thread& t = meet_warp(mask, line, source);
  T result;
  std::memcpy(&result, t.received, sizeof result);
  return result;
}
inline uint32_t ballot(uint32_t mask, bool predicate, int line) {
  Quiet quiet;
  Thread& t = *machine().current;
  t.given[0] = predicate;
  return meet_warp(mask, line, t.lane).ballot;
}
inline unsigned lane() {
  return machine().current->lane;
}
inline unsigned source_index(int s, int width) {
  return (lane() & ~unsigned(width - 1)) | (unsigned(s) & (width - 1));
}
inline unsigned source_down(unsigned d, int width) {
  return (lane() & (width - 1)) + d >= unsigned(width) ? lane() : lane() + d;
}
inline unsigned source_up(unsigned d, int width) {
  return (lane() & (width - 1)) < d ? lane() : lane() - d;
}
inline unsigned source_xor(unsigned bits, int width) {
  const unsigned s = lane() ^ bits, segment = ~unsigned(width - 1);
  return (s & segment) > (lane() & segment) ? lane() : s;
}

// ---- shared memory ----
// The piece of the block's shared memory that belongs to `key`; the first thread that asks creates it. Its address has
// the alignment that `offset` has on the device.
inline void* shared_piece(const void* key, size_t bytes, size_t offset = 0) {
  Quiet quiet;
  Machine& m = machine();
  for (const Piece& piece : m.pieces) {
    if (piece.key == key) return piece.data;
  }
  m.shared_used += bytes;
  if (m.shared_used > kSharedLimit || m.pieces.size() == kPieces) fail("block uses too much shared memory");
  unsigned char* data = m.arena + kGuard + offset % 16;
  if (!m.pieces.empty()) {
    const Piece& last = m.pieces.back();
    data = m.arena + (last.data + last.bytes - m.arena + 2 * kGuard - 1) / kGuard * kGuard + offset % 16;
  }
  unpoison(data, bytes);
  std::memset(data, 0xff, bytes);
  m.pieces.push_back({key, data, bytes});
  return data;
}
inline void new_arena(Machine& m) {
#ifdef __SANITIZE_THREAD__
  m.arena = nullptr;  // fresh memory each block: no false races
#endif
  if (!m.arena) m.arena = m.arenas.emplace_back(new unsigned char[kArena + 64]).get();
  poison(m.arena, kArena);
  m.pieces.clear(), m.shared_used = 0;
}

}  // namespace cuemu
