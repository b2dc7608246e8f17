// Layer normalisation (optional) and leaky integrate-and-fire over x [T, N, G, D], one pass each way.
// Definition: `norm_lif` and `lif_reference` in lif.py. Membranes live in cache only: backward computes them again
// from x, so the caller keeps x and nothing else. A row is one (n, g): T slices of D numbers, stride N * G * D.
// The integer code has no memory: one step, and a staircase in place of the threshold.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

struct Neuron {
  double beta, threshold, gain, alpha, eps;
  bool zero, delay, strict, atan;
  int64_t lowest, levels;  // of the integer code; levels 0: spikes of 0 and 1, or of -1, 0 and 1 where lowest is -1

  bool ternary() const { return !levels && lowest < 0; }
};

template <typename F>
struct Row {
  const Neuron& n;
  int64_t steps, width;
  F beta, forgets, threshold_fires;  // forgets: the share of the membrane that a spike to zero takes from the next step
  F threshold_off;                   // at or below it a neuron sends -1
  std::vector<F> membrane, normed, inverse;  // [T, D], [T, D], [T]

  Row(const Neuron& neuron, int64_t t, int64_t d)
      : n(neuron), steps(t), width(d), beta(neuron.beta), forgets(neuron.zero ? neuron.beta : 0),
        threshold_fires(neuron.threshold), membrane(t * d), normed(t * d), inverse(t) {
    if (n.strict) threshold_fires = std::nextafter(threshold_fires, std::numeric_limits<F>::infinity());  // > is >= next
    threshold_off = n.ternary() ? -threshold_fires : -std::numeric_limits<F>::infinity();
  }

  void normalise(const F* __restrict__ x, int64_t t) {
    F sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < width; ++d) sum += x[d];
    const F centre = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < width; ++d) squares += (x[d] - centre) * (x[d] - centre);
    const F scale = F(1) / std::sqrt(squares / width + F(n.eps));
    F* __restrict__ out = &normed[t * width];
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) out[d] = (x[d] - centre) * scale;
    inverse[t] = scale;
  }

  // membrane[t] from membrane[t-1] (or the given state); weight == nullptr: no normalisation
  void integrate(const F* x, int64_t stride, const F* weight, const F* bias, const F* state) {
    const F threshold = n.threshold, gain = n.gain;
    for (int64_t t = 0; t < steps; ++t) {
      const F* current = x + t * stride;
      F* __restrict__ u = &membrane[t * width];
      if (weight) {
        normalise(current, t);
        const F* __restrict__ z = &normed[t * width];
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) u[d] = gain * (z[d] * weight[d] + bias[d]);
      } else {
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) u[d] = gain * current[d];
      }
      const F* __restrict__ before = t ? u - width : state;
      if (!before) continue;
      if (n.zero) {
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) u[d] += beta * (F(1) - size(fired(before[d]))) * before[d];
      } else if (n.delay) {
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) u[d] = u[d] + beta * before[d] - threshold * fired(before[d]);
      } else {
#pragma omp simd
        for (int64_t d = 0; d < width; ++d) u[d] += beta * (before[d] - threshold * fired(before[d]));
      }
    }
  }

  // gradient of the current -> gradient of x, in place; adds to the gradients of weight and bias
  void normalise_backward(F* __restrict__ down, const F* __restrict__ weight, F* __restrict__ grad_weight,
                          F* __restrict__ grad_bias, int64_t t) {
    const F* __restrict__ z = &normed[t * width];
    F sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t d = 0; d < width; ++d) {
      grad_weight[d] += down[d] * z[d];
      grad_bias[d] += down[d];
      down[d] *= weight[d];
      sum += down[d];
      product += down[d] * z[d];
    }
    sum /= width;
    product /= width;
    const F scale = inverse[t];
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) down[d] = scale * (down[d] - sum - z[d] * product);
  }

  F fired(F u) const { return u >= threshold_fires ? F(1) : u <= threshold_off ? F(-1) : F(0); }

  static F size(F spike) { return spike * spike; }

  F carry(F u) const { return beta - forgets * size(fired(u)); }  // dU[t+1] / dU[t]

  void fire(const F* __restrict__ u, F* __restrict__ s) const {
    if (n.levels) {
      const F threshold = n.threshold, low = n.lowest, high = n.levels;
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F k = std::floor(u[d] / threshold + F(0.5));
        s[d] = k < low ? low : k > high ? high : k;
      }
    } else {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) s[d] = fired(u[d]);
    }
  }

  // g <- g + up * surrogate(u), then down <- gain * g
  void fire_backward(const F* __restrict__ u, const F* __restrict__ up, F* __restrict__ g, F* __restrict__ down) const {
    const F peak = n.alpha / 2, stretch = M_PI / 2 * n.alpha, k = n.alpha, threshold = n.threshold, gain = n.gain;
    if (n.levels) {
      const F low = n.lowest - 0.5, high = n.levels + 0.5;
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F units = u[d] / threshold;
        g[d] += up[d] * (units >= low && units <= high ? F(1) / threshold : F(0));
        down[d] = gain * g[d];
      }
    } else if (n.atan && n.ternary()) {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F on = stretch * (u[d] - threshold), off = stretch * (u[d] + threshold);
        g[d] += up[d] * (peak / (F(1) + on * on) + peak / (F(1) + off * off));
        down[d] = gain * g[d];
      }
    } else if (n.atan) {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F z = stretch * (u[d] - threshold);
        g[d] += up[d] * (peak / (F(1) + z * z));
        down[d] = gain * g[d];
      }
    } else if (n.ternary()) {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F on = F(1) + k * std::abs(u[d] - threshold), off = F(1) + k * std::abs(u[d] + threshold);
        g[d] += up[d] / (on * on) + up[d] / (off * off);
        down[d] = gain * g[d];
      }
    } else {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        const F z = F(1) + k * std::abs(u[d] - threshold);
        g[d] += up[d] / (z * z);
        down[d] = gain * g[d];
      }
    }
  }
};

