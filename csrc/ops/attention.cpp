#include <algorithm>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

// Rows of one sequence that are handled together; with all query heads of a KV head at most kMaxQueries queries.
struct Tile {
  int sequence, first, rows;
};

constexpr int kMaxQueries = 64;

std::vector<Tile> split_rows(const Context& context, int group) {
  const int rows = std::clamp(48 / group, 1, 16);
  std::vector<Tile> tiles;
  for (int s = 0; s < context.sequences(); ++s) {
    for (int first = context.cu_seqlens[s]; first < context.cu_seqlens[s + 1]; first += rows) {
      tiles.push_back({s, first, std::min(rows, context.cu_seqlens[s + 1] - first)});
    }
  }
  return tiles;
}

void check_shapes(const Tensor& u, const Ops::AttentionWeights& w, const KvCache& cache, const Context& context,
                  int heads) {
  const KvLayout& layout = cache.layout;
  require(heads > 0 && heads % layout.kv_heads == 0 && heads / layout.kv_heads <= kMaxQueries,
          "query heads are " + std::to_string(heads) + ", allowed is a multiple of the KV heads " +
              std::to_string(layout.kv_heads) + " up to " + std::to_string(kMaxQueries) + " times as many");
  require_equal(w.q_proj.rows, 2 * heads * layout.head_dim, "rows of q_proj");
  require_equal(w.k_proj.rows, layout.kv_heads * layout.head_dim, "rows of k_proj");
  require_equal(w.v_proj.rows, layout.kv_heads * layout.head_dim, "rows of v_proj");
  require_equal(w.o_proj.columns, heads * layout.head_dim, "columns of o_proj");
  require_equal(w.q_norm.columns, layout.head_dim, "length of q_norm");
  require_equal(w.k_norm.columns, layout.head_dim, "length of k_norm");
  require_equal(u.rows, context.tokens(), "rows of u");
  require_range(2 * context.half_rotary, 0, layout.head_dim + 1, "rotary dimensions");
  const int64_t slots = static_cast<int64_t>(cache.blocks) * layout.block_size;
  for (const int32_t slot : context.slot_mapping) require_range(slot, 0, slots, "slot_mapping");
  for (int s = 0; s < context.sequences(); ++s) {
    const int rows = context.cu_seqlens[s + 1] - context.cu_seqlens[s];
    if (rows == 0) continue;
    const int needed = divide_up(context.context_lens[s] + rows, layout.block_size);
    require_range(needed, 0, context.max_blocks + 1, "blocks that the sequence needs");
    for (int i = 0; i < needed; ++i) {
      require_range(context.block_tables[static_cast<std::size_t>(s) * context.max_blocks + i], 0, cache.blocks,
                    "block of block_tables");
    }
  }
}

// The queries of one tile and KV head, ascending in position.
struct Queries {
  AttentionArgs args;
  const float* q[kMaxQueries];
  int32_t last[kMaxQueries];
  float* out[kMaxQueries];
};

}  // namespace

