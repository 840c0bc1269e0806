// The CUDA sources of the Hadamard convolution under emulation against a direct double-precision computation. Exit
// status 1 and a line per failure; with an argument (f32, f16), that type alone.
#include "../../../kernels/csrc/cuda/hadamard_launch.h"
#include "buffers.h"

using elsa::HadamardProblem;

namespace {

struct Case {
  Type type;
  int64_t batch, height, width, groups, group_width, kernel, dilation, rest;
  bool optional;  // bias and the gradient of the rest
};

const Case kCases[] = {
    {Type::f16, 1, 15, 17, 5, 4, 7, 1, 4, true},   // a tile and a bit, a chunk of channels and a bit
    {Type::f16, 1, 3, 33, 2, 8, 5, 1, 4, false},   // wide tiles
    {Type::f16, 2, 1, 2, 3, 4, 3, 2, 0, true},     // map smaller than the kernel, phases
    {Type::f16, 1, 2, 18, 3, 8, 3, 1, 8, true},    // an odd number of groups
    {Type::f16, 1, 4, 3, 2, 4, 3, 1, 5, true},     // unaligned rows: the generic kernels
    {Type::bf16, 1, 2, 20, 2, 8, 7, 1, 4, true},   // every unit of a row of taps
    {Type::bf16, 1, 16, 3, 1, 4, 5, 1, 0, false},  // the lower half of a tile
    {Type::f32, 1, 15, 17, 5, 4, 7, 1, 4, true},   // the same on CUDA cores
    {Type::f32, 1, 3, 33, 2, 8, 5, 1, 4, false},
    {Type::f32, 2, 1, 2, 3, 4, 3, 2, 0, true},
    {Type::f32, 1, 4, 3, 2, 3, 5, 2, 1, true},  // generic: group width, dilation
    {Type::f64, 1, 3, 4, 2, 2, 3, 1, 3, true},
};

struct Data {
  Numbers packed, weight, bias, grad_local, grad_rest, before, local, grad_packed, grad_weight, grad_bias;
};

double normal_share(double z) {
  return 0.5 * std::erfc(-z * std::sqrt(0.5));
}

// Everything from its definition; `visit` gets every product of a tap: output, its weight, and the channel it reads.
template <class Visit>
void each_product(const HadamardProblem& p, Visit visit) {
  for (int64_t n = 0; n < p.positions() * p.channels; ++n) {
    const int64_t at = n / p.channels, c = n % p.channels, x = at % p.width, y = at / p.width % p.height;
    for (int64_t t = 0; t < p.taps() * p.group_width; ++t) {
      const int64_t tap = t % p.taps(), in = c / p.group_width * p.group_width + t / p.taps();
      const int64_t half = p.kernel / 2, dy = (tap / p.kernel - half) * p.dilation;
      const int64_t dx = (tap % p.kernel - half) * p.dilation;
      if (y + dy < 0 || y + dy >= p.height || x + dx < 0 || x + dx >= p.width) continue;
      visit(size_t(n), size_t(c * p.group_width * p.taps() + t), (at + dy * p.width + dx) * p.packed + in);
    }
  }
}

void compute(const HadamardProblem& p, double scale, Data& d) {
  const size_t outputs = size_t(p.positions() * p.channels), key = size_t(p.channels);
  for (size_t n = 0; n < outputs; ++n) d.before.push_back(d.bias.empty() ? 0 : d.bias[n % key]);
  each_product(p, [&](size_t n, size_t w, size_t at) {
    d.before[n] += d.weight[w] * d.packed[at] * d.packed[at + key] * scale;
  });
  d.grad_packed.resize(d.packed.size()), d.grad_weight.resize(d.weight.size()), d.grad_bias.resize(key);
  Numbers slope;
  for (size_t n = 0; n < outputs; ++n) {
    const double z = d.before[n], density = std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI);
    d.local.push_back(z * normal_share(z));
    slope.push_back(d.grad_local[n] * (normal_share(z) + z * density));
    d.grad_bias[n % key] += slope[n];
  }
  each_product(p, [&](size_t n, size_t w, size_t at) {
    d.grad_weight[w] += slope[n] * d.packed[at] * d.packed[at + key] * scale;
    d.grad_packed[at] += slope[n] * d.weight[w] * d.packed[at + key] * scale;
    d.grad_packed[at + key] += slope[n] * d.weight[w] * d.packed[at] * scale;
  });
  for (size_t n = 0; n < d.grad_rest.size(); ++n) {
    const size_t rest = size_t(p.rest());
    d.grad_packed[n / rest * size_t(p.packed) + 2 * key + n % rest] = d.grad_rest[n];
  }
}

