#include <algorithm>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

int64_t panel_elements(int depth, Format format) {
  const int padded = format == Format::kBfloat16 ? divide_up(depth, 2) * 2 : depth;
  return static_cast<int64_t>(kPanelRows) * padded;
}

// Rows [first, first + 16) of `source` into one panel; rows beyond the end and the padding column are zero.
template <class T>
void pack_panel(const T* source, int rows, int columns, int first, bool pairs, T* panel) {
  std::memset(panel, 0, sizeof(T) * kPanelRows * (pairs ? divide_up(columns, 2) * 2 : columns));
  for (int r = 0; r < kPanelRows && first + r < rows; ++r) {
    const T* row = source + static_cast<int64_t>(first + r) * columns;
    for (int k = 0; k < columns; ++k) {
      const int64_t group = pairs ? static_cast<int64_t>(k / 2) * 2 * kPanelRows + 2 * r + k % 2
                                  : static_cast<int64_t>(k) * kPanelRows + r;
      panel[group] = row[k];
    }
  }
}

void pack_panel(const void* source, int rows, int columns, int first, Format format, char* panel) {
  if (format == Format::kFloat32) {
    pack_panel(static_cast<const float*>(source), rows, columns, first, false, reinterpret_cast<float*>(panel));
  } else {
    pack_panel(static_cast<const uint16_t*>(source), rows, columns, first, format == Format::kBfloat16,
               reinterpret_cast<uint16_t*>(panel));
  }
}

const char* skip_elements(const void* source, int64_t elements, Format format) {
  return static_cast<const char*>(source) + elements * element_bytes(format);
}

// Few rows: about four pieces per thread, in multiples of what the narrowest rows keep in registers.
int panels_for_item(int total_panels, int rows) {
  if (rows > 24) return 16;
  return std::clamp(divide_up(total_panels, 16 * num_threads()) * 4, 4, 64);
}

}  // namespace

std::unique_ptr<Matrix> Ops::pack_linear(const void* source, int rows, int columns, Format format) const {
  auto matrix = std::make_unique<Matrix>();
  matrix->rows = rows;
  matrix->columns = columns;
  matrix->format = format;
  matrix->stride = panel_elements(columns, format);
  const int64_t bytes = matrix->stride * element_bytes(format);
  matrix->data = Buffer<char>(static_cast<std::size_t>(matrix->panels() * bytes));
  parallel_for(matrix->panels(), static_cast<int64_t>(rows) * columns, [&](int p) {
    pack_panel(source, rows, columns, p * kPanelRows, format, matrix->data.data() + p * bytes);
  });
  return matrix;
}

std::unique_ptr<Experts> Ops::pack_experts(const void* gate_up, const void* down, int count, int hidden, int width,
                                           Format format) const {
  auto experts = std::make_unique<Experts>();
  experts->count = count;
  experts->hidden = hidden;
  experts->width = width;
  experts->format = experts->down_format = format;
  const int up_panels = divide_up(width, kPanelRows), down_panels = divide_up(hidden, kPanelRows);
  experts->up_stride = panel_elements(hidden, format);
  experts->down_stride = panel_elements(width, format);
  experts->up_size = 2 * up_panels * experts->up_stride;
  experts->down_size = down_panels * experts->down_stride;
  const int element = element_bytes(format);
  experts->gate_up = Buffer<char>(static_cast<std::size_t>(count * experts->up_size * element));
  experts->down = Buffer<char>(static_cast<std::size_t>(count * experts->down_size * element));
  parallel_for(count, static_cast<int64_t>(count) * hidden * width, [&](int e) {
    const char* gate = skip_elements(gate_up, static_cast<int64_t>(e) * 2 * width * hidden, format);
    const char* up = skip_elements(gate, static_cast<int64_t>(width) * hidden, format);
    char* target = experts->gate_up.data() + e * experts->up_size * element;
    for (int p = 0; p < up_panels; ++p) {
      const int64_t bytes = experts->up_stride * element;
      pack_panel(gate, width, hidden, p * kPanelRows, format, target + p * bytes);
      pack_panel(up, width, hidden, p * kPanelRows, format, target + (up_panels + p) * bytes);
    }
    const char* rows = skip_elements(down, static_cast<int64_t>(e) * hidden * width, format);
    target = experts->down.data() + e * experts->down_size * element;
    for (int p = 0; p < down_panels; ++p) {
      pack_panel(rows, hidden, width, p * kPanelRows, format, target + p * experts->down_stride * element);
    }
  });
  return experts;
}

Buffer<char> Ops::quantize(const float* x, int rows, int depth) const {
  const int64_t stride = quantized_row_bytes(depth);
  Buffer<char> result(static_cast<std::size_t>(rows * stride));
  constexpr int kRowsPerItem = 8;
  parallel_for(divide_up(rows, kRowsPerItem), 4 * static_cast<int64_t>(rows) * depth, [&](int item) {
    const int last = std::min(rows, (item + 1) * kRowsPerItem);
    for (int r = item * kRowsPerItem; r < last; ++r) {
      kernels_.quantize_row(x + static_cast<int64_t>(r) * depth, depth, result.data() + r * stride);
    }
  });
  return result;
}

