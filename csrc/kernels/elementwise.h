// Norms, sums and gates.
#pragma once

#include "kernels/kernels.h"
#include "kernels/math.h"

namespace sterna::STERNA_VARIANT {

STERNA_INLINE float sum_of_squares(const float* x, int width) {
  Vec sum = broadcast(0.0f);
  for (int i = 0; i < width; i += kLanes) {
    const Vec v = load_n(x + i, width - i);
    sum = fma(v, v, sum);
  }
  return sum_lanes(sum);
}

STERNA_INLINE void rms_norm_row(const float* x, const float* weight, float eps, int width, float* y) {
  const Vec scale = broadcast(rsqrt(sum_of_squares(x, width) / static_cast<float>(width) + eps));
  const Vec one = broadcast(1.0f);
  for (int i = 0; i < width; i += kLanes) {
    const int n = width - i;
    store_n(y + i, load_n(x + i, n) * scale * (one + load_n(weight + i, n)), n);
  }
}

static void rms_norm(const float* x, const float* weight, float eps, int rows, int width, float* y) {
  for (int r = 0; r < rows; ++r) {
    const int64_t at = static_cast<int64_t>(r) * width;
    rms_norm_row(x + at, weight, eps, width, y + at);
  }
}

static void add(float* x, const float* y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, load(x + i) + load(y + i));
  for (; i < count; ++i) x[i] = x[i] + y[i];
}

static void combine(const float* const* parts, const float* weights, int count, const float* shared, float shared_gate,
                    int width, float* out) {
  const float gate = sigmoid(shared_gate);
  for (int i = 0; i < width; i += kLanes) {
    const int n = width - i;
    Vec sum = broadcast(0.0f);
    for (int j = 0; j < count; ++j) sum = fma(broadcast(weights[j]), load_n(parts[j] + i, n), sum);
    store_n(out + i, fma(broadcast(gate), load_n(shared + i, n), sum), n);
  }
}

static void router_weights(const float* logits, int count, float* weights) {
  float sum = 0.0f;
  for (int j = 0; j < count; ++j) {
    weights[j] = exp(logits[j] - logits[0]);
    sum = sum + weights[j];
  }
  for (int j = 0; j < count; ++j) weights[j] = weights[j] / sum;
}

static float sigmoid_scalar(float x) { return sigmoid(x); }

static void gate_output(float* out, const float* gate, int width) {
  for (int i = 0; i < width; i += kLanes) {
    const int n = width - i;
    store_n(out + i, load_n(out + i, n) * sigmoid(load_n(gate + i, n)), n);
  }
}

}  // namespace sterna::STERNA_VARIANT
