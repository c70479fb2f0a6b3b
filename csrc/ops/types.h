// What the ops work on. Shapes are checked where they meet (`require`), with the values in the message.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "kernels/kernels.h"

namespace sterna {

// Raises ValueError in Python.
inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

inline void require_equal(int64_t got, int64_t expected, const char* what) {
  if (got != expected) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected is " +
                                std::to_string(expected));
  }
}

inline void require_range(int64_t got, int64_t low, int64_t high, const char* what) {
  if (got < low || got >= high) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", allowed is " +
                                std::to_string(low) + " to " + std::to_string(high - 1));
  }
}

inline int divide_up(int a, int b) { return (a + b - 1) / b; }

// float32 [rows, columns]; a vector has one row.
struct Tensor {
  int rows = 0, columns = 0;
  bool vector = false;
  Buffer<float> data;

  Tensor(int r, int c) : rows(r), columns(c), data(static_cast<std::size_t>(r) * c) {}
  float* row(int r) { return data.data() + static_cast<int64_t>(r) * columns; }
  const float* row(int r) const { return data.data() + static_cast<int64_t>(r) * columns; }

  // The transpose [columns, rows] of a parameter, made on first use and kept: parameters never change.
  const float* transposed() const;

 private:
  mutable std::once_flag transpose_once_;
  mutable Buffer<float> transpose_;
};

// A weight [rows, columns] in panels (see kernels.h).
struct Matrix {
  int rows = 0, columns = 0;
  Format format = Format::kFloat32;
  int64_t stride = 0;
  Buffer<char> data;
  std::shared_ptr<void> owner;  // of borrowed data

  int panels() const { return divide_up(rows, kPanelRows); }
  Panels view() const { return {data.data(), stride, format}; }
  int64_t bytes() const { return static_cast<int64_t>(data.size()); }
  int element() const { return format == Format::kFloat32 ? 4 : 2; }
};

// Routed experts: per expert the panels of its gate, up and down rows.
struct Experts {
  int count = 0, hidden = 0, width = 0;
  Format format = Format::kFloat32, down_format = Format::kFloat32;
  int64_t up_stride = 0, down_stride = 0;  // elements of one panel
  int64_t up_size = 0, down_size = 0;      // elements of one expert
  Buffer<char> gate_up, down;
  std::shared_ptr<void> owner;  // of borrowed data

  int64_t bytes() const { return static_cast<int64_t>(gate_up.size() + down.size()); }
  Panels gate_view(int expert) const;
  Panels up_view(int expert) const;
  Panels down_view(int expert) const;
};

// The slots of one DeltaNet layer: recurrent [slots, HV, K, state_columns], convolution [slots, kernel - 1, C].
struct DeltaNetState {
  int slots, value_heads, key_dim, value_dim, state_columns, channels, taps;
  Buffer<float> recurrent, conv;

  DeltaNetState(int slots, int value_heads, int key_dim, int value_dim, int channels, int kernel);
  int64_t recurrent_size() const { return static_cast<int64_t>(value_heads) * key_dim * state_columns; }
  int64_t conv_size() const { return static_cast<int64_t>(taps) * channels; }
  float* recurrent_slot(int slot) { return recurrent.data() + slot * recurrent_size(); }
  float* conv_slot(int slot) { return conv.data() + slot * conv_size(); }
};

// The blocks of one attention layer.
struct KvCache {
  int blocks;
  KvLayout layout;
  Buffer<char> data;

  KvCache(int blocks, int block_size, int kv_heads, int head_dim, Format format);
  int element() const { return layout.format == Format::kFloat32 ? 4 : 2; }
  int64_t block_bytes() const { return layout.block_stride * element(); }
};

// One pass: see `StepContext` in sterna/ops/base.py.
struct Context {
  std::vector<int32_t> cu_seqlens, context_lens, block_tables, slot_mapping, state_slots, snapshot_at;
  std::vector<float> cos, sin;
  int max_blocks = 0, half_rotary = 0;

  int tokens() const { return static_cast<int>(slot_mapping.size()); }
  int sequences() const { return static_cast<int>(context_lens.size()); }
  void check() const;
};

}  // namespace sterna
