#include "ops/types.h"

namespace sterna {

namespace {
int round_up(int value, int step) { return divide_up(value, step) * step; }
const char* at_element(const Buffer<char>& buffer, Format format, int64_t element) {
  return buffer.data() + element * element_bytes(format);
}
}  // namespace

const float* Tensor::transposed() const {
  std::call_once(transpose_once_, [this] {
    transpose_ = Buffer<float>(data.size());
    for (int c = 0; c < columns; ++c) {
      for (int r = 0; r < rows; ++r) transpose_[static_cast<std::size_t>(c) * rows + r] = row(r)[c];
    }
  });
  return transpose_.data();
}

Panels Experts::gate_view(int expert) const {
  return {at_element(gate_up, format, expert * up_size), up_stride, format};
}

Panels Experts::up_view(int expert) const {
  return {at_element(gate_up, format, expert * up_size + up_size / 2), up_stride, format};
}

Panels Experts::down_view(int expert) const {
  return {at_element(down, down_format, expert * down_size), down_stride, down_format};
}

DeltaNetState::DeltaNetState(int slots_, int value_heads_, int key_dim_, int value_dim_, int channels_, int kernel)
    : slots(slots_),
      value_heads(value_heads_),
      key_dim(key_dim_),
      value_dim(value_dim_),
      state_columns(round_up(value_dim_, kPanelRows)),
      channels(channels_),
      taps(kernel - 1),
      recurrent(static_cast<std::size_t>(slots * recurrent_size())),
      conv(static_cast<std::size_t>(slots * conv_size())) {
  std::memset(recurrent.data(), 0, recurrent.size() * sizeof(float));
  std::memset(conv.data(), 0, conv.size() * sizeof(float));
}

KvCache::KvCache(int blocks_, int block_size, int kv_heads, int head_dim, Format format) : blocks(blocks_) {
  const int padded = round_up(head_dim, kPanelRows);
  layout.format = format;
  layout.block_size = block_size;
  layout.kv_heads = kv_heads;
  layout.head_dim = head_dim;
  layout.key_tile_stride = static_cast<int64_t>(kPanelRows) * round_up(head_dim, 2);
  layout.value_panel_stride = static_cast<int64_t>(kPanelRows) * block_size;
  layout.head_stride = static_cast<int64_t>(padded) * block_size;
  layout.value_offset = layout.head_stride * kv_heads;
  layout.block_stride = 2 * layout.value_offset;
  data = Buffer<char>(static_cast<std::size_t>(blocks * block_bytes()));
  std::memset(data.data(), 0, data.size());
}

void Context::check() const {
  const int sequences_ = sequences();
  require_equal(static_cast<int64_t>(cu_seqlens.size()), sequences_ + 1, "length of cu_seqlens");
  require_equal(static_cast<int64_t>(state_slots.size()), sequences_, "length of state_slots");
  require_equal(cu_seqlens.front(), 0, "cu_seqlens[0]");
  require_equal(cu_seqlens.back(), tokens(), "last of cu_seqlens");
  for (int b = 0; b < sequences_; ++b) {
    require(cu_seqlens[b] <= cu_seqlens[b + 1], "cu_seqlens must not decrease");
    require(context_lens[b] >= 0, "context_lens[" + std::to_string(b) + "] is " + std::to_string(context_lens[b]) +
                                      ", allowed is 0 or more");
  }
  for (std::size_t i = 0; i < snapshot_at.size(); i += 2) {
    require_range(snapshot_at[i], 0, tokens(), "row of snapshot_at");
  }
}

}  // namespace sterna
