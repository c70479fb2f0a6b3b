// Gated attention over the paged cache. Scores and weighted sums are matmuls whose "weights" are cache panels.
#pragma once

#include "kernels/elementwise.h"
#include "kernels/matmul.h"

namespace sterna::STERNA_VARIANT {

static void head_prepare(const HeadPrepareArgs& args, const float* x, const float* cos, const float* sin, float* y) {
  rms_norm_row(x, args.weight, args.eps, args.head_dim, y);
  const int half = args.rotary_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int n = half - i;
    const Vec first = load_n(y + i, n);
    const Vec second = load_n(y + half + i, n);
    const Vec c = load_n(cos + i, n);
    const Vec s = load_n(sin + i, n);
    store_n(y + i, first * c - second * s, n);
    store_n(y + half + i, second * c + first * s, n);
  }
  const Vec scale = broadcast(args.scale);
  for (int i = 0; i < args.head_dim; i += kLanes) {
    const int n = args.head_dim - i;
    store_n(y + i, load_n(y + i, n) * scale, n);
  }
}

STERNA_INLINE void store_element(const KvLayout& layout, void* base, int64_t panel, int k, int lane, float value) {
  if (layout.format == Format::kFloat32) {
    static_cast<float*>(base)[panel + static_cast<int64_t>(k) * kPanelRows + lane] = value;
  } else {
    static_cast<uint16_t*>(base)[panel + static_cast<int64_t>(k / 2) * 2 * kPanelRows + 2 * lane + k % 2] =
        bf16_from_float(value);
  }
}

static void kv_store(const KvLayout& layout, void* cache, int block, int offset, int kv_head, const float* k,
                     const float* v) {
  const int64_t keys = block * layout.block_stride + kv_head * layout.head_stride;
  const int64_t values = keys + layout.value_offset;
  const int64_t tile = keys + offset / kPanelRows * layout.key_tile_stride;
  for (int d = 0; d < layout.head_dim; ++d) {
    store_element(layout, cache, tile, d, offset % kPanelRows, k[d]);
    store_element(layout, cache, values + d / kPanelRows * layout.value_panel_stride, offset, d % kPanelRows, v[d]);
  }
}

STERNA_INLINE const void* element_address(const KvLayout& layout, const void* base, int64_t element) {
  return static_cast<const char*>(base) + element * (layout.format == Format::kFloat32 ? 4 : 2);
}

constexpr int kQueryGroup = 6;

// Visible positions of a query within [begin, begin + length).
STERNA_INLINE int visible(int last, int begin, int length) {
  const int n = last + 1 - begin;
  return n < 0 ? 0 : (n < length ? n : length);
}

// acc += p . V over one stretch of positions within a block; each query stops at its own last position.
static void weighted_values(const AttentionArgs& args, const Panels& values, int begin, int length,
                            const float* const* p, float* const* acc) {
  for (int first = 0; first < args.queries; first += kQueryGroup) {
    const int count = args.queries - first < kQueryGroup ? args.queries - first : kQueryGroup;
    MatmulArgs product{values, (args.layout.head_dim + kPanelRows - 1) / kPanelRows, args.layout.head_dim, 0,
                       p + first, acc + first, count, true};
    // Even, because panels hold pairs of positions; the rest of each query follows in the same order.
    const int joint = visible(args.last[first], begin, length) / 2 * 2;
    product.depth = joint;
    if (joint > 0) matmul(product);
    const int64_t skip = static_cast<int64_t>(joint) * kPanelRows;
    for (int i = 0; i < count; ++i) {
      const int rest = visible(args.last[first + i], begin, length) - joint;
      if (rest <= 0) continue;
      const float* row[1] = {p[first + i] + joint};
      MatmulArgs tail = product;
      tail.w.data = element_address(args.layout, values.data, skip);
      tail.depth = rest;
      tail.x = row;
      tail.y = acc + first + i;
      tail.rows = 1;
      matmul(tail);
    }
  }
}