bool run(const Case& c, std::mt19937& random) {
  HadamardProblem p{};
  p.batch = c.batch, p.height = c.height, p.width = c.width, p.channels = c.groups * c.group_width;
  p.packed = 2 * p.channels + c.rest, p.group_width = c.group_width, p.kernel = c.kernel, p.dilation = c.dilation;
  const double scale = 0.5;
  const int64_t outputs = p.positions() * p.channels, weights = p.channels * p.group_width * p.taps();
  Data d;
  d.packed = draw(random, p.positions() * p.packed, c.type);
  d.weight = draw(random, weights, c.type, 1 / std::sqrt(double(p.group_width * p.taps())));
  d.grad_local = draw(random, outputs, c.type);
  if (c.optional) d.bias = draw(random, p.channels, c.type);
  if (c.optional) d.grad_rest = draw(random, p.positions() * p.rest(), c.type);
  compute(p, scale, d);

  const Buffer packed(c.type, d.packed), weight(c.type, d.weight), bias(c.type, d.bias);
  const Buffer grad_local(c.type, d.grad_local), grad_rest(c.type, d.grad_rest);
  Buffer local(c.type, outputs), before(c.type, outputs), grad_packed(c.type, d.packed.size());
  Buffer grad_weight(c.type, weights), grad_bias(c.type, p.channels);
  const elsa::cuda::HadamardInputs in{packed.bytes.get(), weight.bytes.get(), c.optional ? bias.bytes.get() : nullptr,
                                      scale};
  const elsa::cuda::HadamardSaved saved{grad_local.bytes.get(), c.optional ? grad_rest.bytes.get() : nullptr,
                                        before.bytes.get()};
  const elsa::cuda::HadamardGradients grads{grad_packed.bytes.get(), grad_weight.bytes.get(), grad_bias.bytes.get()};
  const Type acc = c.type == Type::f64 ? Type::f64 : Type::f32;
  Buffer workspace(acc, elsa::cuda::hadamard_workspace_bytes(p, c.type) / size_of(acc));
  const bool ran = launched([&] {
    const elsa::cuda::HadamardOutputs out{local.bytes.get(), before.bytes.get()};
    const char* error = elsa::cuda::hadamard_forward(p, c.type, in, out, nullptr);
    if (error) return error;
    return elsa::cuda::hadamard_backward(p, c.type, in, saved, grads, workspace.bytes.get(), nullptr);
  });
  if (!ran) return false;
  bool ok = close("local", local, d.local);
  ok = close("before", before, d.before) && ok;
  ok = close("grad_packed", grad_packed, d.grad_packed) && ok;
  ok = close("grad_weight", grad_weight, d.grad_weight) && ok;
  return close("grad_bias", grad_bias, d.grad_bias) && ok;
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc < 2;
  const Type only = !all && !std::strcmp(argv[1], "f16") ? Type::f16 : Type::f32;
  std::mt19937 random(1);
  int count = 0, bad = 0;
  for (const Case& c : kCases) {
    if (!all && c.type != only) continue;
    const bool ok = run(c, random);
    ++count, bad += !ok;
    if (!ok) {
      std::printf("  type %d, %ldx%ldx%ld, %ld groups of %ld, K %ld, dilation %ld, rest %ld, optional %d\n",
                  int(c.type), long(c.batch), long(c.height), long(c.width), long(c.groups), long(c.group_width),
                  long(c.kernel), long(c.dilation), long(c.rest), c.optional);
    }
  }
  std::printf("%d cases, %d bad\n", count, bad);
  return bad != 0;
}
