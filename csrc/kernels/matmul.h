// Matrix times rows of activations: a register block of P panels (16 outputs each) by R rows, one multiply-add chain per
// output in ascending k. P and R change speed, never bits.
#pragma once

#include "kernels/kernels.h"
#include "kernels/math.h"

namespace sterna::STERNA_VARIANT {

STERNA_INLINE Panels skip_panels(const Panels& w, int panels) {
  const int64_t bytes = panels * w.stride * element_bytes(w.format);
  return {static_cast<const char*>(w.data) + bytes, w.stride, w.format};
}

}  // namespace sterna::STERNA_VARIANT

#include "kernels/quant_matmul.h"

namespace sterna::STERNA_VARIANT {

struct Float32Panel {
  using Element = float;
  static constexpr int kStep = 1;
  template <int S>
  STERNA_INLINE Vec load(const Element* w) {
    return STERNA_VARIANT::load(w);
  }
};

struct Bfloat16Panel {
  using Element = uint16_t;
  static constexpr int kStep = 2;
  template <int S>
  STERNA_INLINE Vec load(const Element* w) {
    return S == 0 ? load_bf16_even(w) : load_bf16_odd(w);
  }
};

struct Float16Panel {
  using Element = uint16_t;
  static constexpr int kStep = 1;
  template <int S>
  STERNA_INLINE Vec load(const Element* w) {
    return load_f16(w);
  }
};

// Vectors of 16 accumulators that fit the registers beside the weights, and the rows that share one load of weights.
constexpr int kAccumulators = STERNA_ACCUMULATORS;
constexpr int kMaxRows = STERNA_BLOCK_ROWS;

constexpr int panels_for(int rows) {
  int panels = 8;
  while (panels > 1 && panels * rows > kAccumulators) panels /= 2;
  return panels;
}

template <class F, int S, int P, int R>
STERNA_INLINE void multiply_step(const typename F::Element* const (&w)[P], int64_t at, const float* const (&x)[R], int k,
                                 Vec (&acc)[P][R]) {
  Vec weights[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) weights[p] = F::template load<S>(w[p] + at);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec value = broadcast(x[r][k + S]);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) acc[p][r] = fma(weights[p], value, acc[p][r]);
  }
}

template <class F, int P, int R>
static void matmul_block(const MatmulArgs& args, int panel, int row) {
  const typename F::Element* w[P];
  const float* x[R];
  Vec acc[P][R];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    w[p] = static_cast<const typename F::Element*>(args.w.data) + (panel + p) * args.w.stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = args.x[row + r];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const int column = (panel + p) * kPanelRows;
      const Vec start = args.accumulate ? load_n(args.y[row + r] + column, args.columns - column) : broadcast(0.0f);
      acc[p][r] = start;
    }
  }
  const int depth = args.depth;
  int k = 0;
  for (; k + F::kStep <= depth; k += F::kStep) {
    const int64_t at = static_cast<int64_t>(k) * kPanelRows;
    multiply_step<F, 0>(w, at, x, k, acc);
    if constexpr (F::kStep == 2) multiply_step<F, 1>(w, at, x, k, acc);
  }
  if (k < depth) multiply_step<F, 0>(w, static_cast<int64_t>(k) * kPanelRows, x, k, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const int column = (panel + p) * kPanelRows;
      // A copy: were the address of an accumulator taken, the compiler would write it to memory in every step.
      const Vec result = acc[p][r];
      store_n(args.y[row + r] + column, result, args.columns - column);
    }
  }
}

template <class F, int R>
static void matmul_rows(const MatmulArgs& args, int panel, int panels, int row) {
  constexpr int P = panels_for(R);
  if (panels == P) {
    matmul_block<F, P, R>(args, panel, row);
    return;
  }
  for (int p = 0; p < panels; ++p) matmul_block<F, 1, R>(args, panel + p, row);
}

