// The table of one variant; included once by each file in csrc/variants.
#pragma once

#include "kernels/attention.h"
#include "kernels/delta_net.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/roofline.h"
#include "kernels/vision.h"

namespace sterna::STERNA_VARIANT {

static constexpr Kernels make_kernels(const char* name) {
  Kernels table{};
  table.name = name;
  table.block_rows = kMaxRows;
  table.read_all = read_all;
  table.integer_products = integer_products;
  table.matmul = matmul;
  table.swiglu = swiglu;
  table.quantize_row = quantize_row;
  table.rms_norm = rms_norm;
  table.add = add;
  table.combine = combine;
  table.router_weights = router_weights;
  table.sigmoid = sigmoid_scalar;
  table.gate_output = gate_output;
  table.unpack_row = unpack_row;
  table.head_prepare = head_prepare;
  table.kv_store = kv_store;
  table.attention_chunk = attention_chunk;
  table.attention_merge = attention_merge;
  table.attention_finish = attention_finish;
  table.delta_prepare = delta_prepare;
  table.delta_recurrence = delta_recurrence;
  table.delta_norm = delta_norm;
  table.layer_norm = layer_norm;
  table.bias_activation = bias_activation;
  table.softmax_chunk = softmax_chunk;
  table.rotate_head = rotate_head;
  return table;
}

}  // namespace sterna::STERNA_VARIANT
