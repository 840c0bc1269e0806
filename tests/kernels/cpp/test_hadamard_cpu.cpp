// The CPU kernels of the Hadamard convolution against a direct computation in double precision, for the instruction
// sets that are linked in and that this processor has. Buffers are allocated to the byte, so that AddressSanitizer sees
// every overrun; three threads share the work, so that ThreadSanitizer sees every race. Exit status 1 and a line per
// failure.
#include "../../../kernels/csrc/cpu/division.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

namespace elsa::cpu {  // a build need not have them all
extern const HadamardTable plain_hadamard __attribute__((weak));
#if defined(__x86_64__)
extern const HadamardTable avx2_hadamard __attribute__((weak)), avx512_hadamard __attribute__((weak));
extern const HadamardKernel avx512_bf16_hadamard __attribute__((weak));
#endif
}  // namespace elsa::cpu

using elsa::HadamardProblem;
using namespace elsa::cpu;
using Numbers = std::vector<double>;

namespace {

enum class Type { f32, f64, f16, bf16 };
constexpr const char* kNames[] = {"f32", "f64", "f16", "bf16"};
constexpr double kAllowed[] = {5e-6, 1e-12, 2e-3, 1.6e-2};

struct Case {
  int64_t batch, height, width, groups, group_width, kernel, dilation, rest;
  bool bias;
};

const Case kCases[] = {
    {2, 37, 15, 5, 4, 7, 1, 5, true},   // several slots, a run and a bit, a vector and a bit
    {1, 6, 29, 3, 8, 5, 1, 33, false},  // no bias
    {1, 4, 3, 9, 4, 3, 1, 0, true},     // narrower than a run
    {1, 2, 1, 2, 2, 7, 1, 1, true},     // smaller than the kernel
    {1, 7, 9, 1, 16, 3, 3, 2, true},    // dilated
    {2, 5, 18, 4, 3, 5, 1, 7, true},    // a width for planes
    {1, 3, 4, 2, 5, 9, 2, 0, false},    // the same, kernel beyond the map
    {1, 2, 3, 1, 20, 1, 1, 1, true},    // one tap
    {0, 3, 3, 1, 4, 3, 1, 2, true},     // no image
};

double decode(Type type, const void* at) {
  uint16_t half;
  uint32_t word;
  float single;
  double wide;
  switch (type) {
    case Type::f64: return std::memcpy(&wide, at, 8), wide;
    case Type::f32: return std::memcpy(&single, at, 4), single;
    case Type::bf16: break;
    case Type::f16: {
      std::memcpy(&half, at, 2);
      const int exponent = half >> 10 & 31, fraction = half & 1023;
      const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
      return exponent == 31 ? std::numeric_limits<double>::quiet_NaN() : half >> 15 ? -size : size;
    }
  }
  std::memcpy(&half, at, 2), word = uint32_t{half} << 16, std::memcpy(&single, &word, 4);
  return single;
}

// An exact-size array of one of the storage types. Its numbers are sixteenths below two: exact in all of them.
class Buffer {
 public:
  Buffer(Type type, int64_t count)
      : type_(type),
        size_(type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2),
        count_(count),
        bytes_(new unsigned char[size_t(count * size_)]) {
    std::memset(bytes_.get(), 0xff, size_t(count * size_));
  }
  void set(int64_t i, double x) {
    const float single = float(x);
    uint32_t word;
    std::memcpy(&word, &single, 4);
    const uint32_t size = x == 0 ? 0 : (word >> 13 & 0x3ffff) - (112 << 10);  // of a half
    const uint16_t half = uint16_t(type_ == Type::f16 ? (word >> 16 & 0x8000) | size : word >> 16);
    if (type_ == Type::f64) std::memcpy(at(i), &x, 8);
    else if (type_ == Type::f32) std::memcpy(at(i), &single, 4);
    else std::memcpy(at(i), &half, 2);
  }
  double operator[](int64_t i) const { return decode(type_, at(i)); }
  Numbers numbers() const {
    Numbers all(static_cast<size_t>(count_));
    for (int64_t i = 0; i < count_; ++i) all[size_t(i)] = (*this)[i];
    return all;
  }
  void* get() const { return bytes_.get(); }