template <class F>
static void matmul_remainder(const MatmulArgs& args, int panel, int panels, int row, int rows) {
  if constexpr (kMaxRows > 2) {
    switch (rows) {
      case 5: return matmul_rows<F, 5>(args, panel, panels, row);
      case 4: return matmul_rows<F, 4>(args, panel, panels, row);
      case 3: return matmul_rows<F, 3>(args, panel, panels, row);
      case 2: return matmul_rows<F, 2>(args, panel, panels, row);
      default: break;
    }
  }
  matmul_rows<F, 1>(args, panel, panels, row);
}

template <class F>
static void matmul_format(const MatmulArgs& args) {
  const int full = args.rows / kMaxRows * kMaxRows;
  const int rest = args.rows - full;
  // The panels of one step stay in the first-level cache while all rows pass; fewer rows allow more panels at once.
  const int step = full > 0 ? panels_for(kMaxRows) : panels_for(rest);
  for (int panel = 0; panel < args.panels; panel += step) {
    const int panels = args.panels - panel < step ? args.panels - panel : step;
    for (int row = 0; row < full; row += kMaxRows) matmul_rows<F, kMaxRows>(args, panel, panels, row);
    if (rest > 0) matmul_remainder<F>(args, panel, panels, full, rest);
  }
}

static void matmul(const MatmulArgs& args) {
  switch (args.w.format) {
    case Format::kFloat32: return matmul_format<Float32Panel>(args);
    case Format::kBfloat16: return matmul_format<Bfloat16Panel>(args);
    case Format::kFloat16: return matmul_format<Float16Panel>(args);
    default: return quant_matmul(args);
  }
}

static void swiglu(const MatmulArgs& args, const Panels& up) {
  if (is_quantized(args.w.format)) return quant_swiglu(args, up);
  constexpr int kPanels = 4;
  constexpr int kRows = 6;
  constexpr int kWidth = kPanels * kPanelRows;
  float gates[kRows][kWidth], ups[kRows][kWidth];
  float *gate_rows[kRows], *up_rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    gate_rows[r] = gates[r];
    up_rows[r] = ups[r];
  }
  for (int panel = 0; panel < args.panels; panel += kPanels) {
    const int panels = args.panels - panel < kPanels ? args.panels - panel : kPanels;
    MatmulArgs part = args;
    part.panels = panels;
    part.columns = panels * kPanelRows;
    part.accumulate = false;
    for (int row = 0; row < args.rows; row += kRows) {
      part.x = args.x + row;
      part.rows = args.rows - row < kRows ? args.rows - row : kRows;
      part.w = skip_panels(args.w, panel);
      part.y = gate_rows;
      matmul(part);
      part.w = skip_panels(up, panel);
      part.y = up_rows;
      matmul(part);
      for (int r = 0; r < part.rows; ++r) {
        for (int p = 0; p < panels; ++p) {
          const int column = (panel + p) * kPanelRows;
          const Vec h = silu(load(gates[r] + p * kPanelRows)) * load(ups[r] + p * kPanelRows);
          store_n(args.y[row + r] + column, h, args.columns - column);
        }
      }
    }
  }
}

STERNA_INLINE float weight_at(const Panels& w, int row, int k) {
  const int64_t panel = (row / kPanelRows) * w.stride;
  const int lane = row % kPanelRows;
  switch (w.format) {
    case Format::kFloat32:
      return static_cast<const float*>(w.data)[panel + static_cast<int64_t>(k) * kPanelRows + lane];
    case Format::kBfloat16:
      return float_from_bf16(
          static_cast<const uint16_t*>(w.data)[panel + static_cast<int64_t>(k / 2) * 2 * kPanelRows + 2 * lane + k % 2]);
    case Format::kFloat16:
      return float_from_f16(
          static_cast<const uint16_t*>(w.data)[panel + static_cast<int64_t>(k) * kPanelRows + lane]);
    default: return 0.0f;
  }
  return 0.0f;
}

static void unpack_row(const Panels& w, int depth, int row, float* out) {
  if (is_quantized(w.format)) return unpack_quant(w, depth, row, out);
  for (int k = 0; k < depth; ++k) out[k] = weight_at(w, row, k);
}

}  // namespace sterna::STERNA_VARIANT
