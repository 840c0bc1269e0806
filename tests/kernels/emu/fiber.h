// Fibers: one per CUDA thread, switched by hand, and known to the sanitizers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(CUEMU_UCONTEXT)
#define CUEMU_UCONTEXT
#endif
#ifdef CUEMU_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace cuemu {

constexpr size_t kStack = 64 << 10;

struct Fiber {
#ifdef CUEMU_UCONTEXT
  ucontext_t context{};
#else
  void* stack_pointer = nullptr;
#endif
  void *stack = nullptr, *fake_stack = nullptr, *tsan = nullptr;
};

#ifndef CUEMU_UCONTEXT
extern "C" void cuemu_switch(void** save, void* to);
asm(R"(.section .text.cuemu_switch,"axG",@progbits,cuemu_switch,comdat
.weak cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
.size cuemu_switch,.-cuemu_switch
.previous)");
#endif

// `to_main`: the fiber that is switched to runs on the operating system's stack.
inline void switch_fiber(Fiber& from, Fiber& to, bool from_main, bool to_main) {
#ifdef __SANITIZE_ADDRESS__
  static const void* main_stack;
  static size_t main_size;
  if (from_main && !main_stack) {
    pthread_attr_t attributes;
    void* base;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &base, &main_size);
    main_stack = base;
    pthread_attr_destroy(&attributes);
  }
  __sanitizer_start_switch_fiber(&from.fake_stack, to_main ? main_stack : to.stack, to_main ? main_size : kStack);
#else
  (void)from_main, (void)to_main;
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CUEMU_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  cuemu_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// First thing on a new fiber.
inline void fiber_started() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

// Gives the fiber a fresh start at `entry`, which must not return.
inline void prepare_fiber(Fiber& f, void (*entry)()) {
  if (!f.stack) {
    f.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) throw std::bad_alloc();
  }
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(f.stack, kStack);
#endif
#ifdef __SANITIZE_THREAD__
  if (!f.tsan) f.tsan = __tsan_create_fiber(0);
#endif
#ifdef CUEMU_UCONTEXT
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = kStack, f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
#else
  // What cuemu_switch pops: six registers, then the address to return to; the stack aligned as after a call.
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(f.stack) + kStack) & ~uintptr_t(15)) - 2;
  top[0] = reinterpret_cast<void*>(entry), top[1] = nullptr;
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  f.stack_pointer = top - 6;
#endif
}

// The emulator's own bookkeeping is no CUDA memory access: TSan looks away while a Quiet lives, except inside a Loud.
struct Quiet {
#ifdef __SANITIZE_THREAD__
  static void on() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  static void off() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  static void on() {}
  static void off() {}
#endif
  Quiet() { on(); }
  ~Quiet() { off(); }
};
struct Loud {
  Loud() { Quiet::off(); }
  ~Loud() { Quiet::on(); }
};

// Happens-before edges for TSan: what was written before release(tag) is seen after acquire(tag).
inline void release(void* tag) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(tag);
#else
  (void)tag;
#endif
}
inline void acquire(void* tag) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(tag);
#else
  (void)tag;
#endif
}

inline void poison(void* p, size_t n) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}
inline void unpoison(void* p, size_t n) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(p, n);
#else
  (void)p, (void)n;
#endif
}

}  // namespace cuemu