 private:
  unsigned char* at(int64_t i) const { return bytes_.get() + i * size_; }
  Type type_;
  int64_t size_, count_;
  std::unique_ptr<unsigned char[]> bytes_;
};

struct Data {
  Numbers packed, weight, bias, grad_local, grad_rest, before, local, grad_packed, grad_weight, grad_bias;
};

double tail(double z) { return 0.5 * std::erfc(-z / std::sqrt(2.0)); }
double slope(double z) { return tail(z) + z * std::exp(-z * z / 2) / std::sqrt(2 * std::acos(-1.0)); }

// Calls f(output position, input position, tap) for all that meet.
template <class F>
void for_meetings(const HadamardProblem& p, F&& f) {
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t y = 0; y < p.height; ++y)
      for (int64_t x = 0; x < p.width; ++x)
        for (int64_t t = 0; t < p.taps(); ++t) {
          const int64_t v = y + (t / p.kernel - p.kernel / 2) * p.dilation;
          const int64_t u = x + (t % p.kernel - p.kernel / 2) * p.dilation;
          if (v >= 0 && v < p.height && u >= 0 && u < p.width)
            f((b * p.height + y) * p.width + x, (b * p.height + v) * p.width + u, t);
        }
}

// Calls f(output channel, input channel, index of their weights' tap 0).
template <class F>
void for_channels(const HadamardProblem& p, F&& f) {
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t i = 0; i < p.group_width; ++i)
      f(c, c / p.group_width * p.group_width + i, (c * p.group_width + i) * p.taps());
}

void compute_forward(const HadamardProblem& p, double scale, Data& d) {
  for (int64_t at = 0; at < p.positions(); ++at)
    for (int64_t c = 0; c < p.channels; ++c) d.before[at * p.channels + c] = d.bias.empty() ? 0 : d.bias[c];
  for_meetings(p, [&](int64_t out, int64_t in, int64_t tap) {
    const double* q = &d.packed[in * p.packed];
    for_channels(p, [&](int64_t c, int64_t i, int64_t weight) {
      d.before[out * p.channels + c] += d.weight[weight + tap] * q[i] * q[p.channels + i] * scale;
    });
  });
  for (size_t i = 0; i < d.before.size(); ++i) d.local[i] = d.before[i] * tail(d.before[i]);
}

// From the `before` that was saved.
void compute_backward(const HadamardProblem& p, double scale, const Numbers& before, Data& d) {
  Numbers gradient(before.size()), product(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    gradient[i] = d.grad_local[i] * slope(before[i]);
    d.grad_bias[i % size_t(p.channels)] += gradient[i];
  }
  for_meetings(p, [&](int64_t out, int64_t in, int64_t tap) {
    const double* q = &d.packed[in * p.packed];
    for_channels(p, [&](int64_t c, int64_t i, int64_t weight) {
      d.grad_weight[weight + tap] += gradient[out * p.channels + c] * q[i] * q[p.channels + i] * scale;
      product[in * p.channels + i] += gradient[out * p.channels + c] * d.weight[weight + tap];
    });
  });
  for (int64_t at = 0; at < p.positions(); ++at) {
    const double* q = &d.packed[at * p.packed];
    double* to = &d.grad_packed[at * p.packed];
    for (int64_t c = 0; c < p.channels; ++c) {
      to[c] = product[at * p.channels + c] * q[p.channels + c] * scale;
      to[p.channels + c] = product[at * p.channels + c] * q[c] * scale;
    }
    for (int64_t c = 0; c < p.rest(); ++c)
      to[2 * p.channels + c] = d.grad_rest.empty() ? 0 : d.grad_rest[at * p.rest() + c];
  }
}

struct Run {
  const char* set;
  Type type;
  const Case& sizes;

  bool close(const char* name, const Buffer& got, const Numbers& expected, double terms) const {
    double worst = 0, largest = std::max(1.0, std::sqrt(terms));
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = std::fabs(got[int64_t(i)] - expected[i]);
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
      largest = std::max(largest, std::fabs(expected[i]));
    }
    if (worst <= kAllowed[int(type)] * largest) return true;
    std::printf("WRONG %s: error %.2e of %.2e, %s, %s, map %ldx%ldx%ld, %ld groups of %ld, K %ld, dilation %ld\n", name,
                worst, largest, set, kNames[int(type)], long(sizes.batch), long(sizes.height), long(sizes.width),
                long(sizes.groups), long(sizes.group_width), long(sizes.kernel), long(sizes.dilation));
    return false;
  }
};

// f(first, last, scratch) over `count` units in three threads, each with scratch memory of its own.
template <class F>
void in_threads(int64_t count, int64_t scratch_bytes, F&& f) {
  std::vector<std::thread> threads;
  for (int64_t n = 0; n < 3; ++n)
    threads.emplace_back([=, &f] {
      constexpr std::align_val_t kAlignment{64};
      void* scratch = ::operator new(size_t(scratch_bytes), kAlignment);
      std::memset(scratch, 0xff, size_t(scratch_bytes));
      if (count * n / 3 < count * (n + 1) / 3) f(count * n / 3, count * (n + 1) / 3, scratch);
      ::operator delete(scratch, kAlignment);
    });
  for (std::thread& thread : threads) thread.join();
}

