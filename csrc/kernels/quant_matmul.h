// Quantised tiles times rows of int8 activations. One output is, over its groups of 32 in ascending order,
//
//   acc = fma(scale of the weights * scale of the activations, integer result of the group, acc)
//
// and at the end, in our own formats, once the row scale. Each output has the one chain of operations, whether a row comes
// alone or in a block: register blocking and the unpacking ahead change speed, never bits.
#pragma once

#include "kernels/math.h"
#include "kernels/quant_tiles.h"

namespace sterna::STERNA_VARIANT {

// Per group after the bytes of a row: scale, sum of all 32, of the first 16, of the last 16.
constexpr int kGroupNumbers = 4;
constexpr int kQuantRows = STERNA_PART_BYTES == 16 ? 2 : 6;
constexpr int kChunkGroups = 16;
constexpr int kTileRows = 96;

static void quantize_row(const float* x, int depth, char* row) {
  auto* codes = reinterpret_cast<int8_t*>(row);
  auto* numbers = reinterpret_cast<float*>(row + depth);
  const Vec magic = broadcast(12582912.0f);
  for (int g = 0; g < depth / kTileGroup; ++g) {
    const Vec a = load(x + g * kTileGroup), b = load(x + g * kTileGroup + kLanes);
    const float largest = max_lanes(max(abs(a), abs(b)));
    // Zero, or not a number where an input is infinite or none: it must reach the output.
    const float poison = sum_lanes((a + b) * broadcast(0.0f));
    const bool usable = largest > 1e-30f;
    const Vec inverse = broadcast(usable ? 127.0f / largest : 0.0f);
    float rounded[kTileGroup];
    store(rounded, a * inverse + magic);
    store(rounded + kLanes, b * inverse + magic);
    int sums[2] = {0, 0};
    for (int i = 0; i < kTileGroup; ++i) {
      const auto code = static_cast<int8_t>(bits<uint32_t>(rounded[i]) & 0xffu);
      codes[g * kTileGroup + i] = code;
      sums[i / kLanes] += code;
    }
    numbers[0] = (usable ? largest / 127.0f : 0.0f) + poison;
    numbers[1] = static_cast<float>(sums[0] + sums[1]);
    numbers[2] = static_cast<float>(sums[0]);
    numbers[3] = static_cast<float>(sums[1]);
    numbers += kGroupNumbers;
  }
}

template <class F, int R>
STERNA_INLINE void add_group(const uint8_t* codes, const Factors& factors, const int8_t* const (&a)[R],
                             const float* const (&numbers)[R], int g, Vec (&acc)[R]) {
  const int at = g * kTileGroup;
  IntVec sum[R];
  if constexpr (F::kForm == Form::kTwoHalves) {
    IntVec high[R];
    dot<F::kCodes, 4, R>(codes, a, at, sum);
    dot<F::kCodes, 4, R>(codes + kGroupBytes / 2, a, at + kTileGroup / 2, high);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* n = numbers[r] + g * kGroupNumbers;
      const Vec first = fnma(broadcast(32.0f), broadcast(n[2]), to_float(sum[r]));
      const Vec last = fnma(broadcast(32.0f), broadcast(n[3]), to_float(high[r]));
      const Vec total = fma(factors.third, last, factors.second * first);
      acc[r] = fma(factors.scale * broadcast(n[0]), total, acc[r]);
    }
  } else {
    dot<F::kCodes, 8, R>(codes, a, at, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* n = numbers[r] + g * kGroupNumbers;
      const Vec product = to_float(sum[r]);
      if constexpr (F::kForm == Form::kPlain) {
        acc[r] = fma(factors.scale * broadcast(n[0]), product, acc[r]);
      } else if constexpr (F::kForm == Form::kZero) {
        const Vec centred = fnma(factors.second, broadcast(n[1]), product);
        acc[r] = fma(factors.scale * broadcast(n[0]), centred, acc[r]);
      } else {
        const Vec raised = fnma(factors.second, broadcast(n[1]), factors.scale * product);
        acc[r] = fma(broadcast(n[0]), raised, acc[r]);
      }
    }
  }
}

