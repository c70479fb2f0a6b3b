// Gated DeltaNet: convolution, gates and norms per row, and the recurrence, which prefill uses too.
#pragma once

#include "kernels/elementwise.h"

namespace sterna::STERNA_VARIANT {

// x * rsqrt(sum x^2 + 1e-6) * scale.
STERNA_INLINE void l2_normalise(float* x, int width, float scale) {
  const Vec factor = broadcast(rsqrt(sum_of_squares(x, width) + 1e-6f) * scale);
  for (int i = 0; i < width; i += kLanes) store_n(x + i, load_n(x + i, width - i) * factor, width - i);
}

static void delta_prepare(const DeltaNetArgs& args, int row, const float* const* previous) {
  const int channels = args.channels;
  float* mixed = args.mixed + static_cast<int64_t>(row) * channels;
  for (int c = 0; c < channels; c += kLanes) {
    const int n = channels - c;
    Vec sum = broadcast(0.0f);
    for (int j = 0; j < args.kernel; ++j) {
      sum = fma(load_n(args.conv_weight + static_cast<int64_t>(j) * channels + c, n), load_n(previous[j] + c, n), sum);
    }
    store_n(mixed + c, silu(sum), n);
  }
  const float scale = rsqrt(static_cast<float>(args.key_dim));
  for (int h = 0; h < args.key_heads; ++h) {
    l2_normalise(mixed + h * args.key_dim, args.key_dim, scale);
    l2_normalise(mixed + (args.key_heads + h) * args.key_dim, args.key_dim, 1.0f);
  }
  const int64_t gates = static_cast<int64_t>(row) * args.value_heads;
  for (int h = 0; h < args.value_heads; h += kLanes) {
    const int n = args.value_heads - h;
    const Vec rate = exp(load_n(args.A_log + h, n));
    const Vec step = softplus(load_n(args.a + gates + h, n) + load_n(args.dt_bias + h, n));
    store_n(args.decay + gates + h, exp(broadcast(0.0f) - rate * step), n);
    store_n(args.beta + gates + h, sigmoid(load_n(args.b + gates + h, n)), n);
  }
}

// S is [K, state_columns]: per key row one vector of value columns. N vectors are carried at once.
template <int N>
static void recurrence_columns(const DeltaNetArgs& args, int head, int column, int begin, int end, float* state) {
  const int key_head = args.tiled_value_heads ? head % args.key_heads : head / (args.value_heads / args.key_heads);
  const int stride = args.state_columns;
  const int width = args.value_dim - column;
  for (int t = begin; t < end; ++t) {
    const float* mixed = args.mixed + static_cast<int64_t>(t) * args.channels;
    const float* q = mixed + key_head * args.key_dim;
    const float* k = mixed + (args.key_heads + key_head) * args.key_dim;
    const float* v = mixed + 2 * args.key_heads * args.key_dim + head * args.value_dim + column;
    const int64_t gate = static_cast<int64_t>(t) * args.value_heads + head;
    const Vec decay = broadcast(args.decay[gate]);
    const Vec beta = broadcast(args.beta[gate]);
    Vec sum[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sum[i] = broadcast(0.0f);
    // k . (decay * S) = decay * (k . S): the decayed state need not be written twice.
    for (int r = 0; r < args.key_dim; ++r) {
      const Vec key = broadcast(k[r]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) sum[i] = fma(key, load(state + r * stride + i * kLanes), sum[i]);
    }
    Vec delta[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      delta[i] = beta * (load_n(v + i * kLanes, width - i * kLanes) - decay * sum[i]);
      sum[i] = broadcast(0.0f);
    }
    for (int r = 0; r < args.key_dim; ++r) {
      const Vec key = broadcast(k[r]);
      const Vec query = broadcast(q[r]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        float* cell = state + r * stride + i * kLanes;
        const Vec updated = fma(key, delta[i], decay * load(cell));
        store(cell, updated);
        sum[i] = fma(query, updated, sum[i]);
      }
    }
    float* out = args.out + (static_cast<int64_t>(t) * args.value_heads + head) * args.value_dim + column;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store_n(out + i * kLanes, sum[i], width - i * kLanes);
  }
}

static void delta_recurrence(const DeltaNetArgs& args, int head, int column, int begin, int end, float* state) {
  // Two vectors at a time: eight registers of delta and sum on the narrowest wide variant.
  const int last = column + kDeltaColumns < args.state_columns ? column + kDeltaColumns : args.state_columns;
  int c = column;
  for (; c + 2 * kLanes <= last; c += 2 * kLanes) recurrence_columns<2>(args, head, c, begin, end, state + c);
  if (c < last) recurrence_columns<1>(args, head, c, begin, end, state + c);
}

static void delta_norm(const DeltaNetArgs& args, int row) {
  for (int h = 0; h < args.value_heads; ++h) {
    const int64_t at = (static_cast<int64_t>(row) * args.value_heads + h) * args.value_dim;
    float* out = args.out + at;
    const float* z = args.z + at;
    const Vec scale = broadcast(rsqrt(sum_of_squares(out, args.value_dim) / static_cast<float>(args.value_dim) + args.eps));
    for (int i = 0; i < args.value_dim; i += kLanes) {
      const int n = args.value_dim - i;
      store_n(out + i, load_n(out + i, n) * scale * load_n(args.norm + i, n) * silu(load_n(z + i, n)), n);
    }
  }
}

}  // namespace sterna::STERNA_VARIANT