bool run(const char* set, Type type, const HadamardKernel& kernel, const Case& c, std::mt19937& random) {
  HadamardProblem p{};
  p.batch = c.batch, p.height = c.height, p.width = c.width, p.channels = c.groups * c.group_width;
  p.packed = 2 * p.channels + c.rest, p.group_width = c.group_width, p.kernel = c.kernel, p.dilation = c.dilation;
  const int64_t values = p.positions() * p.channels, weights = p.channels * p.group_width * p.taps();
  Buffer packed(type, p.positions() * p.packed), weight(type, weights), bias(type, p.channels);
  Buffer grad_local(type, values), grad_rest(type, p.positions() * p.rest());
  std::uniform_int_distribution<int> draw(-31, 31);
  const auto fill = [&](Buffer& buffer, int64_t count) {
    for (int64_t i = 0; i < count; ++i) buffer.set(i, draw(random) / 16.0);
  };
  fill(packed, p.positions() * p.packed), fill(weight, weights), fill(bias, p.channels);
  fill(grad_local, values), fill(grad_rest, p.positions() * p.rest());
  Data d{packed.numbers(), weight.numbers(), c.bias ? bias.numbers() : Numbers{}, grad_local.numbers(),
         c.bias ? grad_rest.numbers() : Numbers{}};
  d.before.resize(size_t(values)), d.local.resize(size_t(values)), d.grad_packed.resize(d.packed.size());
  d.grad_weight.resize(size_t(weights)), d.grad_bias.resize(size_t(p.channels));
  const double scale = 0.5 / std::sqrt(double(p.group_width * p.taps()));

  Buffer local(type, values), before(type, values);
  const HadamardGeometry f = forward_geometry(p, kernel);
  const HadamardForward forward{f,           packed.get(), weight.get(), c.bias ? bias.get() : nullptr, scale,
                                local.get(), before.get()};
  in_threads(f.chunks * f.slots, kernel.forward_scratch(f),
             [&](int64_t first, int64_t last, void* scratch) { kernel.forward(forward, first, last, scratch); });
  compute_forward(p, scale, d);
  const Run names{set, type, c};
  bool ok = names.close("before", before, d.before, 1);
  ok = names.close("local", local, d.local, 1) && ok;

  Buffer grad_packed(type, p.positions() * p.packed), grad_weight(type, weights), grad_bias(type, p.channels);
  const HadamardGeometry b = backward_geometry(p, kernel);
  const std::unique_ptr<char[]> partial(new char[size_t(b.chunks * b.slots * kernel.partial_bytes(b))]);
  const HadamardBackward backward{b,
                                  grad_local.get(),
                                  c.bias ? grad_rest.get() : nullptr,
                                  packed.get(),
                                  weight.get(),
                                  before.get(),
                                  scale,
                                  grad_packed.get(),
                                  partial.get(),
                                  grad_weight.get(),
                                  grad_bias.get()};
  in_threads(b.chunks * b.slots, kernel.backward_scratch(b),
             [&](int64_t first, int64_t last, void* scratch) { kernel.backward(backward, first, last, scratch); });
  in_threads(b.chunks, 1, [&](int64_t first, int64_t last, void*) { kernel.reduce(backward, first, last); });
  compute_backward(p, scale, before.numbers(), d);
  ok = names.close("grad_packed", grad_packed, d.grad_packed, 1) && ok;
  ok = names.close("grad_weight", grad_weight, d.grad_weight, double(p.positions())) && ok;
  return names.close("grad_bias", grad_bias, d.grad_bias, double(p.positions())) && ok;
}

int count = 0, bad = 0;

void run_all(const char* set, Type type, const HadamardKernel* kernel, bool supported = true) {
  if (!kernel || !kernel->forward || !supported) return;
  std::mt19937 random(1);
  for (const Case& c : kCases) ++count, bad += !run(set, type, *kernel, c, random);
}

void run_all(const char* set, const HadamardTable* table, bool supported = true) {
  if (!table) return;
  run_all(set, Type::f32, &table->float32, supported), run_all(set, Type::f64, &table->float64, supported);
  run_all(set, Type::f16, &table->float16, supported), run_all(set, Type::bf16, &table->bfloat16, supported);
}

}  // namespace

int main() {
  run_all("plain", &plain_hadamard);
#if defined(__x86_64__)
  run_all("avx2", &avx2_hadamard, __builtin_cpu_supports("avx2"));
  run_all("avx512", &avx512_hadamard, __builtin_cpu_supports("avx512dq"));
  run_all("avx512_bf16", Type::bf16, &avx512_bf16_hadamard, __builtin_cpu_supports("avx512bf16"));
#endif
  std::printf("%d cases, %d bad\n", count, bad);
  return bad != 0;
}
