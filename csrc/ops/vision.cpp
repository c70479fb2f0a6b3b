#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

// Rows that share one reading of weights, keys or values: a multiple of the six that a kernel keeps in registers.
constexpr int kRowsPerTile = 96;
constexpr int kPanelsPerTile = 8;
// Columns of the weights at a time: 16 rows of them, and six rows of activations, stay in the first-level cache. Sums go on
// from where they were, so cutting them changes no bit.
constexpr int kDepth = 256;
constexpr int kRowsPerItem = 16;

const char* skip_columns(const Panels& w, int64_t columns) {
  return static_cast<const char*>(w.data) + columns * kPanelRows * (w.format == Format::kFloat32 ? 4 : 2);
}

// Running softmax of a group of queries, and the chunk that is being added.
struct Group {
  int count, dim;
  std::vector<float> q, scores, max, sum, acc, chunk_acc;
  std::vector<const float*> q_rows, p_rows;
  std::vector<float*> score_rows, chunk_rows;

  Group(int queries, int head_dim)
      : count(queries), dim(head_dim), q(size(head_dim)), scores(size(kAttentionChunk)), max(queries), sum(queries),
        acc(size(head_dim)), chunk_acc(size(head_dim)) {
    for (int i = 0; i < queries; ++i) {
      q_rows.push_back(q.data() + at(i, dim));
      score_rows.push_back(scores.data() + at(i, kAttentionChunk));
      p_rows.push_back(score_rows.back());
      chunk_rows.push_back(chunk_acc.data() + at(i, dim));
    }
  }

  std::size_t size(int width) const { return static_cast<std::size_t>(count) * width; }
  static int64_t at(int row, int width) { return static_cast<int64_t>(row) * width; }
};

// Adds the keys and values of one chunk, `seen` positions of one head, to the running softmax.
void add_chunk(const Kernels& kernels, const KvLayout& layout, const float* keys, int seen, bool first, Group& group) {
  const int tiles = divide_up(seen, kPanelRows), panels = divide_up(group.dim, kPanelRows);
  kernels.matmul({{keys, layout.key_tile_stride, layout.format}, tiles, tiles * kPanelRows, group.dim,
                  group.q_rows.data(), group.score_rows.data(), group.count, false});
  std::vector<float> max(group.count), sum(group.count);
  for (int i = 0; i < group.count; ++i) kernels.softmax_chunk(group.score_rows[i], seen, &max[i], &sum[i]);
  kernels.matmul({{keys + layout.value_offset, layout.value_panel_stride, layout.format}, panels, group.dim, seen,
                  group.p_rows.data(), group.chunk_rows.data(), group.count, false});
  for (int i = 0; i < group.count; ++i) {
    kernels.attention_merge(&group.max[i], &group.sum[i], group.acc.data() + Group::at(i, group.dim), max[i], sum[i],
                            group.chunk_rows[i], group.dim, first);
  }
}

}  // namespace

std::unique_ptr<Tensor> Ops::affine(const Tensor& x, const Matrix& w, const Tensor& bias, Activation activation) const {
  require_equal(w.columns, x.columns, "columns of the weight");
  require_equal(bias.columns, w.rows, "length of the bias");
  auto y = std::make_unique<Tensor>(x.rows, w.rows);
  const int row_tiles = divide_up(x.rows, kRowsPerTile), panel_tiles = divide_up(w.panels(), kPanelsPerTile);
  parallel_for(row_tiles * panel_tiles, static_cast<int64_t>(x.rows) * w.rows * w.columns, [&](int item) {
    const int first = item % row_tiles * kRowsPerTile, panel = item / row_tiles * kPanelsPerTile;
    const int rows = std::min(kRowsPerTile, x.rows - first), column = panel * kPanelRows;
    const float* inputs[kRowsPerTile];
    float* outputs[kRowsPerTile];
    for (int r = 0; r < rows; ++r) outputs[r] = y->row(first + r) + column;
    const Panels view{static_cast<const char*>(w.data.data()) + panel * w.stride * w.element(), w.stride, w.format};
    MatmulArgs args{view, std::min(kPanelsPerTile, w.panels() - panel), w.rows - column, 0, inputs, outputs, rows, false};
    for (int k = 0; k < w.columns; k += kDepth) {
      for (int r = 0; r < rows; ++r) inputs[r] = x.row(first + r) + k;
      args.w.data = skip_columns(view, k);
      args.depth = std::min(kDepth, w.columns - k);
      args.accumulate = k > 0;
      kernels_.matmul(args);
    }
    const int columns = std::min(kPanelsPerTile * kPanelRows, w.rows - column);
    for (int r = 0; r < rows; ++r) {
      kernels_.bias_activation(outputs[r], bias.data.data() + column, columns, activation);
    }
  });
  return y;
}