// All (projection, panels, rows) pieces as one job.
void Ops::project(const float* x, int rows, int depth, const std::vector<Projection>& projections) const {
  constexpr int kRowsPerItem = 96;
  const int row_items = divide_up(rows, kRowsPerItem);
  int total_panels = 0;
  for (const Projection& projection : projections) total_panels += projection.weight->panels();
  const int panels_per_item = panels_for_item(total_panels, rows);
  std::vector<int> ends;
  int items = 0;
  int64_t operations = 0;
  for (const Projection& projection : projections) {
    require_equal(projection.weight->columns, depth, "columns of the weight");
    items += divide_up(projection.weight->panels(), panels_per_item) * row_items;
    ends.push_back(items);
    operations += static_cast<int64_t>(rows) * depth * projection.weight->rows;
  }
  const bool any_quantized = std::any_of(projections.begin(), projections.end(), [](const Projection& projection) {
    return is_quantized(projection.weight->format);
  });
  const Buffer<char> quantized = any_quantized ? quantize(x, rows, depth) : Buffer<char>();
  const int64_t quantized_stride = quantized_row_bytes(depth);
  parallel_for(items, operations, [&](int item) {
    int which = 0;
    while (item >= ends[which]) ++which;
    const Projection& projection = projections[which];
    const Matrix& w = *projection.weight;
    const int local = item - (which > 0 ? ends[which - 1] : 0);
    const int panel = local / row_items * panels_per_item;
    const int first = local % row_items * kRowsPerItem;
    const int count = std::min(kRowsPerItem, rows - first);
    const float* inputs[kRowsPerItem];
    const char* codes[kRowsPerItem];
    float* outputs[kRowsPerItem];
    for (int r = 0; r < count; ++r) {
      inputs[r] = x + static_cast<int64_t>(first + r) * depth;
      codes[r] = quantized.data() + (first + r) * quantized_stride;
      outputs[r] = projection.output + static_cast<int64_t>(first + r) * w.rows + panel * kPanelRows;
    }
    Panels view = w.view();
    view.data = skip_elements(view.data, panel * w.stride, w.format);
    kernels_.matmul({view, std::min(panels_per_item, w.panels() - panel), w.rows - panel * kPanelRows, depth, inputs,
                     outputs, count, false, codes});
  });
}

std::unique_ptr<Tensor> Ops::linear(const Tensor& x, const Matrix& weight) const {
  auto y = std::make_unique<Tensor>(x.rows, weight.rows);
  project(x.data.data(), x.rows, x.columns, {{&weight, y->data.data()}});
  return y;
}

std::unique_ptr<Tensor> Ops::embedding(const int32_t* ids, int count, const Matrix& table) const {
  for (int t = 0; t < count; ++t) require_range(ids[t], 0, table.rows, "token id");
  auto y = std::make_unique<Tensor>(count, table.columns);
  parallel_for(count, 4 * static_cast<int64_t>(count) * table.columns,
               [&](int t) { kernels_.unpack_row(table.view(), table.columns, ids[t], y->row(t)); });
  return y;
}

std::unique_ptr<Tensor> Ops::take_rows(const Tensor& x, const int32_t* rows, int count) const {
  for (int r = 0; r < count; ++r) require_range(rows[r], 0, x.rows, "row");
  auto y = std::make_unique<Tensor>(count, x.columns);
  for (int r = 0; r < count; ++r) std::memcpy(y->row(r), x.row(rows[r]), sizeof(float) * x.columns);
  return y;
}

std::unique_ptr<Tensor> Ops::concat(const Tensor& a, const Tensor& b) const {
  require_equal(b.rows, a.rows, "rows of b");
  auto y = std::make_unique<Tensor>(a.rows, a.columns + b.columns);
  for (int r = 0; r < a.rows; ++r) {
    std::memcpy(y->row(r), a.row(r), sizeof(float) * a.columns);
    std::memcpy(y->row(r) + a.columns, b.row(r), sizeof(float) * b.columns);
  }
  return y;
}

void Ops::set_rows(Tensor& x, const int32_t* rows, int count, const float* values, int width) const {
  require_equal(width, x.columns, "columns of values");
  for (int r = 0; r < count; ++r) require_range(rows[r], 0, x.rows, "row");
  for (int r = 0; r < count; ++r) {
    std::memcpy(x.row(rows[r]), values + static_cast<int64_t>(r) * width, sizeof(float) * width);
  }
}

void Ops::add(Tensor& x, const Tensor& y) const {
  require_equal(y.rows, x.rows, "rows of y");
  require_equal(y.columns, x.columns, "columns of y");
  kernels_.add(x.data.data(), y.data.data(), static_cast<int64_t>(x.rows) * x.columns);
}

std::unique_ptr<Tensor> Ops::rms_norm(const Tensor& x, const Tensor& weight, float eps) const {
  require_equal(weight.columns, x.columns, "length of the norm weight");
  auto y = std::make_unique<Tensor>(x.rows, x.columns);
  constexpr int kRowsPerItem = 16;
  parallel_for(divide_up(x.rows, kRowsPerItem), 2 * static_cast<int64_t>(x.rows) * x.columns, [&](int item) {
    const int first = item * kRowsPerItem;
    kernels_.rms_norm(x.row(first), weight.data.data(), eps, std::min(kRowsPerItem, x.rows - first), x.columns,
                      y->row(first));
  });
  return y;
}

}  // namespace sterna
