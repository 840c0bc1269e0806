// Runs a grid: every block's threads in turn, from barrier to barrier.
#pragma once
#include "block.h"

namespace cuemu {

// A thread has returned: its warp and its block go on without it, or must not.
inline void retire(Machine& m, Thread& t) {
  t.state = State::done;
  --m.live, ++m.exited;
  m.warps[t.warp].live &= ~(1u << t.lane);
  if (m.error) return;
  complete_warp(m, t.warp);
  if (m.arrived && options().strict_exit) {
    m.error = std::make_exception_ptr(
        Error("cuemu: thread returned while others wait at __syncthreads" + at_line(m.barrier_line)));
  } else if (m.arrived && m.arrived == m.live) {
    release_barrier(m);
  }
}

inline void thread_main() {
  Machine& m = machine();
  fiber_started();
  for (;;) {
    Quiet quiet;
    Thread* t = m.current;
    acquire(&m.start_tag);
    try {
      Loud loud;
      (*m.body)();
    } catch (...) {
      if (!m.error) m.error = std::current_exception();
    }
    release(&m.end_tag);
    retire(m, *t);
    switch_fiber(*t, m.main, false, true);
  }
}

inline void start_threads(Machine& m) {
  const unsigned n = m.count;
  m.live = n, m.arrived = m.exited = 0, m.predicate = 0;
  m.warps.assign((n + kWarp - 1) / kWarp, Warp{});
  new_arena(m);
  const size_t sets = std::min<size_t>(kFiberSets, 4096 / n), first = n * (m.block_number++ % sets);
  while (m.pool.size() < first + n) {
    m.pool.push_back(std::make_unique<Thread>());
    prepare_fiber(*m.pool.back(), thread_main);
  }
  m.threads.resize(n);
  for (unsigned i = 0; i < n; ++i) {
    Thread& t = *(m.threads[i] = m.pool[first + i].get());
    t.state = State::ready, t.lane = i % kWarp, t.warp = i / kWarp;
    t.index = {i % m.block_size.x, i / m.block_size.x % m.block_size.y, i / (m.block_size.x * m.block_size.y)};
    m.warps[t.warp].live |= 1u << t.lane;
  }
  release(&m.start_tag);
}

inline std::exception_ptr deadlock(const Machine& m) {
  std::string text = "cuemu: deadlock: " + std::to_string(m.arrived) + " of " + std::to_string(m.live) +
                     " live threads at __syncthreads" + at_line(m.barrier_line);
  for (const Warp& w : m.warps) {
    for (const Rendezvous& r : w.open) text += "; warp operation" + at_line(r.line);
  }
  return std::make_exception_ptr(Error(text));
}

inline void run_block(Machine& m) {
  start_threads(m);
  if (options().order == Options::shuffled) std::shuffle(m.order.begin(), m.order.end(), m.random);
  while (m.live && !m.error) {
    bool ran = false;
    for (unsigned i : m.order) {
      Thread& t = *m.threads[i];
      if (t.state != State::ready) continue;
      ran = true;
      m.current = &t;
      switch_fiber(m.main, t, true, false);
      if (m.error) break;
    }
    if (!ran) m.error = deadlock(m);
  }
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void*, A&&... args) {
  Quiet quiet;
  Machine& m = machine();
  const unsigned n = block.x * block.y * block.z;
  if (!n || n > 1024 || block.z > 64) throw Error("cuemu: bad block size");
  if (!grid.x || grid.x > 0x7fffffffu || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) {
    throw Error("cuemu: bad grid size");
  }
  if (shared > m.allowed_bytes) throw Error("cuemu: more than 48 KiB of shared memory without cudaFuncSetAttribute");
  const std::function<void()> body = [&] { kernel(static_cast<P>(args)...); };
#ifdef __SANITIZE_THREAD__
  m.main.tsan = __tsan_get_current_fiber();
#endif
  m.count = n, m.block_size = block, m.grid_size = grid, m.dynamic_bytes = shared, m.allowed_bytes = kDefaultShared;
  m.body = &body, m.error = nullptr;
  m.random.seed(options().seed);
  m.order.resize(n);
  std::iota(m.order.begin(), m.order.end(), 0u);
  if (options().order == Options::reverse) std::reverse(m.order.begin(), m.order.end());
  for (unsigned z = 0; z < grid.z && !m.error; ++z) {
    for (unsigned y = 0; y < grid.y && !m.error; ++y) {
      for (unsigned x = 0; x < grid.x && !m.error; ++x) {
        m.block_index = {x, y, z};
        run_block(m);
      }
    }
  }
  acquire(&m.end_tag);
  m.current = nullptr;
#ifdef __SANITIZE_THREAD__
  m.arenas.clear(), m.arena = nullptr;
#endif
  if (!m.error) return;
  for (auto& t : m.pool) {  // abandon what was suspended
    if (t->state == State::done) continue;
    prepare_fiber(*t, thread_main);
    t->state = State::done;
  }
  std::rethrow_exception(m.error);
}

}  // namespace cuemu