// exp(score - max) in place over the first n of a chunk's scores; the rest becomes 0.
static void softmax_chunk(float* scores, int n, float* max_out, float* sum_out) {
  Vec largest = broadcast(-__builtin_inff());
  for (int i = 0; i < n; i += kLanes) largest = max(largest, keep_n(load(scores + i), n - i, -__builtin_inff()));
  const float m = max_lanes(largest);
  Vec sum = broadcast(0.0f);
  for (int i = 0; i < n; i += kLanes) {
    const Vec p = keep_n(exp(load(scores + i) - broadcast(m)), n - i, 0.0f);
    store(scores + i, p);
    sum = sum + p;
  }
  *max_out = m;
  *sum_out = sum_lanes(sum);
}

static void attention_chunk(const AttentionArgs& args, int chunk, const AttentionPartial& partial, float* scores) {
  const KvLayout& layout = args.layout;
  const int begin = chunk * kAttentionChunk;
  const int seen = visible(args.last[args.queries - 1], begin, kAttentionChunk);
  const int64_t head = args.kv_head * layout.head_stride;
  constexpr int kMaxQueries = 64;
  float* rows[kMaxQueries];
  const float* p[kMaxQueries];
  for (int at = 0; at < seen;) {
    const int position = begin + at;
    const int offset = position % layout.block_size;
    int length = layout.block_size - offset;
    if (length > seen - at) length = seen - at;
    const int64_t block = args.block_table[position / layout.block_size] * layout.block_stride;
    const Panels keys{element_address(layout, args.cache, block + head + offset / kPanelRows * layout.key_tile_stride),
                      layout.key_tile_stride, layout.format};
    const int tiles = (length + kPanelRows - 1) / kPanelRows;
    for (int i = 0; i < args.queries; ++i) rows[i] = scores + i * kAttentionChunk + at;
    matmul(MatmulArgs{keys, tiles, tiles * kPanelRows, layout.head_dim, args.q, rows, args.queries, false});
    at += length;
  }
  for (int i = 0; i < args.queries; ++i) {
    const int n = visible(args.last[i], begin, kAttentionChunk);
    if (n == 0) continue;
    softmax_chunk(scores + i * kAttentionChunk, n, partial.max + i, partial.sum + i);
    for (int d = 0; d < layout.head_dim; ++d) partial.acc[i][d] = 0.0f;
  }
  for (int at = 0; at < seen;) {
    const int position = begin + at;
    const int offset = position % layout.block_size;
    int length = layout.block_size - offset;
    if (length > seen - at) length = seen - at;
    const int64_t block = args.block_table[position / layout.block_size] * layout.block_stride;
    const int64_t first = block + head + layout.value_offset + static_cast<int64_t>(offset) * kPanelRows;
    const Panels values{element_address(layout, args.cache, first), layout.value_panel_stride, layout.format};
    for (int i = 0; i < args.queries; ++i) p[i] = scores + i * kAttentionChunk + at;
    weighted_values(args, values, position, length, p, partial.acc);
    at += length;
  }
}

static void attention_merge(float* max_, float* sum, float* acc, float chunk_max, float chunk_sum,
                            const float* chunk_acc, int head_dim, bool first) {
  if (first) {
    *max_ = chunk_max;
    *sum = chunk_sum;
    for (int d = 0; d < head_dim; d += kLanes) store_n(acc + d, load_n(chunk_acc + d, head_dim - d), head_dim - d);
    return;
  }
  const float largest = *max_ < chunk_max ? chunk_max : *max_;
  const float keep = exp(*max_ - largest);
  const float take = exp(chunk_max - largest);
  *sum = fma(chunk_sum, take, *sum * keep);
  *max_ = largest;
  for (int d = 0; d < head_dim; d += kLanes) {
    const int n = head_dim - d;
    store_n(acc + d, fma(load_n(chunk_acc + d, n), broadcast(take), load_n(acc + d, n) * broadcast(keep)), n);
  }
}

static void attention_finish(const float* acc, float sum, int head_dim, float* out) {
  const Vec divisor = broadcast(sum);
  for (int d = 0; d < head_dim; d += kLanes) {
    store_n(out + d, load_n(acc + d, head_dim - d) / divisor, head_dim - d);
  }
}

}  // namespace sterna::STERNA_VARIANT