std::unique_ptr<Tensor> Ops::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) const {
  require_equal(weight.columns, x.columns, "length of the norm weight");
  require_equal(bias.columns, x.columns, "length of the norm bias");
  auto y = std::make_unique<Tensor>(x.rows, x.columns);
  parallel_for(divide_up(x.rows, kRowsPerItem), 3 * static_cast<int64_t>(x.rows) * x.columns, [&](int item) {
    const int first = item * kRowsPerItem;
    kernels_.layer_norm(x.row(first), weight.data.data(), bias.data.data(), eps, std::min(kRowsPerItem, x.rows - first),
                        x.columns, y->row(first));
  });
  return y;
}

// One frame at a time: its rotated keys and its values go into panels, as in a KV cache of 256 positions per block, and
// every query sees all of them.
std::unique_ptr<Tensor> Ops::vision_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int heads) const {
  const int frame = cos.rows, half = cos.columns, dim = 2 * half, width = heads * dim;
  require(heads > 0 && frame > 0 && half > 0, "attention needs at least one head, patch and dimension");
  require_equal(qkv.columns, 3 * width, "columns of qkv");
  require_equal(sin.rows, frame, "rows of sin");
  require_equal(sin.columns, half, "columns of sin");
  require(qkv.rows % frame == 0, "rows of qkv are not whole frames");
  auto out = std::make_unique<Tensor>(qkv.rows, width);
  Tensor queries(frame, width);
  const int chunks = divide_up(frame, kAttentionChunk);
  KvCache cache(chunks, kAttentionChunk, heads, dim, Format::kFloat32);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const int groups = divide_up(frame, kRowsPerTile);
  for (int start = 0; start < qkv.rows; start += frame) {
    parallel_for(divide_up(frame, kRowsPerItem), 8 * static_cast<int64_t>(frame) * width, [&](int item) {
      std::vector<float> key(dim);
      for (int r = item * kRowsPerItem; r < std::min((item + 1) * kRowsPerItem, frame); ++r) {
        const float* row = qkv.row(start + r);
        for (int h = 0; h < heads; ++h) {
          kernels_.rotate_head(row + h * dim, cos.row(r), sin.row(r), half, scale, queries.row(r) + h * dim);
          kernels_.rotate_head(row + width + h * dim, cos.row(r), sin.row(r), half, 1.0f, key.data());
          kernels_.kv_store(cache.layout, cache.data.data(), r / kAttentionChunk, r % kAttentionChunk, h, key.data(),
                            row + 2 * width + h * dim);
        }
      }
    });
    parallel_for(heads * groups, 2 * static_cast<int64_t>(frame) * frame * width, [&](int item) {
      const int h = item / groups, begin = item % groups * kRowsPerTile;
      Group group(std::min(kRowsPerTile, frame - begin), dim);
      for (int i = 0; i < group.count; ++i) {
        std::memcpy(group.q.data() + Group::at(i, dim), queries.row(begin + i) + h * dim, sizeof(float) * dim);
      }
      const float* head = reinterpret_cast<const float*>(cache.data.data()) + h * cache.layout.head_stride;
      for (int c = 0; c < chunks; ++c) {
        const int seen = std::min(kAttentionChunk, frame - c * kAttentionChunk);
        add_chunk(kernels_, cache.layout, head + c * cache.layout.block_stride, seen, c == 0, group);
      }
      for (int i = 0; i < group.count; ++i) {
        kernels_.attention_finish(group.acc.data() + Group::at(i, dim), group.sum[i], dim,
                                  out->row(start + begin + i) + h * dim);
      }
    });
  }
  return out;
}

}  // namespace sterna