template <typename F>
const F* data(const Maybe& tensor) {
  return tensor.has_value() ? tensor->data_ptr<F>() : nullptr;
}

// a fixed cut of the rows into one chunk for each thread: sums over chunks come out the same every time
template <typename Body>
void for_chunks(int64_t rows, int64_t chunks, Body body) {
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) body(c, rows * c / chunks, rows * (c + 1) / chunks);
  });
}

template <typename F>
void forward_rows(const Neuron& n, const Tensor& x, const Maybe& state, const Maybe& weight, const Maybe& bias,
                  Tensor& spikes, Maybe& last) {
  const int64_t T = x.size(0), rows = x.size(1) * x.size(2), G = x.size(2), D = x.size(3), stride = rows * D;
  const F *in = x.data_ptr<F>(), *from = data<F>(state), *w = data<F>(weight), *b = data<F>(bias);
  F *out = spikes.data_ptr<F>(), *end = last ? last->data_ptr<F>() : nullptr;
  for_chunks(rows, at::get_num_threads(), [&](int64_t, int64_t first, int64_t stop) {
    Row<F> row(n, T, D);
    for (int64_t r = first; r < stop; ++r) {
      const int64_t at = r * D, group = r % G * D;
      row.integrate(in + at, stride, w ? w + group : nullptr, w ? b + group : nullptr, from ? from + at : nullptr);
      for (int64_t t = 0; t < T; ++t) row.fire(&row.membrane[t * D], out + t * stride + at);
      if (end) std::copy_n(&row.membrane[(T - 1) * D], D, end + at);
    }
  });
}

