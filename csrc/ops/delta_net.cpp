#include <algorithm>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

void check_shapes(const Tensor& u, const Ops::DeltaNetWeights& w, const DeltaNetState& state, const Context& context,
                  int key_heads) {
  const int values = state.value_heads * state.value_dim;
  require(key_heads > 0 && state.value_heads % key_heads == 0,
          "value heads are " + std::to_string(state.value_heads) + ", allowed is a multiple of the key heads " +
              std::to_string(key_heads));
  require_equal(state.channels, 2 * key_heads * state.key_dim + values, "channels of the state");
  require_equal(w.in_proj_qkv.rows, state.channels, "rows of in_proj_qkv");
  require_equal(w.in_proj_z.rows, values, "rows of in_proj_z");
  require_equal(w.in_proj_b.rows, state.value_heads, "rows of in_proj_b");
  require_equal(w.in_proj_a.rows, state.value_heads, "rows of in_proj_a");
  require_equal(w.out_proj.columns, values, "columns of out_proj");
  require_equal(w.conv1d.rows, state.channels, "rows of conv1d");
  require_equal(w.conv1d.columns, state.taps + 1, "kernel of conv1d");
  require_equal(w.A_log.columns, state.value_heads, "length of A_log");
  require_equal(w.dt_bias.columns, state.value_heads, "length of dt_bias");
  require_equal(w.norm.columns, state.value_dim, "length of norm");
  require_equal(u.rows, context.tokens(), "rows of u");
  for (const int32_t slot : context.state_slots) require_range(slot, 0, state.slots, "state slot");
  for (std::size_t i = 1; i < context.snapshot_at.size(); i += 2) {
    require_range(context.snapshot_at[i], 0, state.slots, "slot of snapshot_at");
  }
}

// Rows after which the state is stored, in ascending order, and where; the end of the sequence comes last.
struct Stop {
  int row, slot;
};

std::vector<Stop> stops_of(const Context& context, int sequence) {
  const int begin = context.cu_seqlens[sequence], end = context.cu_seqlens[sequence + 1];
  std::vector<Stop> stops;
  for (std::size_t i = 0; i < context.snapshot_at.size(); i += 2) {
    if (context.snapshot_at[i] >= begin && context.snapshot_at[i] < end) {
      stops.push_back({context.snapshot_at[i], context.snapshot_at[i + 1]});
    }
  }
  std::stable_sort(stops.begin(), stops.end(), [](const Stop& a, const Stop& b) { return a.row < b.row; });
  return stops;
}

// The last `taps` raw rows up to and including `row` (begin - 1: none of this pass), oldest first.
void store_conv(const DeltaNetState& state, const float* before, const float* qkv, int begin, int row, float* target) {
  std::vector<float> rows(static_cast<std::size_t>(state.conv_size()));
  for (int j = 0; j < state.taps; ++j) {
    const int from = row - (state.taps - 1) + j;
    const float* source = from >= begin ? qkv + static_cast<int64_t>(from) * state.channels
                                        : before + static_cast<int64_t>(from - begin + state.taps) * state.channels;
    std::memcpy(rows.data() + static_cast<int64_t>(j) * state.channels, source, sizeof(float) * state.channels);
  }
  std::memcpy(target, rows.data(), rows.size() * sizeof(float));
}

void copy_columns(const DeltaNetState& state, int column, const float* source, float* target) {
  const int width = std::min(kDeltaColumns, state.state_columns - column);
  for (int r = 0; r < state.key_dim; ++r) {
    std::memcpy(target + static_cast<int64_t>(r) * state.state_columns,
                source + static_cast<int64_t>(r) * state.state_columns, sizeof(float) * width);
  }
}

}  // namespace

