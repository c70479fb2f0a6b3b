#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

// Queries that share one reading of the keys and values; the kernel takes up to 64, its register blocks six at a time.
constexpr int kQueriesPerItem = 60;
constexpr int kRowsPerItem = 16;

// Running softmax of a group of queries, and the chunk that is being added.
struct Group {
  std::vector<float> scores, max, sum, acc, chunk_max, chunk_sum, chunk_acc;
  std::vector<float*> chunk_rows;

  Group(int queries, int dim)
      : scores(static_cast<std::size_t>(queries) * kAttentionChunk), max(queries), sum(queries),
        acc(static_cast<std::size_t>(queries) * dim), chunk_max(queries), chunk_sum(queries),
        chunk_acc(static_cast<std::size_t>(queries) * dim), chunk_rows(queries) {
    for (int i = 0; i < queries; ++i) chunk_rows[i] = chunk_acc.data() + static_cast<int64_t>(i) * dim;
  }
};

}  // namespace

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

void Ops::bias_activation(Tensor& x, const Tensor& bias, Activation activation) const {
  require_equal(bias.columns, x.columns, "length of the bias");
  parallel_for(divide_up(x.rows, kRowsPerItem), 8 * static_cast<int64_t>(x.rows) * x.columns, [&](int item) {
    const int end = std::min((item + 1) * kRowsPerItem, x.rows);
    for (int r = item * kRowsPerItem; r < end; ++r) {
      kernels_.bias_activation(x.row(r), bias.data.data(), x.columns, activation);
    }
  });
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
  std::vector<int32_t> table(chunks);
  for (int c = 0; c < chunks; ++c) table[c] = c;
  const std::vector<int32_t> last(kQueriesPerItem, frame - 1);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const int groups = divide_up(frame, kQueriesPerItem);
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
      const int h = item / groups, first = item % groups * kQueriesPerItem;
      const int count = std::min(kQueriesPerItem, frame - first);
      Group group(count, dim);
      std::vector<const float*> q(count);
      for (int i = 0; i < count; ++i) q[i] = queries.row(first + i) + h * dim;
      const AttentionArgs args{cache.layout, cache.data.data(), table.data(), h, count, q.data(), last.data()};
      const AttentionPartial partial{group.chunk_max.data(), group.chunk_sum.data(), group.chunk_rows.data()};
      for (int c = 0; c < chunks; ++c) {
        kernels_.attention_chunk(args, c, partial, group.scores.data());
        for (int i = 0; i < count; ++i) {
          kernels_.attention_merge(&group.max[i], &group.sum[i], group.acc.data() + static_cast<int64_t>(i) * dim,
                                   group.chunk_max[i], group.chunk_sum[i], group.chunk_rows[i], dim, c == 0);
        }
      }
      for (int i = 0; i < count; ++i) {
        kernels_.attention_finish(group.acc.data() + static_cast<int64_t>(i) * dim, group.sum[i], dim,
                                  out->row(start + first + i) + h * dim);
      }
    });
  }
  return out;
}

}  // namespace sterna