template <typename F>
void backward_rows(const Neuron& n, const Tensor& x, const Maybe& state, const Maybe& weight, const Maybe& bias,
                   const Tensor& grad_spikes, const Maybe& grad_last, Tensor& grad_x, Maybe& grad_state,
                   Tensor& grad_weight, Tensor& grad_bias) {
  const int64_t T = x.size(0), rows = x.size(1) * x.size(2), G = x.size(2), D = x.size(3), stride = rows * D;
  const F *in = x.data_ptr<F>(), *from = data<F>(state), *w = data<F>(weight), *b = data<F>(bias);
  const F *g_s = grad_spikes.data_ptr<F>(), *g_last = data<F>(grad_last);
  F *g_x = grad_x.data_ptr<F>(), *g_from = grad_state ? grad_state->data_ptr<F>() : nullptr;
  F *g_w = grad_weight.data_ptr<F>(), *g_b = grad_bias.data_ptr<F>();
  for_chunks(rows, grad_weight.size(0), [&](int64_t chunk, int64_t first, int64_t stop) {
    Row<F> row(n, T, D);
    std::vector<F> running(D);
    F* g = running.data();
    for (int64_t r = first; r < stop; ++r) {
      const int64_t at = r * D, group = r % G * D, sums = chunk * G * D + group;
      const F* scale = w ? w + group : nullptr;
      row.integrate(in + at, stride, scale, w ? b + group : nullptr, from ? from + at : nullptr);
      for (int64_t t = T - 1; t >= 0; --t) {
        const F *u = &row.membrane[t * D], *up = g_s + t * stride + at;
        F* down = g_x + t * stride + at;
        if (t == T - 1) {
          for (int64_t d = 0; d < D; ++d) g[d] = g_last ? g_last[at + d] : F(0);
        } else {
#pragma omp simd
          for (int64_t d = 0; d < D; ++d) g[d] *= row.carry(u[d]);
        }
        row.fire_backward(u, up, g, down);
        if (w) row.normalise_backward(down, scale, g_w + sums, g_b + sums, t);
      }
      if (g_from)
        for (int64_t d = 0; d < D; ++d) g_from[at + d] = g[d] * row.carry(from[at + d]);
    }
  });
}

std::tuple<Tensor, Maybe> forward(const Tensor& x, const Maybe& state, const Maybe& weight, const Maybe& bias,
                                  bool keep, double beta, double threshold, double gain, double alpha, double eps,
                                  bool zero, bool delay, bool strict, bool atan, int64_t lowest, int64_t levels) {
  const Neuron n{beta, threshold, gain, alpha, eps, zero, delay, strict, atan, lowest, levels};
  Tensor spikes = at::empty_like(x);
  Maybe last;
  if (keep) last = at::empty({x.size(1), x.size(2), x.size(3)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm_lif",
                             ([&] { forward_rows<scalar_t>(n, x, state, weight, bias, spikes, last); }));
  return {spikes, last};
}

std::tuple<Tensor, Maybe, Tensor, Tensor> backward(const Tensor& x, const Maybe& state, const Maybe& weight,
                                                    const Maybe& bias, const Tensor& grad_spikes,
                                                    const Maybe& grad_last, double beta, double threshold, double gain,
                                                    double alpha, double eps, bool zero, bool delay, bool strict,
                                                    bool atan, int64_t lowest, int64_t levels) {
  const Neuron n{beta, threshold, gain, alpha, eps, zero, delay, strict, atan, lowest, levels};
  const int64_t G = x.size(2), D = x.size(3), normed = weight.has_value() ? G * D : 0;
  Tensor grad_x = at::empty_like(x);
  Maybe grad_state;
  if (state) grad_state = at::empty({x.size(1), G, D}, x.options());
  Tensor grad_weight = at::zeros({at::get_num_threads(), normed}, x.options()), grad_bias = at::zeros_like(grad_weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "norm_lif_backward", ([&] {
                               backward_rows<scalar_t>(n, x, state, weight, bias, grad_spikes, grad_last, grad_x,
                                                       grad_state, grad_weight, grad_bias);
                             }));
  return {grad_x, grad_state, grad_weight.sum(0), grad_bias.sum(0)};
}

}  // namespace

TORCH_LIBRARY(spiketext, library) {
  library.def("norm_lif", &forward);
  library.def("norm_lif_backward", &backward);
}