std::unique_ptr<Tensor> Ops::gated_delta_net(const Tensor& u, const DeltaNetWeights& w, DeltaNetState& state,
                                             const Context& context, int key_heads, float eps) const {
  check_shapes(u, w, state, context, key_heads);
  const int tokens = u.rows, channels = state.channels, value_heads = state.value_heads;
  const int values = value_heads * state.value_dim;
  Tensor qkv(tokens, channels), z(tokens, values), b(tokens, value_heads), a(tokens, value_heads);
  project(u.data.data(), tokens, u.columns,
          {{&w.in_proj_qkv, qkv.data.data()},
           {&w.in_proj_z, z.data.data()},
           {&w.in_proj_b, b.data.data()},
           {&w.in_proj_a, a.data.data()}});

  Tensor mixed(tokens, channels), decay(tokens, value_heads), beta(tokens, value_heads), out(tokens, values);
  DeltaNetArgs args{key_heads, value_heads, state.key_dim, state.value_dim, state.taps + 1, w.tiled_value_heads, channels,
                    state.state_columns, w.conv1d.transposed(), w.A_log.data.data(), w.dt_bias.data.data(),
                    w.norm.data.data(), eps, qkv.data.data(), z.data.data(), b.data.data(), a.data.data(),
                    mixed.data.data(), decay.data.data(), beta.data.data(), out.data.data()};

  std::vector<int> sequence_of(tokens);
  for (int s = 0; s < context.sequences(); ++s) {
    std::fill(sequence_of.begin() + context.cu_seqlens[s], sequence_of.begin() + context.cu_seqlens[s + 1], s);
  }
  constexpr int kRowsPerItem = 16, kMaxTaps = 16;
  require_range(state.taps, 1, kMaxTaps, "kernel of conv1d less one");
  parallel_for(divide_up(tokens, kRowsPerItem), 16 * static_cast<int64_t>(tokens) * channels, [&](int item) {
    const int last = std::min(tokens, (item + 1) * kRowsPerItem);
    for (int t = item * kRowsPerItem; t < last; ++t) {
      const int s = sequence_of[t];
      const int begin = context.cu_seqlens[s];
      const float* before = state.conv_slot(context.state_slots[s]);
      const float* previous[kMaxTaps + 1];
      for (int j = 0; j <= state.taps; ++j) {
        const int row = t - state.taps + j;
        previous[j] = row >= begin ? qkv.row(row) : before + static_cast<int64_t>(row - begin + state.taps) * channels;
      }
      kernels_.delta_prepare(args, t, previous);
    }
  });

  const int column_items = divide_up(state.state_columns, kDeltaColumns);
  const int items = context.sequences() * value_heads * column_items;
  std::vector<std::vector<Stop>> stops;
  for (int s = 0; s < context.sequences(); ++s) stops.push_back(stops_of(context, s));
  const int64_t operations = static_cast<int64_t>(tokens) * value_heads * state.key_dim * state.state_columns;
  parallel_for(items, operations, [&](int item) {
    const int s = item / (value_heads * column_items);
    const int head = item / column_items % value_heads;
    const int column = item % column_items * kDeltaColumns;
    const int64_t at = static_cast<int64_t>(head) * state.key_dim * state.state_columns + column;
    float* live = state.recurrent_slot(context.state_slots[s]) + at;
    int row = context.cu_seqlens[s];
    for (const Stop& stop : stops[s]) {
      kernels_.delta_recurrence(args, head, column, row, stop.row + 1, live - column);
      row = stop.row + 1;
      copy_columns(state, column, live, state.recurrent_slot(stop.slot) + at);
    }
    kernels_.delta_recurrence(args, head, column, row, context.cu_seqlens[s + 1], live - column);
  });

  for (int s = 0; s < context.sequences(); ++s) {
    const int begin = context.cu_seqlens[s], end = context.cu_seqlens[s + 1];
    float* live = state.conv_slot(context.state_slots[s]);
    for (const Stop& stop : stops[s]) store_conv(state, live, qkv.data.data(), begin, stop.row, state.conv_slot(stop.slot));
    if (end > begin) store_conv(state, live, qkv.data.data(), begin, end - 1, live);
  }

  parallel_for(divide_up(tokens, kRowsPerItem), 16 * static_cast<int64_t>(tokens) * values, [&](int item) {
    const int last = std::min(tokens, (item + 1) * kRowsPerItem);
    for (int t = item * kRowsPerItem; t < last; ++t) kernels_.delta_norm(args, t);
  });
  auto y = std::make_unique<Tensor>(tokens, w.out_proj.rows);
  project(out.data.data(), tokens, values, {{&w.out_proj, y->data.data()}});
  return y;
}

}  // namespace sterna