std::unique_ptr<Tensor> Ops::gqa_attention(const Tensor& u, const AttentionWeights& w, KvCache& cache,
                                           const Context& context, int heads, float eps) const {
  check_shapes(u, w, cache, context, heads);
  const KvLayout& layout = cache.layout;
  const int tokens = u.rows, dim = layout.head_dim, kv_heads = layout.kv_heads, group = heads / kv_heads;
  Tensor qg(tokens, 2 * heads * dim), k(tokens, kv_heads * dim), v(tokens, kv_heads * dim);
  project(u.data.data(), tokens, u.columns,
          {{&w.q_proj, qg.data.data()}, {&w.k_proj, k.data.data()}, {&w.v_proj, v.data.data()}});

  Tensor q(tokens, heads * dim), out(tokens, heads * dim);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  const HeadPrepareArgs query{dim, 2 * context.half_rotary, w.q_norm.data.data(), eps, scale};
  const HeadPrepareArgs key{dim, 2 * context.half_rotary, w.k_norm.data.data(), eps, 1.0f};
  parallel_for(divide_up(tokens, 8), 24 * static_cast<int64_t>(tokens) * heads * dim, [&](int item) {
    for (int t = item * 8; t < std::min(tokens, item * 8 + 8); ++t) {
      const float* cos = context.cos.data() + static_cast<int64_t>(t) * context.half_rotary;
      const float* sin = context.sin.data() + static_cast<int64_t>(t) * context.half_rotary;
      for (int h = 0; h < heads; ++h) kernels_.head_prepare(query, qg.row(t) + 2 * h * dim, cos, sin, q.row(t) + h * dim);
      const int slot = context.slot_mapping[t];
      for (int h = 0; h < kv_heads; ++h) {
        float* rotated = k.row(t) + h * dim;
        kernels_.head_prepare(key, rotated, cos, sin, rotated);
        kernels_.kv_store(layout, cache.data.data(), slot / layout.block_size, slot % layout.block_size, h, rotated,
                          v.row(t) + h * dim);
      }
    }
  });

  const std::vector<Tile> tiles = split_rows(context, group);
  auto queries_of = [&](const Tile& tile, int kv_head, Queries& queries) {
    int count = 0;
    for (int r = 0; r < tile.rows; ++r) {
      const int t = tile.first + r;
      for (int g = 0; g < group; ++g, ++count) {
        const int at = (kv_head * group + g) * dim;
        queries.q[count] = q.row(t) + at;
        queries.out[count] = out.row(t) + at;
        queries.last[count] = context.context_lens[tile.sequence] + t - context.cu_seqlens[tile.sequence];
      }
    }
    queries.args = {layout, cache.data.data(),
                    context.block_tables.data() + static_cast<std::size_t>(tile.sequence) * context.max_blocks, kv_head,
                    count, queries.q, queries.last};
  };
  int64_t operations = 0;
  int most_chunks = 0;
  for (const Tile& tile : tiles) {
    const int seen = context.context_lens[tile.sequence] + tile.first + tile.rows - context.cu_seqlens[tile.sequence];
    operations += 2 * static_cast<int64_t>(seen) * tile.rows * heads * dim;
    most_chunks = std::max(most_chunks, divide_up(seen, kAttentionChunk));
  }

  // Few queries over a long context: the chunks are spread over the threads and merged afterwards. Many queries: each
  // item merges its own. The merge's arithmetic and order are the same.
  const int units = static_cast<int>(tiles.size()) * kv_heads;
  const bool spread = most_chunks > 1 && units < 4 * num_threads();
  const int most_queries = tiles.empty() ? 0 : std::max_element(tiles.begin(), tiles.end(), [](auto& a, auto& b) {
                                                 return a.rows < b.rows;
                                               })->rows * group;
  const int parts = spread ? most_chunks : 1;
  Tensor maxima(units * parts, std::max(1, most_queries)), sums(units * parts, std::max(1, most_queries));
  Tensor accumulators(units * parts * most_queries, dim);
  auto compute = [&](const Queries& queries, int unit, int part, int chunk) {
    float* acc[kMaxQueries];
    const int index = unit * parts + part;
    for (int i = 0; i < queries.args.queries; ++i) acc[i] = accumulators.row(index * most_queries + i);
    Buffer<float> scores(static_cast<std::size_t>(queries.args.queries) * kAttentionChunk);
    kernels_.attention_chunk(queries.args, chunk, {maxima.row(index), sums.row(index), acc}, scores.data());
  };
  if (spread) {
    parallel_for(units * parts, operations, [&](int item) {
      const int unit = item / parts, chunk = item % parts;
      Queries queries;
      queries_of(tiles[unit / kv_heads], unit % kv_heads, queries);
      if (queries.last[queries.args.queries - 1] >= chunk * kAttentionChunk) compute(queries, unit, chunk, chunk);
    });
  }
  parallel_for(units, spread ? 0 : operations, [&](int unit) {
    Queries queries;
    queries_of(tiles[unit / kv_heads], unit % kv_heads, queries);
    const int count = queries.args.queries;
    Tensor acc(count, dim);
    float largest[kMaxQueries], sum[kMaxQueries];
    const int chunks = queries.last[count - 1] / kAttentionChunk + 1;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int part = spread ? chunk : 0;
      if (!spread) compute(queries, unit, part, chunk);
      const int index = unit * parts + part;
      for (int i = 0; i < count; ++i) {
        if (queries.last[i] < chunk * kAttentionChunk) continue;
        kernels_.attention_merge(largest + i, sum + i, acc.row(i), maxima.row(index)[i], sums.row(index)[i],
                                 accumulators.row(index * most_queries + i), dim, chunk == 0);
      }
    }
    for (int i = 0; i < count; ++i) kernels_.attention_finish(acc.row(i), sum[i], dim, queries.out[i]);
  });

  parallel_for(divide_up(tokens, 16), 16 * static_cast<int64_t>(tokens) * heads * dim, [&](int item) {
    for (int t = item * 16; t < std::min(tokens, item * 16 + 16); ++t) {
      for (int h = 0; h < heads; ++h) kernels_.gate_output(out.row(t) + h * dim, qg.row(t) + (2 * h + 1) * dim, dim);
    }
  });
  auto y = std::make_unique<Tensor>(tokens, w.o_proj.rows);
  project(out.data.data(), tokens, heads * dim, {{&w.o_proj, y->data.data()}});
  return y;
}

}  // namespace sterna
