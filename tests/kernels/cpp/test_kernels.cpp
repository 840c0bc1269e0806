// The CUDA sources under emulation against a direct double-precision computation. Exit status 1 and a line per failure;
// with the argument f32, float alone.
#include "buffers.h"

using elsa::Problem;

namespace {

struct Case {
  Type type;
  int64_t batch, height, width, heads, head_channels, kernel, dilation;
  bool mul, add;
};

const Case kCases[] = {
    {Type::f32, 1, 9, 18, 2, 32, 7, 1, false, true},  // a tile and a bit, as in the released models
    {Type::bf16, 1, 9, 5, 1, 32, 5, 1, true, true},   // narrower than a tile
    {Type::f16, 1, 7, 5, 2, 16, 3, 2, true, true},    // four phases
    {Type::f32, 2, 1, 1, 3, 5, 7, 1, true, true},     // one position, no vectors
    {Type::f64, 1, 4, 5, 2, 3, 3, 1, true, true},     // the generic kernels
    {Type::f32, 1, 3, 2, 1, 40, 5, 4, true, false},   // dilation beyond the map, two chunks of channels
    {Type::f32, 1, 5, 6, 2, 4, 3, 1, false, false},   // no ghost
    {Type::f32, 2, 3, 4, 2, 3, 9, 1, true, true},     // generic kernel size
    {Type::bf16, 1, 3, 3, 1, 33, 9, 1, true, true},   // the same, two chunks of channels
    {Type::f16, 1, 2, 3, 1, 2, 1, 3, false, true},    // one tap
    {Type::f32, 3, 8, 17, 1, 8, 3, 1, false, true},   // several images and tiles
};

struct Data {
  Numbers value, logits, mul, add, grad, out, dvalue, dlogits, dmul, dadd;
};

// Everything from its definition: out, and by the chain rule the four gradients.
void compute(const Case& c, Data& d) {
  const int64_t channels = c.heads * c.head_channels, taps = c.kernel * c.kernel, half = c.kernel / 2;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t y = 0; y < c.height; ++y)
      for (int64_t x = 0; x < c.width; ++x)
        for (int64_t g = 0; g < c.heads; ++g) {
          const int64_t p = (b * c.height + y) * c.width + x;
          const double* logit = &d.logits[size_t((p * c.heads + g) * taps)];
          Numbers a(taps), da(taps);
          double sum = 0, dot = 0;
          for (int64_t t = 0; t < taps; ++t) sum += a[t] = std::exp(logit[t]);
          for (int64_t t = 0; t < taps; ++t) {
            a[t] /= sum;
            const int64_t yy = y + (t / c.kernel - half) * c.dilation, xx = x + (t % c.kernel - half) * c.dilation;
            if (yy < 0 || yy >= c.height || xx < 0 || xx >= c.width) continue;
            for (int64_t k = 0; k < c.head_channels; ++k) {
              const int64_t ch = g * c.head_channels + k, at = ((b * c.height + yy) * c.width + xx) * channels + ch;
              const double mul = c.mul ? d.mul[ch * taps + t] : 1, add = c.add ? d.add[ch * taps + t] : 0;
              const double grad = d.grad[p * channels + ch], v = d.value[at], f = a[t] * mul + add;
              d.out[p * channels + ch] += f * v;
              d.dvalue[at] += f * grad;
              da[t] += grad * mul * v;
              d.dmul[ch * taps + t] += grad * a[t] * v;
              d.dadd[ch * taps + t] += grad * v;
            }
            dot += a[t] * da[t];
          }
          for (int64_t t = 0; t < taps; ++t) d.dlogits[(p * c.heads + g) * taps + t] = a[t] * (da[t] - dot);
        }
}

bool run(const Case& c, std::mt19937& random) {
  const Problem p{c.batch, c.height, c.width, c.heads * c.head_channels, c.heads, c.kernel, c.dilation};
  Data d;
  const Type acc = c.type == Type::f64 ? Type::f64 : Type::f32;
  const int64_t values = p.positions() * p.channels, logits = p.positions() * p.heads * p.taps(),
                ghosts = p.channels * p.taps();
  d.value = draw(random, values, c.type), d.grad = draw(random, values, c.type);
  d.logits = draw(random, logits, c.type), d.mul = draw(random, ghosts, acc), d.add = draw(random, ghosts, acc);
  d.out.resize(values), d.dvalue.resize(values), d.dlogits.resize(logits), d.dmul.resize(ghosts), d.dadd.resize(ghosts);
  compute(c, d);

  const Buffer value(c.type, d.value), logit(c.type, d.logits), grad(c.type, d.grad), mul(acc, d.mul), add(acc, d.add);
  Buffer out(c.type, values), dvalue(c.type, values), dlogits(c.type, logits), dmul(acc, ghosts), dadd(acc, ghosts);
  const elsa::cuda::Inputs in{value.bytes.get(), logit.bytes.get(), c.mul ? mul.bytes.get() : nullptr,
                              c.add ? add.bytes.get() : nullptr};
  const elsa::cuda::Gradients grads{dvalue.bytes.get(), dlogits.bytes.get(), c.mul ? dmul.bytes.get() : nullptr,
                                    c.add ? dadd.bytes.get() : nullptr};
  const size_t scratch = elsa::cuda::workspace_bytes(p, c.type, c.mul, c.add);
  Buffer workspace(acc, scratch / size_of(acc));
  const bool ran = launched([&] {
    const char* error = elsa::cuda::forward(p, c.type, in, out.bytes.get(), nullptr);
    if (error) return error;
    return elsa::cuda::backward(p, c.type, grad.bytes.get(), in, grads, workspace.bytes.get(), nullptr);
  });
  if (!ran) return false;
  bool ok = close("out", out, d.out) && close("dvalue", dvalue, d.dvalue);
  ok = close("dlogits", dlogits, d.dlogits) && ok;
  if (c.mul) ok = close("dmul", dmul, d.dmul) && ok;
  if (c.add) ok = close("dadd", dadd, d.dadd) && ok;
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  const bool only_f32 = argc > 1 && !std::strcmp(argv[1], "f32");
  std::mt19937 random(1);
  int count = 0, bad = 0;
  for (const Case& c : kCases) {
    if (only_f32 && c.type != Type::f32) continue;
    const bool ok = run(c, random);
    ++count, bad += !ok;
    if (!ok) {
      std::printf("  type %d, %ldx%ldx%ld, %ld heads of %ld, K %ld, dilation %ld, ghosts %d%d\n", int(c.type),
                  long(c.batch), long(c.height), long(c.width), long(c.heads), long(c.head_channels), long(c.kernel),
                  long(c.dilation), c.mul, c.add);
    }
  }
  std::printf("%d cases, %d bad\n", count, bad);
  return bad != 0;
}