struct UnpackedGroup {
  alignas(64) uint8_t codes[kGroupBytes];
  Factors factors;
};

template <class F, int R>
static __attribute__((noinline)) void add_groups(const UnpackedGroup* unpacked, int first, int count, const char* const* rows, int depth,
                       float (*totals)[kLanes]) {
  const int8_t* a[R];
  const float* numbers[R];
  Vec acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = reinterpret_cast<const int8_t*>(rows[r]);
    numbers[r] = reinterpret_cast<const float*>(rows[r] + depth);
    acc[r] = load(totals[r]);
  }
  for (int g = 0; g < count; ++g) add_group<F, R>(unpacked[g].codes, unpacked[g].factors, a, numbers, first + g, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(totals[r], acc[r]);
}

template <class F>
static void add_remainder(const UnpackedGroup* unpacked, int first, int count, const char* const* rows, int left,
                          int depth, float (*totals)[kLanes]) {
  if constexpr (kQuantRows > 2) {
    switch (left) {
      case 5: return add_groups<F, 5>(unpacked, first, count, rows, depth, totals);
      case 4: return add_groups<F, 4>(unpacked, first, count, rows, depth, totals);
      case 3: return add_groups<F, 3>(unpacked, first, count, rows, depth, totals);
      case 2: return add_groups<F, 2>(unpacked, first, count, rows, depth, totals);
      default: break;
    }
  }
  add_groups<F, 1>(unpacked, first, count, rows, depth, totals);
}

// One tile and any number of rows up to kTileRows: groups are unpacked once for all of them.
template <class F>
static void tile_block(const uint8_t* tile, int depth, const char* const* rows, int count, float (*totals)[kLanes]) {
  UnpackedGroup unpacked[kChunkGroups];
  const int groups = depth / kTileGroup;
  for (int first = 0; first < groups; first += kChunkGroups) {
    const int size = groups - first < kChunkGroups ? groups - first : kChunkGroups;
    for (int g = 0; g < size; ++g) F::unpack(tile, depth, first + g, unpacked[g].codes, unpacked[g].factors);
    int row = 0;
    for (; row + kQuantRows <= count; row += kQuantRows) {
      add_groups<F, kQuantRows>(unpacked, first, size, rows + row, depth, totals + row);
    }
    if (row < count) add_remainder<F>(unpacked, first, size, rows + row, count - row, depth, totals + row);
  }
}

// One tile and one row: a group goes straight from the stream of weights into the sum.
template <class F>
static __attribute__((noinline)) void tile_row(const uint8_t* tile, int depth, const char* row, float* total) {
  const int8_t* a[1] = {reinterpret_cast<const int8_t*>(row)};
  const float* numbers[1] = {reinterpret_cast<const float*>(row + depth)};
  Vec acc[1] = {broadcast(0.0f)};
  for (int g = 0; g < depth / kTileGroup; ++g) {
    UnpackedGroup group;
    F::unpack(tile, depth, g, group.codes, group.factors);
    add_group<F, 1>(group.codes, group.factors, a, numbers, g, acc);
  }
  store(total, acc[0]);
}

template <class F>
static void quant_matmul_format(const MatmulArgs& args) {
  float totals[kTileRows][kLanes];
  for (int row = 0; row < args.rows; row += kTileRows) {
    const int count = args.rows - row < kTileRows ? args.rows - row : kTileRows;
    for (int p = 0; p < args.panels; ++p) {
      const uint8_t* tile = static_cast<const uint8_t*>(args.w.data) + p * args.w.stride;
      if (count == 1) {
        tile_row<F>(tile, args.depth, args.quantized[row], totals[0]);
      } else {
        __builtin_memset(totals, 0, sizeof(totals[0]) * count);
        tile_block<F>(tile, args.depth, args.quantized + row, count, totals);
      }
      const int column = p * kPanelRows;
      for (int r = 0; r < count; ++r) {
        Vec total = load(totals[r]);
        if constexpr (F::kRowScale) total = total * load(reinterpret_cast<const float*>(tile));
        store_n(args.y[row + r] + column, total, args.columns - column);
      }
    }
  }
}

