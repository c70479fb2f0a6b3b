// Norms, activations and rotation of the vision tower (contract: sterna/ops/vision.py).
#pragma once

#include "kernels/elementwise.h"

namespace sterna::STERNA_VARIANT {

static void layer_norm(const float* x, const float* weight, const float* bias, float eps, int rows, int width,
                       float* y) {
  for (int r = 0; r < rows; ++r, x += width, y += width) {
    Vec sum = broadcast(0.0f);
    for (int i = 0; i < width; i += kLanes) sum = sum + load_n(x + i, width - i);
    const float mean = sum_lanes(sum) / static_cast<float>(width);
    Vec squares = broadcast(0.0f);
    for (int i = 0; i < width; i += kLanes) {
      const Vec centred = keep_n(load_n(x + i, width - i) - broadcast(mean), width - i, 0.0f);
      squares = fma(centred, centred, squares);
    }
    const Vec scale = broadcast(rsqrt(sum_lanes(squares) / static_cast<float>(width) + eps));
    for (int i = 0; i < width; i += kLanes) {
      const int n = width - i;
      const Vec normal = (load_n(x + i, n) - broadcast(mean)) * scale;
      store_n(y + i, fma(normal, load_n(weight + i, n), load_n(bias + i, n)), n);
    }
  }
}

// x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is x/2 (1 + tanh(...)).
STERNA_INLINE Vec gelu_tanh(const Vec& x) {
  const Vec inner = fma(x * x, broadcast(0.044715f) * x, x);
  return x * sigmoid(broadcast(1.5957691216057308f) * inner);
}

// x Phi(x). The tail 1 - Phi(|x|) = 1/2 erfc(|x| / sqrt 2) by Abramowitz and Stegun 7.1.26, absolute error below 1e-7;
// max(x, 0) - |x| tail keeps its relative accuracy for negative x.
STERNA_INLINE Vec gelu_erf(const Vec& x) {
  const Vec z = abs(x) * broadcast(0.70710678118654752f);
  const Vec t = broadcast(1.0f) / fma(z, broadcast(0.3275911f), broadcast(1.0f));
  Vec p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  const Vec tail = broadcast(0.5f) * p * t * exp(broadcast(0.0f) - z * z);
  return max(x, broadcast(0.0f)) - abs(x) * tail;
}

static void bias_activation(float* x, const float* bias, int width, Activation activation) {
  for (int i = 0; i < width; i += kLanes) {
    const int n = width - i;
    Vec y = load_n(x + i, n) + load_n(bias + i, n);
    if (activation == Activation::kGeluTanh) y = gelu_tanh(y);
    if (activation == Activation::kGeluErf) y = gelu_erf(y);
    store_n(x + i, y, n);
  }
}

// Pairs (i, i + half) of one head turned by the angle i, then scaled.
static void rotate_head(const float* x, const float* cos, const float* sin, int half, float scale, float* y) {
  const Vec factor = broadcast(scale);
  for (int i = 0; i < half; i += kLanes) {
    const int n = half - i;
    const Vec first = load_n(x + i, n);
    const Vec second = load_n(x + half + i, n);
    const Vec c = load_n(cos + i, n);
    const Vec s = load_n(sin + i, n);
    store_n(y + i, (first * c - second * s) * factor, n);
    store_n(y + half + i, (second * c + first * s) * factor, n);
  }
}

}  // namespace sterna::STERNA_VARIANT