// f(traits of the format).
template <class F>
STERNA_INLINE void with_tile(Format format, F f) {
  switch (format) {
    case Format::kQ4: return f(Q4Tile<32>{});
    case Format::kQ4G64: return f(Q4Tile<64>{});
    case Format::kQ6: return f(Q6Tile{});
    case Format::kQ8: return f(Q8Tile{});
    case Format::kQ4_0: return f(Q4_0Tile{});
    case Format::kQ8_0: return f(Q8_0Tile{});
    case Format::kQ4K: return f(Q4KTile{});
    case Format::kQ5K: return f(Q5KTile{});
    case Format::kQ6K: return f(Q6KTile{});
    case Format::kIq4Xs: return f(Iq4XsTile{});
    case Format::kMxfp4: return f(Mxfp4Tile{});
    default: return;
  }
}

static void quant_matmul(const MatmulArgs& args) {
  with_tile(args.w.format, [&args](auto tile) { quant_matmul_format<decltype(tile)>(args); });
}

// silu(gate) * up for a tile of each at a time.
static void quant_swiglu(const MatmulArgs& args, const Panels& up) {
  float values[2][kTileRows][kLanes];
  float* targets[2][kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    targets[0][r] = values[0][r];
    targets[1][r] = values[1][r];
  }
  for (int row = 0; row < args.rows; row += kTileRows) {
    const int count = args.rows - row < kTileRows ? args.rows - row : kTileRows;
    for (int p = 0; p < args.panels; ++p) {
      MatmulArgs part{skip_panels(args.w, p), 1, kPanelRows, args.depth, nullptr, targets[0], count, false,
                      args.quantized + row};
      quant_matmul(part);
      part.w = skip_panels(up, p);
      part.y = targets[1];
      quant_matmul(part);
      const int column = p * kPanelRows;
      for (int r = 0; r < count; ++r) {
        store_n(args.y[row + r] + column, silu(load(values[0][r])) * load(values[1][r]), args.columns - column);
      }
    }
  }
}

// The exact values of one row, as the numpy decoders give them.
template <class F>
static void unpack_quant_row(const uint8_t* tile, int depth, int lane, float* out) {
  float scale[kLanes], second[kLanes], third[kLanes];
  for (int g = 0; g < depth / kTileGroup; ++g) {
    UnpackedGroup group;
    F::unpack(tile, depth, g, group.codes, group.factors);
    store(scale, group.factors.scale);
    store(second, group.factors.second);
    if constexpr (F::kForm == Form::kTwoHalves) store(third, group.factors.third);
    for (int k = 0; k < kTileGroup; ++k) {
      const uint8_t byte = group.codes[64 * (k / 4) + 4 * lane + k % 4];
      const float code =
          F::kForm == Form::kPlain ? static_cast<float>(static_cast<int8_t>(byte)) : static_cast<float>(byte);
      float value;
      if constexpr (F::kForm == Form::kPlain) {
        value = scale[lane] * code;
      } else if constexpr (F::kForm == Form::kZero) {
        value = scale[lane] * (code - second[lane]);
      } else if constexpr (F::kForm == Form::kMinimum) {
        value = scale[lane] * code - second[lane];
      } else {
        value = scale[lane] * (k < kTileGroup / 2 ? second[lane] : third[lane]) * (code - 32.0f);
      }
      if constexpr (F::kRowScale) value = reinterpret_cast<const float*>(tile)[lane] * value;
      out[g * kTileGroup + k] = value;
    }
  }
}

static void unpack_quant(const Panels& w, int depth, int row, float* out) {
  const auto* tile = static_cast<const uint8_t*>(w.data) + row / kPanelRows * w.stride;
  with_tile(w.format, [&](auto traits) { unpack_quant_row<decltype(traits)>(tile, depth, row % kPanelRows, out); });
}

}  // namespace sterna::STERNA_VARIANT
